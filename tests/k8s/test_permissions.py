"""What is asked of the API server before anything is created, and what is said when the answer is no."""

from __future__ import annotations

import pytest

from tests.k8s.support import CPU, H100, changed_profile
from zerofleet.cluster.config import UserError
from zerofleet.k8s.api import ApiError
from zerofleet.k8s.paths import BUDGET
from zerofleet.k8s.permissions import check_permissions, needed
from zerofleet.launch.workload import load_profile


class FakeApi:
    def __init__(self, refused=()) -> None:
        self.refused, self.asked = refused, []

    def create(self, path, body):
        assert path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        about = body["spec"]["resourceAttributes"]
        asked = f"{about['verb']} {about['resource']}" + (f"/{about['subresource']}" if "subresource" in about else "")
        assert about["namespace"] == "training"
        self.asked.append(asked)
        return {"status": {"allowed": asked not in self.refused}}


def test_everything_that_is_done_is_asked_and_workloads_only_under_kueue():
    api = FakeApi()
    check_permissions(api, load_profile(CPU))
    assert {"create rayjobs", "delete rayclusters", "get pods/log", "patch configmaps", "watch events"} <= set(
        api.asked
    )
    assert "list workloads" not in api.asked and "create poddisruptionbudgets" in api.asked
    check_permissions(api, load_profile(H100))
    assert "list workloads" in api.asked


def test_what_deletes_a_run_may_look_for_its_budget_also_where_none_is_made():
    def about_budgets(**changes) -> set[str]:
        rights = needed(changed_profile(CPU, **changes))
        return {verb for kind, _, verbs in rights if kind == BUDGET for verb in verbs}

    assert about_budgets() == {"get", "create", "patch", "delete"}
    assert about_budgets(limits__disruption_budget=False) == {"get", "delete"}


def test_what_is_not_allowed_is_said_as_the_rules_of_a_role():
    api = FakeApi(refused=("create rayjobs", "get pods/log"))
    with pytest.raises(UserError) as refused:
        check_permissions(api, load_profile(CPU))
    said = str(refused.value)
    assert said.splitlines()[1:] == [
        '  - {apiGroups: ["ray.io"], resources: [rayjobs], verbs: [create]}',
        '  - {apiGroups: [""], resources: [pods/log], verbs: [get]}',
    ]
    assert "namespace training" in said and "Ask the platform team" in said


def test_a_question_that_may_not_be_asked_is_no_refusal(monkeypatch):
    api = FakeApi()

    def forbidden(path, body):
        raise ApiError(403, "Forbidden", "")

    monkeypatch.setattr(api, "create", forbidden)
    check_permissions(api, load_profile(CPU))
