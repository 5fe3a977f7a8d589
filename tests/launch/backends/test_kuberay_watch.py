"""How following a run ends, and what it leaves in the cluster: against a script of what is observed and said."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.k8s.objects import condition, observed, pod, ray_job, running, workload
from zerofleet.k8s.api import ApiError
from zerofleet.launch.backends import kuberay_watch
from zerofleet.launch.backends.kuberay_watch import KubeWatch, Place
from zerofleet.launch.progress import Progress
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import DRIVER, Event


def state(to: str, **data) -> Event:
    return Event("state", 1, DRIVER, 0, "end", 100.0, data={"from": "", "to": to, **data})


def step(number: int) -> Event:
    return Event("step", 1, 0, number, "step", 100.0 + number, data={"loss": 0.5, "tokens": 8})


class Script:
    """What a watch sees, one look after the other; the last one stays. Stands in for Observer and PodEvents."""

    def __init__(self) -> None:
        self.jobs: list = []
        self.pods: list = []
        self.workloads: list = []
        self.said: list[list[Event]] = []
        self.unread: list[Event] = []
        """Events at the log's end that only another reading of it finds."""
        self.troubles: list[ApiError | None] = []
        self.tail, self.is_ready, self.unchanged = "", True, 0.0
        self.interrupts = 0
        self.deleted: list[str] = []
        self._look = -1

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass

    def wait(self, timeout_s: float) -> None:
        self._look += 1
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt

    @property
    def trouble(self) -> ApiError | None:
        return self.troubles[min(self._look, len(self.troubles) - 1)] if self.troubles else None

    @property
    def is_forbidden(self) -> bool:
        return self.trouble is not None and "for long" in str(self.trouble)

    def observed(self):
        return observed(self.jobs[min(self._look, len(self.jobs) - 1)], pods=self.pods, workloads=self.workloads)

    def unchanged_s(self, status) -> float:
        return self.unchanged

    def follow(self, pod: str) -> None:
        pass

    def take(self) -> list[Event]:
        return self.said.pop(0) if self.said else []

    def wait_for_end(self, timeout_s: float) -> None:
        pass

    def read_again(self, timeout_s: float) -> None:
        self.said.insert(0, self.unread)

    def close(self) -> None:
        pass


@pytest.fixture
def script(monkeypatch) -> Script:
    made = Script()
    monkeypatch.setattr(kuberay_watch, "Observer", lambda api, namespace, name: made)
    monkeypatch.setattr(kuberay_watch, "PodEvents", lambda api, namespace: made)
    for name in ("delete_run", "delete_cluster", "ask_to_stop"):
        monkeypatch.setattr(
            kuberay_watch, name, lambda api, *about, name=name: made.deleted.append(f"{name} {'/'.join(about)}")
        )
    return made


@pytest.fixture
def follow(script, capsys):
    def run(as_json: bool = False) -> tuple[int, str, str]:
        place = Place(None, "training", "first")
        code = KubeWatch(place, Progress(9), "/mnt/runs", as_json).follow()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_of_a_run_that_finished_everything_is_deleted(script, follow):
    script.jobs = [ray_job(), ray_job(running("Running")), ray_job(running("Complete"))]
    script.said = [[], [state("RUNNING"), step(8)], [step(9), state("FINISHED", exit_code=0)]]
    code, out, err = follow()
    assert (code, err) == (0, "") and script.deleted == ["delete_run training/first"]
    assert "first: FINISHED at step 9 of 9" in out and "/mnt/runs/first (in the pods)" in out


def test_a_run_that_was_stopped_keeps_its_rayjob_for_resume(script, follow):
    script.jobs, script.said = [ray_job(running("Complete"))], [[step(5), state("STOPPED", exit_code=0)]]
    code, out, _ = follow()
    assert code == 0 and script.deleted == ["delete_cluster training/first-abcde"]
    assert "resume first --backend kuberay --namespace training --profile PROFILE" in out


@pytest.mark.parametrize(("data", "code"), [({"why": "a rank died"}, 1), ({"why": "no", "exit_code": 3}, 3)])
def test_a_run_that_failed_keeps_its_pods_to_be_looked_at(script, follow, data, code):
    script.jobs, script.said = [ray_job(running("Failed"))], [[state("FAILED", **data)]]
    found, _, err = follow()
    assert found == code and script.deleted == [] and f"error: {data['why']}" in err


def test_a_users_mistake_is_one_from_far_away_too(script, follow):
    error = Event("error", 1, DRIVER, 0, "init", 1.0, data={"type": "DataError", "message": "no files", "user": True})
    script.jobs, script.said = [ray_job(running("Failed"))], [[error, state("FAILED", why="no files")]]
    code, _, err = follow()
    assert code == 2 and "error: no files" in err


def test_a_failure_that_is_tried_again_is_followed_on(script, follow):
    retrying = running("Retrying") | {"failed": 1}
    script.jobs = [
        ray_job(running("Failed") | {"failed": 1}, backoffLimit=1),
        ray_job(retrying, backoffLimit=1),
        ray_job(running("Complete") | {"failed": 1}, backoffLimit=1),
    ]
    script.said = [[state("FAILED", why="lost")], [], [state("PREPARING"), step(9), state("FINISHED", exit_code=0)]]
    code, out, _ = follow()
    assert code == 0 and "1 of 2 tries" in out


