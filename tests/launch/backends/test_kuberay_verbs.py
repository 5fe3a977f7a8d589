"""`list` and `resume` of runs on Kubernetes, against an API server that holds a few objects."""

from __future__ import annotations

import json

import pytest

from tests.k8s.objects import ray_job, running
from tests.k8s.support import CPU, QUICKSTART
from zerofleet.k8s.api import ApiError
from zerofleet.launch import cli
from zerofleet.launch.backends import kuberay_resume, kuberay_verbs
from zerofleet.launch.backends.kuberay_watch import Place
from zerofleet.launch.config import load_job


class FakeApi:
    """RayJobs and ConfigMaps of one namespace; of all else there is nothing."""

    namespace = "training"

    def __init__(self) -> None:
        self.jobs: list[dict] = []
        self.job_files: dict[str, dict[str, str]] = {}
        """Of each ConfigMap what it holds."""
        self.trouble: ApiError | None = None

    def add(self, name: str, data: dict[str, str] | None) -> None:
        job = ray_job(running("Complete"))
        job["metadata"]["name"] = name
        self.jobs.append(job)
        if data is not None:
            self.job_files[f"{name}-job"] = data

    def get(self, path: str, query: dict[str, str] | None = None) -> dict:
        name = path.rpartition("/")[2]
        if "/configmaps/" in path:
            if self.trouble:
                raise self.trouble
            if name not in self.job_files:
                raise ApiError(404, "NotFound", "")
            return {"data": self.job_files[name]}
        if not path.endswith("/rayjobs"):
            return {"items": []}
        chosen = (query or {}).get("fieldSelector", "")
        return {"items": [job for job in self.jobs if chosen in ("", f"metadata.name={job['metadata']['name']}")]}


@pytest.fixture
def api(monkeypatch) -> FakeApi:
    made = FakeApi()
    for module in (kuberay_verbs, kuberay_resume):
        monkeypatch.setattr(module, "Api", lambda context: made)
    return made


@pytest.fixture
def call(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_run_that_cannot_be_read_is_said_and_the_others_are_listed(api, call):
    whole = {"job.yaml": load_job(QUICKSTART, ["run.name=last"]).to_yaml()}
    api.add("deleted", None)
    api.add("damaged", {"job.yaml": "run: [1"})
    api.add("changed", {"job.yaml": "train: {nonsense: 1}"})
    api.add("empty", {"stop": "1.0"})
    api.add("resumed", whole | {"overrides.yaml": "{:"})
    api.add("last", whole)
    code, out, err = call("list", "--backend", "kuberay", "--json")
    assert code == 0 and [json.loads(line)["run"] for line in out.splitlines()] == ["last"]
    warned = ["deleted", "damaged", "changed", "empty", "resumed"]
    for name in warned:
        assert f"warning: {name} cannot be read: " in err
    assert "no ConfigMap 'deleted-job'" in err and "ConfigMap 'empty-job' in namespace training has no job.yaml" in err


def test_a_cluster_that_does_not_answer_is_no_damaged_run(api, call):
    api.add("first", None)
    api.trouble = ApiError(0, "NoAnswer", "no answer")
    code, _, err = call("list", "--backend", "kuberay")
    assert code != 0 and "warning" not in err and "no answer" in err


def test_a_resume_in_another_namespace_than_the_profiles_is_refused(api, call):
    resume = ["resume", "first", "--backend", "kuberay", "--profile", str(CPU)]
    code, _, err = call(*resume, "--namespace", "elsewhere")
    assert code == 2 and "--namespace elsewhere" in err and "'training'" in err
    code, _, err = call(*resume, "--namespace", "training")
    assert "elsewhere" not in err and "no ConfigMap 'first-job' in namespace training" in err


def test_the_hint_for_a_resume_works_when_it_is_pasted(api):
    place = Place(api, "training", "first", "c")
    tail = "--backend kuberay --namespace training"
    assert place.command("resume").endswith(f" resume first {tail} --profile PROFILE --context c")
    assert place.command("stop").endswith(f" stop first {tail} --context c")
    known = Place(api, "training", "first", profile="my profile.yaml")
    assert known.command("resume").endswith(f" resume first {tail} --profile 'my profile.yaml'")
