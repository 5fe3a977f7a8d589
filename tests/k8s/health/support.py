"""An API server that holds what a test gives it."""

from __future__ import annotations

from typing import Any

from zerofleet.cluster.config import Check
from zerofleet.k8s.api import ApiError
from zerofleet.k8s.paths import Kind

MISSING = ApiError(404, "NotFound", "not found")
FORBIDDEN = ApiError(403, "Forbidden", 'User "alice" cannot get it')


class FakeApi:
    """`objects`: what lies at each path, or the error that is raised there. What is not given is not there. `asked`: what was read with its
    content."""

    url = "https://cluster:6443"

    def __init__(self, objects: dict[str, Any] | None = None) -> None:
        self.objects, self.asked, self.created = objects or {}, [], []

    def get(self, path, query=None):
        self.asked.append(path)
        return self._at(path)

    def _at(self, path):
        answer = self.objects.get(path, MISSING)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get_metadata(self, path):
        return {"metadata": self._at(path)["metadata"]}

    def list_metadata(self, path, query=None):
        return {"items": [{"metadata": item["metadata"]} for item in self._at(path)["items"]]}

    def create(self, path, body, query=None):
        self.created.append((path, query))
        if path.endswith("selfsubjectaccessreviews"):
            about = body["spec"]["resourceAttributes"]
            return {
                "status": {"allowed": f"{about['verb']} {about['resource']}" not in self.objects.get("refused", ())}
            }
        answer = self.objects.get(f"POST {path}", MISSING)
        if isinstance(answer, Exception):
            raise answer
        return body if answer is None else answer


def at(kind: Kind, name: str = "", **content: Any) -> dict[str, Any]:
    """An object in namespace `training` at its path."""
    labels = content.pop("labels", {})
    return {
        kind.path("training", name): {"metadata": {"name": name, "namespace": "training", "labels": labels}, **content}
    }


def lines(checks) -> list[str]:
    """`level name: text` of each."""
    return [f"{check.level} {check.name}: {check.text}" for check in checks]


def one(checks) -> Check:
    (check,) = checks
    return check
