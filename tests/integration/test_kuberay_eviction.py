"""Worker pods that Kubernetes takes away while a run trains: one at once, one by `kubectl drain`. Real API server, scheduler and eviction, real Ray and
ranks; kubelets and KubeRay are stand-ins (tests/support/kube). Two to three minutes each: every new pod imports torch for itself."""

from __future__ import annotations

import time

import pytest

from tests.support.cli import losses, positions
from tests.support.kube.cluster import Cluster
from tests.support.kube.control_plane import ControlPlane
from tests.support.kube.followed import Followed, wait_for
from tests.support.ranks import Plan, run_attempt
from zerofleet.benchmarks.hosts.harness import why_not
from zerofleet.k8s.paths import POD
from zerofleet.launch.audit import audit_run
from zerofleet.launch.config import parse_job
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]

ENDLESS = 10**6
PRESSURE = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 61Mi."


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    plane = ControlPlane(tmp_path_factory.mktemp("control") / "plane")
    yield plane
    plane.stop()


@pytest.fixture
def cluster(control_plane, tmp_path):
    with Cluster(control_plane, tmp_path, num_nodes=4) as made:
        yield made
    assert made.operator.errors == []


class Run:
    """A job over two pods, followed from the laptop, that has done a few steps."""

    def __init__(self, cluster: Cluster, corpus) -> None:
        self.cluster, self.folder = cluster, RunFolder(f"{cluster.mount}/runs", "first")
        recipe = cluster.recipe(corpus, train__steps=ENDLESS)
        profile = cluster.profile(limits={"disruption_budget": False, "drain_s": 60})
        place = ["--backend", "kuberay", "--profile", str(profile), "--json"]
        self.followed = Followed(cluster.start("submit", str(recipe), "run.name=first", *place))
        self.followed.wait_for(lambda line: line.startswith('{"kind":"step"') and step_of(line) >= 20, 600)

    def worker(self) -> tuple[str, str]:
        """Name and node of a worker's pod that the head does not share its node with."""
        pods = self.cluster.api.get(POD.path(self.cluster.namespace))["items"]
        placed = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in pods}
        head = next(node for name, node in placed.items() if name.endswith("-head"))
        return next((name, node) for name, node in placed.items() if "-workers-" in name and node not in (None, head))

    def go_on(self) -> None:
        """Returns when a second attempt has done some steps."""
        run = self.folder
        wait_for(lambda: len(run.attempts()) > 1, 300)
        start = run.attempts()[1].start_step
        wait_for(lambda: max(steps_of(run, 2), default=0) >= start + 10, 300)

    def stop(self) -> None:
        self.folder.request("stop")
        assert self.followed.end() == 0, self.followed.text

    def told(self, kind: str) -> list[dict]:
        return [event for event in self.followed.events() if event["kind"] == kind]

    def nodes(self, attempt: int) -> set[str]:
        """What the ranks of an attempt call the nodes that they are on."""
        return {
            event.data["node"]
            for event in self.folder.events()
            if event.kind == "phase" and event.phase == "init" and event.attempt == attempt
        }


def steps_of(run: RunFolder, attempt: int) -> list[int]:
    return [
        record["step"] for record in run.read("metrics") if record["kind"] == "step" and record["attempt"] == attempt
    ]


def step_of(line: str) -> int:
    return int(line.partition('"step":')[2].partition(",")[0])


def assert_bitwise(run: Run, tmp_path) -> None:
    """The losses are those of the same job on this machine, with no Ray, no pods and no fault; every sample was fed once."""
    attempts = run.folder.attempts()
    last = max(steps_of(run.folder, attempts[-1].attempt))
    done = {step: loss for step, loss in losses(run.folder).items() if step <= last}  # beyond, only what was lost
    assert sorted(done) == list(range(1, last + 1))
    assert positions(run.folder) == list(range(last * 8))
    audit = audit_run(run.folder, run.cluster.mount / "cache")
    assert audit.audit.is_exact
    job = parse_job(run.folder.job_yaml(), "job").train_config()
    place = job.run.model_copy(update={"name": "unbroken", "storage": str(tmp_path / "unbroken")})
    unbroken = run_attempt(
        job.model_copy(update={"run": place}), audit.cache, 2, Plan(stop_after=last), timeout_s=300
    ).losses()
    assert done == {step: unbroken[step] for step in done}, "bitwise"


def test_a_pod_that_is_evicted_at_once_is_named_replaced_and_costs_no_committed_step(cluster, tiny_corpus, tmp_path):
    run = Run(cluster, tiny_corpus)
    pod, node = run.worker()
    began = time.monotonic()
    cluster.kubelet.evict(pod, PRESSURE)
    run.go_on()
    recovered_s = time.monotonic() - began
    run.stop()
    first, second = run.folder.attempts()
    lost = max(steps_of(run.folder, first.attempt))
    print(
        f"evicted at once: ten steps on after {recovered_s:.1f} s; step {lost} was reached, step {second.start_step} kept"
    )

    (told,) = run.told("verdict")
    assert told["data"]["node"] == node and told["data"]["class"] == "preemption"
    assert told["data"]["pod"] == {"name": pod, "node": node, "cause": "evicted"}
    assert f"pod {pod} on node {node} was evicted by its kubelet: {PRESSURE}" in told["data"]["sentence"]
    (own,) = [event for event in run.folder.events() if event.kind == "verdict"]
    assert own.data["class"] == "node" and f"node {node} (host {pod})" in own.data["sentence"]
    assert 0 < second.start_step <= lost, "from the other pod's memory: nothing is in storage"
    assert node in run.nodes(first.attempt) and all(name.startswith("node-") for name in run.nodes(second.attempt))
    assert_bitwise(run, tmp_path)


def test_a_drain_with_notice_loses_no_step(cluster, tiny_corpus, tmp_path):
    run = Run(cluster, tiny_corpus)
    pod, node = run.worker()
    began = time.monotonic()
    cluster.drain(node)
    drained_s = time.monotonic() - began
    run.go_on()
    recovered_s = time.monotonic() - began
    run.stop()
    first, second = run.folder.attempts()
    print(f"drained: the node was empty after {drained_s:.1f} s, ten steps on after {recovered_s:.1f} s")

    last = max(steps_of(run.folder, first.attempt))
    assert second.start_step == last, "nothing is repeated"
    assert not [event for event in run.folder.events() if event.kind == "verdict"], "a notice is no failure"
    (said,) = [e.data["why"] for e in run.folder.events() if e.kind == "state" and e.data["to"] == "RESIZING"]
    assert said.startswith(f"node {node} (in ") and "will be taken away" in said
    (incident,) = [event["data"] for event in run.told("incident") if "pod" in event["data"]]
    assert incident["pod"] == {"name": pod, "node": node, "cause": "drained"}
    assert node in run.nodes(first.attempt) and node not in run.nodes(second.attempt)
    assert drained_s < 60, "within the grace period"
    assert_bitwise(run, tmp_path)
