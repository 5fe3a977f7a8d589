"""Every verb on a run whose driver is a job of a Ray cluster: a stand-in for the job API, and drivers without Ray."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.job_api import TOKEN, JobApi
from zerofleet.cluster import probe
from zerofleet.launch.backends import jobs, ray_driver
from zerofleet.launch.drivers import driver_log, driver_records, job_records
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[2]


class Cluster:
    """A job API whose jobs are run: the probe by what `nodes` says, drivers by scripts of fake_driver.py."""

    def __init__(self, api: JobApi) -> None:
        self.api, self.script = api, "finish"
        self.sees_storage = True
        self.node = {
            "node_id": "n0",
            "name": "node-0",
            **dict.fromkeys(("cpus", "free_cpus"), 4.0),
            **dict.fromkeys(("gpus", "free_gpus"), 0.0),
            "python": "3.11.9",
            "zerofleet": probe.code_version(),
            "digest": probe.code_digest(),
            "unmet": [],
            "memory_bytes": 2**35,
            "shm_bytes": 2**34,
            "gpu_memory_bytes": 0,
        }
        self.environment: dict[str, str] = {}
        api.answer = self._run

    def _run(self, job: dict) -> None:
        words = shlex.split(job["entrypoint"])
        if probe.MODULE in words:
            answer = {"ray": "2.60.0", "nodes": [self.node | {"sees_storage": self.sees_storage}]}
            job |= {"status": "SUCCEEDED", "log": f"setting up\n{probe.ANSWER}{json.dumps(answer)}\n"}
        elif self.script:
            threading.Thread(target=self._drive, args=(job, words), daemon=True).start()

    def _drive(self, job: dict, words: list[str]) -> None:
        job["status"] = "RUNNING"
        storage, run = words[words.index("zerofleet.launch.job_driver") + 1 :][:2]
        overrides = [part for at, word in enumerate(words) if word == "--override" for part in words[at : at + 2]]
        done = subprocess.run(
            [sys.executable, "-m", "tests.launch.fake_driver", storage, run, *overrides],
            env={**os.environ, **self.environment, "FAKE_DRIVER": self.script},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        failed = f"Job entrypoint command failed with exit code {done.returncode}, last available logs\n"
        status = "FAILED" if done.returncode else "SUCCEEDED"
        job |= {
            "status": status,
            "driver_exit_code": done.returncode,
            "log": done.stderr,
            "message": failed if done.returncode else "",
        }


@pytest.fixture
def cluster(monkeypatch, recipe, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jobs, "_unreachable", {})
    with JobApi() as api:
        yield Cluster(api)


@pytest.fixture
def submit(cluster, zerofleet):
    """`submit("--detach")`: run `a`."""
    return lambda *more: zerofleet(
        "submit", "recipe.yaml", "run.name=a", "--backend", "ray", "--address", cluster.api.address, *more
    )


def folder(name: str = "a") -> RunFolder:
    return RunFolder(os.environ["ZEROFLEET_STORAGE"], name)


def until(condition) -> None:
    ends_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def test_submit_follows_the_job_to_its_end(cluster, submit):
    code, out, err = submit()
    assert (code, err) == (0, "")
    assert (
        "\nplan: " in out
        and "code: zerofleet" in out
        and "as the cluster has it" in out
        and "a: FINISHED at step 3 of 3" in out
    )
    (record,) = job_records(folder())
    assert (record.number, record.backend, record.address) == (1, "ray", cluster.api.address)
    assert record.job.startswith("a-0001-") and list(cluster.api.jobs) == [record.job], "the probe is removed"
    entrypoint = cluster.api.jobs[record.job]["entrypoint"]
    assert (
        entrypoint
        == f"exec python -P -u -m zerofleet.launch.job_driver {folder().storage.path().rpartition('/')[0]} a --number 1 --after 0"
    )
    environment = cluster.api.jobs[record.job]["runtime_env"]
    assert environment == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "360"}}
    assert not list(folder().storage.local_path().parent.glob(".zerofleet-probe*"))


def test_other_code_on_the_cluster_is_replaced_by_this(cluster, submit):
    cluster.node |= {"zerofleet": "0.0.9", "digest": "0123456789abcdef"}
    code, out, _ = submit()
    assert code == 0 and "is sent from here, since the cluster has zerofleet 0.0.9 (code 01234567)" in out
    (job,) = cluster.api.jobs.values()
    (uri,) = job["runtime_env"]["py_modules"]
    assert len(cluster.api.packages[uri.removeprefix("gcs://")]) > 100_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"python": "3.9.2"}, "Python 3.9.2"),
        ({"unmet": ["deepspeed is missing"]}, "deepspeed is missing"),
        ({"sees_storage": False}, "is not seen by node node-0"),
    ],
)
def test_a_cluster_that_does_not_fit_is_refused_before_anything_is_created(cluster, submit, change, said):
    cluster.sees_storage = change.pop("sees_storage", True)
    cluster.node |= change
    code, _, err = submit()
    assert code == 2 and said in err and "Traceback" not in err
    assert cluster.api.jobs == {} and not folder().storage.exists("job.yaml")


def test_another_ray_is_refused_before_a_job_is_run(cluster, submit):
    cluster.api.ray_version = "2.48.0"
    code, _, err = submit()
    assert (
        code == 2
        and "runs Ray 2.48.0" in err
        and [path for method, path in cluster.api.requests if method != "GET"] == []
    )


def test_what_the_job_may_not_say(cluster, submit, zerofleet):
    code, _, err = submit("cluster.address=10.0.0.1:6379")
    assert code == 2 and "remove cluster.address" in err
    code, _, err = zerofleet("submit", "recipe.yaml", "--backend", "ray")
    assert code == 2 and "needs --address" in err
    code, _, err = zerofleet("submit", "recipe.yaml", "--backend", "local", "--address", cluster.api.address)
    assert code == 2 and "goes with --backend ray" in err


def test_a_job_that_the_cluster_refuses_leaves_no_run_behind(cluster, submit):
    accept = cluster.api.reply

    def refuse(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/api/jobs/" and b"job_driver" in body:
            return 500, b"RuntimeError: no agent\n"
        return accept(method, path, body)

    cluster.api.reply = refuse
    code, _, err = submit()
    assert code == 1 and "HTTP 500: RuntimeError: no agent" in err and not folder().storage.exists("job.yaml")


def test_status_list_logs_and_stop_of_a_detached_run(cluster, submit, zerofleet):
    cluster.script = "stoppable"
    code, _, err = submit("--detach")
    (record,) = job_records(folder())
    assert code == 0 and f"goes on (job {record.job} on {cluster.api.address})" in err
    until(lambda: "RUNNING" in zerofleet("list")[1])
    _, out, _ = zerofleet("status", "a")
    assert f"alive: job {record.job} on {cluster.api.address} is RUNNING" in out
    facts = json.loads(zerofleet("status", "a", "--json")[1])
    assert (facts["job"], facts["address"], facts["driver_alive"]) == (record.job, cluster.api.address, True)
    code, _, err = zerofleet("resume", "a")
    assert code == 2 and "is running" in err
    code, out, _ = zerofleet("stop", "a")
    assert code == 0 and "a is STOPPED at step" in out


def test_the_log_is_the_clusters_until_the_run_folder_has_it(cluster, submit, zerofleet):
    cluster.script = ""
    assert run_detached(submit, cluster) == 0
    (record,) = job_records(folder())
    cluster.api.jobs[record.job]["log"] = "unpacking the code\n"
    assert zerofleet("logs", "a")[1] == "unpacking the code\n"
    folder().storage.create(driver_log(1), b"of the run folder\n")
    assert zerofleet("logs", "a")[1] == "of the run folder\n"


def run_detached(submit, cluster) -> int:
    """`--detach` waits for the driver's claim; here it comes from elsewhere, as on a host of the cluster."""

    def claim(job: dict) -> None:
        cluster._run(job)
        if probe.MODULE not in job["entrypoint"]:
            job["status"] = "RUNNING"
            cluster.claim(1)

    cluster.claim = lambda number: folder().storage.create(
        f"drivers/{number:04d}.json",
        json.dumps({"host": "head", "pid": 7, "pid_created": 1.0, "started_at": time.time(), "overrides": []}).encode(),
    )
    cluster.api.answer = claim
    return submit("--detach")[0]


