"""Creating and deleting a run's objects, over lost answers and leftovers: against objects in memory."""

from __future__ import annotations

import pytest

from zerofleet.cluster.config import NotFoundError, UserError
from zerofleet.k8s import run_objects
from zerofleet.k8s.api import ApiError
from zerofleet.k8s.run_objects import SUBMISSION, ask_to_stop, create_run, delete_run, find_job

NAMESPACE = "/api/v1/namespaces/training"
JOB = "/apis/ray.io/v1/namespaces/training/rayjobs"


class FakeApi:
    """A store of objects by path."""

    def __init__(self) -> None:
        self.objects: dict[str, dict] = {}
        self.calls: list[str] = []
        self.refuse: dict[str, ApiError] = {}
        """By kind: the next create."""

    def create(self, path, body):
        self.calls.append(f"create {body['kind']}")
        if error := self.refuse.pop(body["kind"], None):
            raise error
        full = f"{path}/{body['metadata']['name']}"
        if full in self.objects:
            raise ApiError(409, "AlreadyExists", "")
        body = {**body, "metadata": {**body["metadata"], "uid": f"uid-{len(self.calls)}"}}
        self.objects[full] = {key: value for key, value in body.items() if key != "kind"}  # a server may leave it out
        return self.objects[full]

    def get(self, path, query=None):
        if query is not None:
            return {"items": [each for full, each in self.objects.items() if full.startswith(path)]}
        if path not in self.objects:
            raise ApiError(404, "NotFound", "")
        return self.objects[path]

    def patch(self, path, body, kind="merge"):
        self.calls.append(f"patch {path.rpartition('/')[2]}")
        self.objects[path]["metadata"] |= body.get("metadata", {})
        self.objects[path].setdefault("data", {}).update(body.get("data", {}))
        return self.objects[path]

    def delete(self, path, body=None):
        self.calls.append(f"delete {path.rpartition('/')[2]}")
        gone = self.objects.pop(path, None)
        for full, each in list(self.objects.items()):
            owners = [owner["uid"] for owner in each["metadata"].get("ownerReferences", [])]
            if gone and gone["metadata"]["uid"] in owners:
                del self.objects[full]


def documents():
    metadata = {"namespace": "training", "labels": {}}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**metadata, "name": "first-job"},
            "data": {"job.yaml": ""},
        },
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {**metadata, "name": "first"}},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {**metadata, "name": "first"}},
    ]


def test_the_rayjob_comes_last_and_owns_the_rest():
    api = FakeApi()
    made = documents()
    create_run(api, made, "s1")
    assert api.calls == [
        "create ConfigMap",
        "create PodDisruptionBudget",
        "create RayJob",
        "patch first-job",
        "patch first",
    ]
    uid = api.objects[f"{JOB}/first"]["metadata"]["uid"]
    for path, each in api.objects.items():
        assert each["metadata"]["annotations"] == {SUBMISSION: "s1"}
        owners = each["metadata"].get("ownerReferences", [])
        assert [owner["uid"] for owner in owners] == ([] if path.startswith(JOB) else [uid])
    assert made == documents()  # they are the caller's
    delete_run(api, "training", "first")
    assert api.objects == {}


def test_an_owner_that_is_refused_ends_no_submit(monkeypatch, caplog):
    api = FakeApi()
    patch = api.patch

    def refused(path, body, kind="merge"):
        if path.endswith("first-job"):
            raise ApiError(403, "Forbidden", "cannot set blockOwnerDeletion")
        return patch(path, body, kind)

    monkeypatch.setattr(api, "patch", refused)
    assert create_run(api, documents(), "s1")["metadata"]["name"] == "first"
    (said,) = caplog.messages
    assert "ConfigMap first-job" in said and "cannot set blockOwnerDeletion" in said
    budget = api.objects["/apis/policy/v1/namespaces/training/poddisruptionbudgets/first"]
    (owner,) = budget["metadata"]["ownerReferences"]
    assert "blockOwnerDeletion" not in owner
    before = dict(api.objects)
    with pytest.raises(UserError, match="'first-job' exists already"):
        create_run(api, documents(), "s2")  # it has no owner, and is a run's all the same
    assert api.objects == before