def test_what_kuberay_finds_wrong_and_a_job_that_ends_without_a_word(script, follow):
    script.jobs = [ray_job({"jobDeploymentStatus": "ValidationFailed", "message": "name is too long"})]
    code, _, err = follow()
    assert code == 2 and "is ValidationFailed: name is too long" in err
    script.jobs, script.tail = [ray_job(running("Failed") | {"reason": "AppFailed"})], "Traceback\nKeyError: 1"
    code, _, err = follow()
    assert (
        code == 1
        and err.endswith("(AppFailed). The end of its log:\nTraceback\nKeyError: 1\n")
        and script.deleted == []
    )


def test_a_log_that_was_followed_to_no_end_is_read_once_more_before_the_job_is_told_to_have_none(script, follow):
    script.jobs, script.said = [ray_job(running("Complete"))], [[step(8)]]
    script.unread = [step(9), state("FINISHED", exit_code=0)]
    code, out, err = follow()
    assert (code, err) == (0, "") and "first: FINISHED at step 9 of 9" in out


def test_a_run_that_kueue_has_deactivated_is_over_and_resume_is_named(script, follow):
    late = condition(
        "Evicted", "True", "DeactivatedDueToMaximumExecutionTimeExceeded", "exceeding the maximum execution time"
    )
    script.workloads = [workload(late, active=False)]
    script.jobs = [ray_job(running("Suspending")), ray_job(running("Suspended"))]
    script.said = [[state("RUNNING"), step(5)], [state("STOPPED", exit_code=0)]]
    code, out, err = follow()
    assert code == 3 and "exceeding the maximum execution time" in err
    assert "resume first --backend kuberay --namespace training --profile P" in err
    assert "at step 5 of 9" in out and script.deleted == []


def test_a_run_that_a_queue_only_suspends_is_followed_on(script, follow):
    script.workloads = [workload(condition("Evicted", "True", "Preempted"), active=True)]
    script.jobs = [*itertools.repeat(ray_job(running("Suspended")), 3), ray_job(running("Complete"))]
    script.said = [[], [], [], [state("FINISHED", exit_code=0)]]
    assert follow()[0] == 0


def test_a_rayjob_that_somebody_deletes(script, follow):
    script.jobs = [ray_job(running("Running")), None]
    code, _, err = follow()
    assert code == 1 and "was deleted before the run had ended" in err


def test_why_it_waits_is_said_once_per_reason(script, follow):
    full = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    script.pods = [pod(unschedulable=full, gpus=8)]
    script.jobs = [*itertools.repeat(ray_job(running()), 4), None]
    _, out, _ = follow(as_json=True)
    messages = [json.loads(line)["data"]["message"] for line in out.splitlines()]
    assert len(messages) == 1 and "asks for 8 nvidia.com/gpu" in messages[0]


def test_a_lost_pod_and_what_the_driver_says_of_its_node_are_one_verdict(script, follow):
    evicted = pod("w", node="node-1", phase="Failed")
    evicted["status"] |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
    data = {"class": "node", "action": "retry", "sentence": "node node-1 was lost. Trying again", "node": "node-1"}
    job = ray_job(running("Running") | {"jobStatus": "RUNNING"})
    script.jobs, script.pods = [*itertools.repeat(job, 3), None], [evicted]
    script.said = [[], [Event("verdict", 1, DRIVER, 5, "recovering", 100.0, data=data)]]
    _, out, _ = follow(as_json=True)
    incident, verdict = (json.loads(line) for line in out.splitlines())
    assert (incident["kind"], verdict["kind"]) == ("incident", "verdict")
    for event in (incident, verdict):
        assert event["data"]["pod"] == {"name": "w", "node": "node-1", "cause": "evicted"}
    assert verdict["data"]["class"] == "preemption" and "low on resource: memory" in verdict["data"]["sentence"]


def test_an_api_server_that_does_not_answer_is_said_once_and_a_right_that_is_missing_ends_it(script, follow):
    script.jobs = [*itertools.repeat(ray_job(running("Running")), 3), None]
    script.troubles = [ApiError(0, "", "no answer"), ApiError(403, "Forbidden", "for a moment"), None]
    _, _, err = follow()
    assert err.count("cannot be followed until the API server answers") == 1
    script.jobs, script.troubles = [None], [ApiError(403, "Forbidden", "may not list rayjobs for long")]
    with pytest.raises(UserError, match=r"may not list rayjobs for long\. The run goes on"):
        follow()


def test_an_interrupt_detaches_or_asks_for_a_stop(script, follow, monkeypatch):
    script.jobs, script.interrupts = [ray_job(running("Complete"))], 1
    code, _, err = follow()
    assert code == 130 and "stop it:" in err and "stop first --backend kuberay --namespace training" in err
    monkeypatch.setattr(kuberay_watch, "asked_to_stop", lambda: True)
    script.interrupts, script.said = 1, [[step(4), state("STOPPED", exit_code=0)]]
    code, _, err = follow()
    assert code == 0 and "saves a checkpoint" in err
    assert script.deleted == ["ask_to_stop training/first", "delete_cluster training/first-abcde"]