def test_the_loss_of_the_head_is_said_and_the_run_goes_on(cluster, submit, zerofleet, monkeypatch):
    cluster.script = ""
    assert run_detached(submit, cluster) == 0
    cluster.api.close()
    _, out, _ = zerofleet("status", "a")
    assert "PENDING" in out and "cannot be asked (the cluster does not answer" in out, (
        "it may be the network: its events decide"
    )
    monkeypatch.setattr("zerofleet.trainer.driver_records.OTHER_HOST_SILENCE_S", 0.0)
    _, out, _ = zerofleet("status", "a")
    assert "DEAD: its driver is silent, and the cluster cannot be asked" in out and "resume a" in out
    cluster.api.jobs.clear()
    cluster.api.start()
    monkeypatch.setattr(jobs, "_unreachable", {})
    _, out, _ = zerofleet("status", "a")
    assert "DEAD: its driver was lost with the head of its cluster, which was started anew since" in out
    cluster.api.answer, cluster.script = cluster._run, "finish"
    code, out, _ = zerofleet("resume", "a")
    assert code == 0 and "FINISHED" in out
    assert [record.number for record in job_records(folder())] == [1, 2]
    assert "--number 2 --after 1" in cluster.api.jobs[job_records(folder())[1].job]["entrypoint"]