def test_an_own_create_whose_answer_was_lost_is_found_again():
    api = FakeApi()
    api.create(JOB, {**documents()[2], "metadata": {**documents()[2]["metadata"], "annotations": {SUBMISSION: "s1"}}})
    assert create_run(api, documents(), "s1")["metadata"]["uid"] == "uid-1"
    assert len(api.objects) == 3


def test_a_name_that_is_taken_is_said_and_nothing_of_the_other_is_touched():
    api = FakeApi()
    create_run(api, documents(), "s1")
    before = dict(api.objects)
    with pytest.raises(
        UserError, match=r"'first-job' exists already in namespace training.*zerofleet resume .*run\.name"
    ):
        create_run(api, documents(), "s2")
    assert api.objects == before


def test_what_a_submit_left_that_died_before_its_rayjob_is_taken_over():
    api = FakeApi()
    api.refuse["RayJob"] = ApiError(0, "NoAnswer", "")
    with pytest.raises(ApiError):
        create_run(api, documents(), "s1")
    create_run(api, documents(), "s2")
    assert {each["metadata"]["annotations"][SUBMISSION] for each in api.objects.values()} == {"s2"}
    foreign = FakeApi()
    foreign.create(f"{NAMESPACE}/configmaps", documents()[0])  # nobody's of ours
    with pytest.raises(UserError, match="exists already"):
        create_run(foreign, documents(), "s1")


@pytest.mark.parametrize(
    ("status", "says"),
    [(422, "refuses the RayJob first: spec.x"), (403, "does not let you create the RayJob first: spec.x")],
)
def test_what_the_server_finds_wrong_is_the_users_mistake(status, says):
    api = FakeApi()
    api.refuse["RayJob"] = ApiError(status, "Invalid", "spec.x: must be so")
    with pytest.raises(UserError, match=says):
        create_run(api, documents(), "s1")


def test_a_stop_reaches_the_configmap_and_wakes_the_heads_kubelet():
    api = FakeApi()
    create_run(api, documents(), "s1")
    api.objects[f"{NAMESPACE}/pods/head"] = {"metadata": {"name": "head"}}
    ask_to_stop(api, "training", "first")
    asked = api.objects[f"{NAMESPACE}/configmaps/first-job"]["data"]["stop"]
    assert float(asked) > 1.7e9
    assert api.objects[f"{NAMESPACE}/pods/head"]["metadata"]["annotations"] == {run_objects.ASKED: asked}


def test_a_run_that_nobody_knows():
    with pytest.raises(NotFoundError, match=r"no RayJob 'first' in namespace training.*--namespace") as missing:
        find_job(FakeApi(), "training", "first")
    assert missing.value.exit_code == 4


def test_an_object_that_a_finalizer_holds_is_named(monkeypatch):
    api = FakeApi()
    create_run(api, documents(), "s1")
    monkeypatch.setattr(api, "delete", lambda path, body=None: None)
    monkeypatch.setattr(run_objects, "_GONE_TIMEOUT_S", 0.02)
    monkeypatch.setattr(run_objects, "_LOOK_S", 0.01)
    with pytest.raises(ApiError, match=r"rayjobs/first, .*still there .*KubeRay's operator takes its finalizer off"):
        delete_run(api, "training", "first")
    del api.objects[f"{JOB}/first"]
    with pytest.raises(ApiError) as late:
        delete_run(api, "training", "first")
    assert "rayjobs" not in str(late.value) and "operator" not in str(late.value)
    assert str(late.value).startswith(f"{NAMESPACE}/configmaps/first-job, ") and "such as GitOps" in str(late.value)


def test_what_has_no_owner_is_deleted_too(monkeypatch):
    """As after `kubectl apply`, or a submit that died before it made the RayJob the owner."""
    monkeypatch.setattr(run_objects, "_GONE_TIMEOUT_S", 0.02)
    monkeypatch.setattr(run_objects, "_LOOK_S", 0.01)
    api = FakeApi()
    for document in documents():
        api.create(run_objects.KINDS[document["kind"]].path("training"), document)
    delete_run(api, "training", "first")
    assert api.objects == {}
    assert api.calls[3:] == ["delete first", "delete first-job", "delete first"]
    delete_run(api, "training", "first")  # what is not there is deleted
