"""A job on Kubernetes, from a laptop to the last object that is deleted: a real API server, real Ray and real ranks in pods that are
namespaces; KubeRay and the kubelets are stand-ins (tests/support/kube). Two minutes each: two pods import torch, each for itself."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.cli import losses, positions
from tests.support.kube.cluster import Cluster
from tests.support.kube.control_plane import ControlPlane
from tests.support.kube.followed import Followed, is_step, wait_for
from tests.support.kube.proxy import Fault
from zerofleet.benchmarks.hosts.harness import why_not
from zerofleet.launch.audit import audit_run
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(600)]

ENDLESS = 10**6


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    plane = ControlPlane(tmp_path_factory.mktemp("control") / "plane")
    yield plane
    plane.stop()


@pytest.fixture
def cluster(control_plane, tmp_path):
    with Cluster(control_plane, tmp_path) as made:
        yield made
    assert made.operator.errors == []


def submit(cluster: Cluster, recipe, *arguments: str) -> Followed:
    place = ["--backend", "kuberay", "--profile", str(cluster.profile()), "--json"]
    return Followed(cluster.start("submit", str(recipe), "run.name=first", *place, *arguments))


def test_a_job_trains_to_its_end_over_two_pods_and_leaves_only_its_folder(cluster, tiny_corpus):
    recipe = cluster.recipe(tiny_corpus, train__steps=300)
    refused = (422, {"reason": "Invalid", "message": "spec.rayVersion: must be so"})
    cluster.proxy.faults.append(
        Fault(lambda request: request.method == "POST" and request.path.endswith("rayjobs"), 1, refused)
    )
    mistaken = submit(cluster, recipe)
    assert mistaken.end(60) == 2 and "refuses the RayJob first: spec.rayVersion: must be so" in mistaken.text

    followed = submit(cluster, recipe)  # takes over what the refused one has left
    followed.wait_for(is_step)
    on = ("--backend", "kuberay")
    status = cluster("status", "first", *on, "--json")
    assert json.loads(status.stdout)["state"] == "RUNNING", status.stdout + status.stderr
    listed = cluster("list", *on)
    assert "first" in listed.stdout and "RUNNING" in listed.stdout
    again = submit(cluster, recipe)
    assert again.end(60) == 2 and "exists already in namespace" in again.text

    assert followed.end() == 0, followed.text
    run = RunFolder(f"{cluster.mount}/runs", "first")
    assert sorted(losses(run)) == list(range(1, 301))
    assert positions(run) == list(range(300 * 8))
    assert audit_run(run, cluster.mount / "cache").audit.is_exact
    workers = [pod for pod in cluster.kubelet.running.values() if "-workers-" in pod.name]
    assert len(workers) == 2 and [record.world_size for record in run.attempts()] == [2]
    assert run.storage.exists("report.html") and b'"kind":"state"' in run.storage.read("logs/driver-0001.log")
    steps = [event["step"] for event in followed.events() if event["kind"] == "step"]
    assert steps == sorted(set(steps)) and steps[-1] == 300 and len(steps) > 1
    assert followed.events()[-1]["state"] == "FINISHED" and followed.events()[-1]["step"] == 300
    assert [status for _, status in cluster.operator.walked] == ["Initializing", "Running", "Complete"]
    assert cluster.objects() == {}
    assert cluster("status", "first", *on).returncode == 4


def test_a_run_is_stopped_with_a_checkpoint_and_goes_on(cluster, tiny_corpus):
    recipe, on = cluster.recipe(tiny_corpus, train__steps=ENDLESS), ("--backend", "kuberay")
    followed = submit(cluster, recipe)
    followed.wait_for(is_step)
    followed.process.send_signal(signal.SIGINT)
    assert followed.end(30) == 130 and "detached: run first goes on" in followed.text
    run = RunFolder(f"{cluster.mount}/runs", "first")
    before = max(losses(run))
    wait_for(lambda: max(losses(run)) > before)

    log = Followed(cluster.start("logs", "first", "-f", *on))
    log.wait_for(lambda line: "RUNNING" in line)
    direct = ("--context", "alice", "--namespace", cluster.namespace)  # the proxy carries no WebSocket
    rank = cluster("logs", "first", "--rank", "1", *on, *direct, kubeconfig=cluster.control_plane.kubeconfig)
    assert rank.returncode == 0, rank.stderr
    assert run.storage.read("logs/attempt-0001/rank-00001.log").decode().startswith(rank.stdout)

    stopped = cluster("stop", "first", *on, timeout_s=120)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "run first is STOPPED at step" in stopped.stdout and "resume first --backend kuberay" in stopped.stdout
    (saved,) = run.checkpoints()
    assert saved.step == max(losses(run))
    assert log.end(30) == 0 and "STOPPED" in log.text
    wait_for(lambda: "pods" not in {kind for kind in cluster.objects() if kind == "rayclusters.ray.io"})
    assert json.loads(cluster("status", "first", *on, "--json").stdout)["state"] == "STOPPED"

    steps = saved.step + 20
    profile = ("--profile", str(cluster.profile()))
    frozen = cluster("resume", "first", "run.seed=3", *on, *profile)
    assert frozen.returncode == 2 and "cannot be resumed with this" in frozen.stderr
    resumed = cluster("resume", "first", f"train.steps={steps}", *on, *profile, timeout_s=250)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"FINISHED at step {steps} of {steps}" in resumed.stdout
    assert sorted(losses(run)) == list(range(1, steps + 1)) and positions(run) == list(range(steps * 8))
    assert [record.start_step for record in run.attempts()] == [0, saved.step]
    assert cluster.objects() == {}


def test_whatever_happens_between_client_and_api_server_the_run_goes_on_and_is_followed(cluster, tiny_corpus):
    recipe, faults = cluster.recipe(tiny_corpus, train__steps=ENDLESS), cluster.proxy.faults
    unavailable = (500, {"reason": "InternalError", "message": "etcdserver: leader changed"})
    busy = (429, {"reason": "TooManyRequests", "message": "slow down"})
    gone = (410, {"reason": "Expired", "message": "too old resource version"})
    planted = {
        "429 at a create": Fault(lambda r: r.method == "POST" and r.path.endswith("configmaps"), 1, busy),
        "409, since the answer to the own create was lost": Fault(
            lambda r: r.method == "POST" and r.path.endswith("rayjobs"), 1, after=True
        ),
        "500 at a list": Fault(lambda r: "/pods?labelSelector" in r.path and not r.is_watch, 2, unavailable),
        "410 at a watch": Fault(lambda r: r.is_watch and "/rayjobs" in r.path, 2, gone),
        "no answer to a watch": Fault(lambda r: r.is_watch and "/pods" in r.path, 2),
        "500 at the log": Fault(lambda r: "/log?" in r.path, 2, unavailable),
    }
    faults += planted.values()
    followed = submit(cluster, recipe)
    followed.wait_for(is_step)
    assert all(fault.met for fault in planted.values()), {what: fault.met for what, fault in planted.items()}

    def goes_on() -> None:
        count = len([line for line in followed.lines if is_step(line)])
        wait_for(lambda: len([line for line in followed.lines if is_step(line)]) >= count + 3)

    assert cluster.proxy.drop_streams() >= 2
    goes_on()
    expired = cluster.log_in("alice")
    faults.append(refuses := Fault(lambda r: r.token == f"Bearer {expired}", 10**6, (401, {"reason": "Unauthorized"})))
    cluster.log_in("admin")
    cluster.proxy.drop_streams()
    goes_on()
    assert refuses.met
    cluster.control_plane.restart_api_server(down_s=2.0)
    goes_on()

    run = RunFolder(f"{cluster.mount}/runs", "first")
    run.request("stop")
    assert followed.end() == 0, followed.text
    steps = [event["step"] for event in followed.events() if event["kind"] == "step"]
    assert steps == sorted(set(steps))
    assert followed.events()[-1]["state"] == "STOPPED"
    assert len(run.attempts()) == 1 and sorted(losses(run)) == list(range(1, max(losses(run)) + 1))
