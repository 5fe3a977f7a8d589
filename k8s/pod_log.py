"""A container's log as it grows, line by line, over broken connections. Each line is given out once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from zerofleet.k8s.api import Api, ApiError, Pauses
from zerofleet.k8s.forbidden import Forbidden
from zerofleet.k8s.paths import POD

SILENCE_S = 60.0
"""A log that says nothing for longer is asked for again: the connection may be dead."""
_AGAIN_S = 1.0
"""Pause before a log is asked for again that has ended, of a container that has not."""
_GONE = 404


class PodLog:
    """Where a pod's log has been read to: by the times that the kubelet writes before each line."""

    def __init__(self, api: Api, namespace: str, pod: str, container: str) -> None:
        self.pod = pod
        self._api, self._pod_path, self._path = api, POD.path(namespace, pod), POD.path(namespace, pod, "log")
        self._container = container
        self._last = ""

    def read(self, follow: bool, tail: int | None = None) -> Iterator[str]:
        """Lines after those that were given out already; `tail`: at most so many of what is there. Raises ApiError."""
        query = {"container": self._container, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if tail is not None:
            query["tailLines"] = str(tail)
        if self._last:
            query["sinceTime"] = self._last  # the server takes full seconds: what comes twice is left out below
        for line in self._api.lines(self._path, query, SILENCE_S):
            stamp, _, text = line.decode(errors="replace").partition(" ")
            if _order(stamp) > _order(self._last):
                self._last = stamp
                yield text.rstrip("\r")

    def follow(self, closing: threading.Event) -> Iterator[str]:
        """Lines until the container has ended, the pod is gone, or `closing` is set. What else keeps it from being read may pass: a container
        that has not started (400), a server that starts anew, credentials that expired. Raises ApiError when it may not be read at all.

        That the log's stream ends says nothing of the container: a kubelet that starts anew, an idle connection and a rotated file end it too.
        What was written between that and the container's end comes with the read after it."""
        pauses, forbidden, has_ended = Pauses(), Forbidden(self._api), False
        while not closing.is_set():
            try:
                for line in self.read(follow=True):
                    pauses = Pauses()
                    forbidden.let_in()
                    yield line
                forbidden.let_in()
                if has_ended:
                    return
                has_ended = self._has_ended()
                if not has_ended:
                    closing.wait(_AGAIN_S)
            except ApiError as error:
                if error.status == _GONE:
                    return
                forbidden.failed(error)
                if forbidden.is_final:
                    raise
                closing.wait(pauses.next(error))

    def _has_ended(self) -> bool:
        """Whether the container writes no more. Raises ApiError, 404 when its pod is gone."""
        status = self._api.get(self._pod_path).get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            return True
        containers = status.get("containerStatuses") or []
        return any(each["name"] == self._container and "terminated" in (each.get("state") or {}) for each in containers)


def _order(stamp: str) -> tuple[str, str]:
    """Sorts times as the kubelet writes them: some versions leave out zeros at the end of a second's fraction."""
    second, _, fraction = stamp.partition(".")
    return second[:19], fraction.rstrip("Z").ljust(9, "0")