def test_a_run_that_waits_in_the_cluster_is_ended_there(cluster, submit, zerofleet):
    cluster.script = ""
    watcher = threading.Thread(target=submit, args=("--detach",), daemon=True)
    watcher.start()
    until(lambda: folder().storage.exists("job.yaml") and job_records(folder()) and cluster.api.jobs)
    (record,) = job_records(folder())
    until(lambda: record.job in cluster.api.jobs)
    assert zerofleet("status", "a")[1].count("PENDING") == 2
    code, out, _ = zerofleet("stop", "a")
    assert code == 0 and f"its job {record.job} was ended" in out
    assert cluster.api.jobs[record.job]["status"] == "STOPPED"
    watcher.join(20)
    assert driver_records(folder()) == []


def test_a_driver_that_dies_is_told_with_the_end_of_its_log(cluster, submit):
    cluster.script = "die"
    code, _, err = submit()
    assert code == 1 and "is FAILED: Job entrypoint command failed with exit code -9, last available logs" in err
    assert "the last words of the driver" in err and "resume a" in err


def test_a_cluster_that_is_lost_while_it_is_followed(cluster, submit, monkeypatch):
    monkeypatch.setattr(ray_driver, "OTHER_HOST_SILENCE_S", 1.0)
    monkeypatch.setattr(ray_driver, "_ASK_INTERVAL_S", 0.1)

    def lose(job: dict) -> None:
        cluster._run(job)
        if probe.MODULE not in job["entrypoint"]:
            threading.Timer(0.5, cluster.api.close).start()

    cluster.script, cluster.api.answer = "", lose
    code, _, err = submit()
    assert code == 1 and "was lost with its cluster (no Ray cluster answers at" in err


def test_resume_may_go_elsewhere(cluster, submit, zerofleet, drive):
    cluster.script = "die"
    submit()
    drive("finish")
    code, out, _ = zerofleet("resume", "a", "--backend", "local")
    assert code == 0 and "FINISHED" in out and len(job_records(folder())) == 1
    assert [record.host for record in driver_records(folder())] == [socket.gethostname()] * 2


def test_doctor_looks_at_a_cluster(cluster, zerofleet):
    code, out, _ = zerofleet("doctor", "--address", cluster.api.address, "--recipe", "recipe.yaml")
    assert code == 0, out
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert list(lines) == ["cluster", "token", "ray", "nodes", "python", "packages", "storage", "code", "resources"]
    assert "accepted, from RAY_AUTH_TOKEN" in lines["token"] and "are free" in lines["resources"]
    cluster.node |= {"cpus": 0.1, "unmet": ["torch is missing"]}
    code, out, _ = zerofleet("doctor", "--address", cluster.api.address, "--recipe", "recipe.yaml")
    assert code == 1 and "fail  packages" in out and "can never hold it" in out and "cpus_per_rank" in out


def test_doctor_says_what_keeps_it_from_a_cluster(cluster, zerofleet, monkeypatch):
    cluster.api.token = ""
    _, out, _ = zerofleet("doctor", "--address", cluster.api.address)
    assert "warn  token" in out and "whoever reaches this address can run code there" in out
    cluster.api.token = "another"
    code, out, _ = zerofleet("doctor", "--address", cluster.api.address)
    assert code == 1 and "fail  token" in out and "refuses the token from RAY_AUTH_TOKEN" in out
    cluster.api.close()
    code, out, _ = zerofleet("doctor", "--address", cluster.api.address)
    assert code == 1 and "fail  cluster" in out and "is its head up" in out
    code, _, err = zerofleet("doctor", "--recipe", "recipe.yaml")
    assert code == 2 and "goes with --address" in err


def test_the_token_is_nowhere(cluster, submit, zerofleet, tmp_path, monkeypatch):
    """Planted in the environment, it is looked for in all that is said, sent as a job, and kept."""
    said = ["".join(map(str, submit()))]
    cluster.node["python"] = "3.9.0"
    said += [
        "".join(map(str, zerofleet(*words)))
        for words in (["status", "a"], ["logs", "a"], ["resume", "a", "train.steps=9"], ["list"])
    ]
    said.append("".join(map(str, zerofleet("doctor", "--address", cluster.api.address))))
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{TOKEN}x")
    said.append("".join(map(str, zerofleet("doctor", "--address", cluster.api.address))))
    said.append(
        "".join(map(str, zerofleet("submit", "recipe.yaml", "--backend", "ray", "--address", cluster.api.address)))
    )
    assert "refuses the token" in said[-1] and "3.9.0" in said[3]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    sent = [
        json.dumps(cluster.api.jobs).encode(),
        *cluster.api.packages.values(),
        *(path.encode() for _, path in cluster.api.requests),
    ]
    assert len(kept) > 5 and not [
        text for text in [*kept, *sent, *(text.encode() for text in said)] if TOKEN.encode() in text
    ]
