"""The driver's verdict about a node and the API server's view of its pod become one, whichever comes first."""

from __future__ import annotations

import pytest

from tests.k8s.objects import NOW, observed, pod, ray_job, running, stamp
from zerofleet.launch.backends.pod_verdicts import PATIENCE_S, REMEMBERED_S, PodVerdicts
from zerofleet.trainer.events import DRIVER, Event

EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}


def worker(name: str = "a", node: str = "node-1", **status) -> dict:
    found = pod(name, node=node, phase="Running")
    found["status"] |= status
    return found


def see(verdicts: PodVerdicts, *pods: dict, deployment: str = "Running") -> list[Event]:
    return verdicts.see(observed(ray_job(running(deployment)), pods=list(pods)))


def verdict(node: str | None = "node-1", kind: str = "node") -> Event:
    data = {"class": kind, "action": "retry", "sentence": "it was lost. Trying again", "rank": None, "node": node}
    return Event("verdict", 1, DRIVER, 5, "recovering", 100.0, data=data)


def step(number: int) -> Event:
    return Event("step", 1, 0, number, "step", 100.0, data={})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verdicts(clock) -> PodVerdicts:
    return PodVerdicts(clock)


def test_a_verdict_after_the_pods_end_has_its_cause(verdicts):
    assert see(verdicts, worker(), worker("b", "node-2")) == []
    (incident,) = see(verdicts, worker(**EVICTED), worker("b", "node-2"))
    assert incident.kind == "incident" and "low on resource: memory" in incident.data["message"]
    assert incident.data["pod"] == {"name": "a", "node": "node-1", "cause": "evicted"}
    told = verdicts.join([step(5), verdict(), step(6)])
    assert [event.kind for event in told] == ["step", "verdict", "step"]
    data = told[1].data
    assert data["class"] == "preemption" and data["action"] == "retry" and data["pod"]["cause"] == "evicted"
    assert data["sentence"].startswith("pod a on node node-1 was evicted by its kubelet")
    assert data["sentence"].endswith("Seen by the run: it was lost. Trying again")
    assert see(verdicts, worker(**EVICTED), worker("b", "node-2")) == [], "told once"


def test_a_verdict_before_the_pods_end_waits_for_it_and_nothing_overtakes_it(verdicts, clock):
    see(verdicts, worker())
    assert verdicts.join([step(5), verdict(), step(6)]) == [step(5)]
    clock.now += PATIENCE_S - 0.1
    assert verdicts.join([step(7)]) == []
    see(verdicts, worker(**EVICTED))
    told = verdicts.join([])
    assert [(event.kind, event.step) for event in told] == [("verdict", 5), ("step", 6), ("step", 7)]
    assert told[0].data["pod"]["cause"] == "evicted"


def test_a_verdict_that_kubernetes_knows_nothing_of_is_told_as_it_is(verdicts, clock):
    see(verdicts, worker())
    assert verdicts.join([verdict(), step(6)]) == []
    clock.now += PATIENCE_S
    assert verdicts.join([]) == [verdict(), step(6)]
    assert verdicts.join([verdict()], is_over=True) == [verdict()]


@pytest.mark.parametrize("event", [verdict(None), verdict(kind="user bug"), verdict(kind="data")])
def test_other_verdicts_do_not_wait(verdicts, event):
    assert verdicts.join([event]) == [event]


def test_one_loss_explains_one_verdict(verdicts):
    see(verdicts, worker(**EVICTED))
    first, second = verdicts.join([verdict(), verdict()], is_over=True)
    assert "pod" in first.data and "pod" not in second.data
    see(verdicts, worker("c", "node-3", **EVICTED))
    (other,) = verdicts.join([verdict("node-1")], is_over=True)
    assert "pod" not in other.data, "another node's"


def test_an_oom_kill_is_one_for_each_life_of_the_container(verdicts):
    oom = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}

    def restarted(count: int) -> dict:
        return worker(containerStatuses=[{"name": "ray-worker", "restartCount": count, "lastState": oom}])

    assert len(see(verdicts, restarted(1))) == 1 and see(verdicts, restarted(1)) == []
    assert verdicts.join([verdict()])[0].data["class"] == "host OOM"
    assert len(see(verdicts, restarted(2))) == 1


def test_a_pod_that_is_gone_at_once_is_noticed(verdicts):
    see(verdicts, worker())
    (incident,) = see(verdicts, worker("b", "node-2"))
    assert incident.data["pod"] == {"name": "a", "node": "node-1", "cause": "deleted"}
    assert see(verdicts, worker("b", "node-2")) == []


def test_a_drained_pod_is_told_of_once_though_it_goes_in_the_end(verdicts):
    see(verdicts, worker())
    leaving = worker()
    leaving["metadata"]["deletionTimestamp"] = stamp(NOW + 60)
    assert len(see(verdicts, leaving)) == 1
    assert see(verdicts) == []


@pytest.mark.parametrize("deployment", ["Initializing", "Complete", "Failed", "Retrying"])
def test_pods_that_go_with_their_cluster_are_no_loss(verdicts, deployment):
    see(verdicts, worker(), worker("b", "node-2"))
    assert see(verdicts, worker(**EVICTED), deployment=deployment) == []
    assert see(verdicts) == []


def test_head_and_submitter_are_the_jobs_own_matter(verdicts):
    see(verdicts, pod("h", "head", "Running", node="node-1"), pod("s", "submitter", "Running", node="node-1"))
    assert see(verdicts) == []


@pytest.mark.parametrize("kind", ["network", "hang"])
def test_a_rank_that_waited_for_a_lost_one_is_not_to_blame(verdicts, kind):
    see(verdicts, worker("b", "node-2", **EVICTED))
    (told,) = verdicts.join([verdict("node-1", kind)])
    assert told.data["class"] == "preemption" and told.data["pod"]["node"] == "node-2"


def test_a_loss_explains_nothing_that_comes_long_after(verdicts, clock):
    leaving = worker()
    leaving["metadata"]["deletionTimestamp"] = stamp(NOW + 600)
    see(verdicts, leaving)
    clock.now += 2 * REMEMBERED_S
    see(verdicts, leaving, worker("b", "node-2"))
    clock.now += 2 * REMEMBERED_S
    see(verdicts, worker("b", "node-2"))  # from here on it is gone
    clock.now += REMEMBERED_S + 1
    see(verdicts, worker("b", "node-2"))
    (told,) = verdicts.join([verdict()], is_over=True)
    assert "pod" not in told.data


def test_a_pod_that_takes_its_whole_grace_period_explains_what_comes_of_it(verdicts, clock):
    leaving = worker()
    leaving["metadata"]["deletionTimestamp"] = stamp(NOW + 600)
    see(verdicts, leaving)
    clock.now += 5 * REMEMBERED_S
    see(verdicts, leaving)
    (told,) = verdicts.join([verdict(kind="preemption")])
    assert told.data["pod"]["cause"] == "deleted"
