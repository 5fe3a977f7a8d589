"""What is said of a namespace and of what lies in it."""

from __future__ import annotations

import pytest

from tests.k8s.health.support import FakeApi, at, lines, one
from tests.k8s.support import CPU, H100, changed_profile
from zerofleet.k8s.bootstrap.namespace import ENFORCE
from zerofleet.k8s.health.namespace import account, namespace, pull_secrets, secrets, storage
from zerofleet.k8s.paths import CLAIM, SECRET, SERVICE_ACCOUNT, STORAGE_CLASS
from zerofleet.launch.workload import load_profile

PATH = "/api/v1/namespaces/training"


@pytest.mark.parametrize(
    ("found", "level", "said"),
    [
        ({}, "fail", "k8s bootstrap"),
        ({"metadata": {}, "status": {"phase": "Terminating"}}, "fail", "being deleted"),
        ({"metadata": {}}, "warn", f"{ENFORCE}"),
        ({"metadata": {"labels": {ENFORCE: "restricted"}}}, "ok", "restricted"),
        ({"metadata": {"labels": {ENFORCE: "baseline"}}}, "ok", "baseline"),
    ],
)
def test_it_is_there_and_enforces_pod_security(found, level, said):
    check = one(namespace(FakeApi({PATH: found} if found else {}), load_profile(CPU)))
    assert check.level == level and said in check.text


def test_a_namespace_that_is_stricter_than_the_pods_fails():
    profile = changed_profile(CPU, security__pod_security="privileged")
    check = one(namespace(FakeApi({PATH: {"metadata": {"labels": {ENFORCE: "baseline"}}}}), profile))
    assert check.level == "fail" and f"{ENFORCE}=privileged" in check.text


def test_the_pods_account():
    profile = load_profile(CPU)
    assert one(account(FakeApi(at(SERVICE_ACCOUNT, "zerofleet")), profile)).level == "ok"
    assert one(account(FakeApi(), profile)).level == "fail"
    assert one(account(FakeApi(), changed_profile(CPU, security={}))).level == "warn"


def written(*keys: str) -> dict:
    return {"managedFields": [{"fieldsV1": {"f:data": {".": {}, **{f"f:{key}": {} for key in keys}}}}]}


def secret(name: str, *keys: str) -> dict:
    found = at(SECRET, name, data=dict.fromkeys(keys, "UExBTlRFRA=="))
    next(iter(found.values()))["metadata"] |= written(*keys)
    return found


def test_secrets_are_there_with_their_keys_and_their_values_are_not_asked_for():
    profile = load_profile(H100)
    api = FakeApi({**secret("zerofleet-s3"), **secret("wandb", "api-key"), **secret("hugging-face", "tokn")})
    said = lines(secrets(api, profile))
    assert said == [
        "fail secrets: Secret hugging-face has no key token (it has tokn): add it, or correct the profile",
        "ok secrets: zerofleet-s3, wandb: there (their values were not read)",
    ]
    with_registry = FakeApi(secret("registry"))
    assert one(pull_secrets(with_registry, profile)).level == "ok"
    assert api.asked == with_registry.asked == []
    assert "create secret docker-registry registry" in one(pull_secrets(FakeApi(), profile)).text
    missing = lines(secrets(FakeApi({**secret("zerofleet-s3"), **secret("hugging-face", "token")}), profile))
    assert missing[0].startswith("fail secrets: Secret wandb is not there") and "--from-file=api-key=FILE" in missing[0]


def test_a_secret_whose_keys_nobody_wrote_down_counts_as_whole():
    api = FakeApi({**at(SECRET, "zerofleet-s3"), **at(SECRET, "wandb"), **at(SECRET, "hugging-face")})
    assert one(secrets(api, load_profile(H100))).level == "ok"


def claim(phase: str, mode: str = "ReadWriteMany", name: str | None = "nfs") -> dict:
    status = {"phase": phase, "capacity": {"storage": "100Gi"}}
    return at(CLAIM, "zerofleet", spec={"accessModes": [mode], "storageClassName": name}, status=status)


def klass(mode: str) -> dict:
    return {STORAGE_CLASS.cluster_path("nfs"): {"volumeBindingMode": mode}}


@pytest.mark.parametrize(
    ("found", "level", "said"),
    [
        ({}, "fail", "k8s bootstrap"),
        (claim("Bound"), "ok", "100Gi"),
        (claim("Bound", "ReadWriteOnce"), "fail", "all pods need it at once"),
        (claim("Lost"), "fail", "lost its volume"),
        (claim("Pending", name=None), "fail", "no StorageClass"),
        (claim("Pending"), "fail", "StorageClass nfs is not there"),
        ({**claim("Pending"), **klass("WaitForFirstConsumer")}, "ok", "for the first pod"),
        ({**claim("Pending"), **klass("Immediate")}, "fail", "kubectl describe pvc zerofleet"),
    ],
)
def test_the_volume(found, level, said):
    check = one(storage(FakeApi(found), load_profile(CPU)))
    assert check.level == level and said in check.text


def test_a_claim_that_bootstrap_does_not_make_is_made_otherwise():
    assert "set storage.size_gib" in one(storage(FakeApi(), load_profile(H100))).text
    assert list(storage(FakeApi(), changed_profile(CPU, storage={}))) == []
