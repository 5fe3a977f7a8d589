"""Runs whose storage is S3 behind a bad network: the losses of a run on a local disk, whatever the network does."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time

import psutil
import pytest

from tests.support.cli import Cli, losses, positions, wait_for_end
from zerofleet.benchmarks.s3.proxy import BLACK_HOLE, NONE, REFUSE, BadProxy, Fault
from zerofleet.benchmarks.s3.server import BUCKET, S3Server, environment
from zerofleet.cluster.chaos.gate import Gate
from zerofleet.launch.drivers import driver_records
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STEPS = 100
LONG = [f"train.steps={STEPS}", "checkpoint.interval_steps=5", "train.global_batch_size=32"]
OUTAGE_S = 6.0
"""Longer than what `trainer/s3.py` bridges by itself: three tries, which are refused at once, and their pauses."""
QUICK_TO_NOTICE = json.dumps({"config_kwargs": {"connect_timeout": 1, "read_timeout": 3}})


class S3Cli(Cli):
    """The command line, its storage behind `proxy`; the tests themselves look past the proxy."""

    def __init__(self, folder, corpus, server, proxy) -> None:
        super().__init__(folder, corpus)
        self.url, self.proxy = f"s3://{BUCKET}/{folder.name}", proxy
        self.settings = {**environment(proxy.port), "ZEROFLEET_STORAGE": self.url, "FSSPEC_S3": QUICK_TO_NOTICE}

    def __call__(self, *arguments, **environment):
        return super().__call__(*arguments, **{**self.settings, **environment})

    def submit(self, name, *arguments, **environment):
        return super().submit(name, f"run.storage={self.url}", *arguments, **environment)

    def run(self, name):
        return RunFolder(self.url, name)


@pytest.fixture(scope="module")
def proxy():
    pytest.importorskip("moto", reason="the S3 server of the tests is moto, of the dev extra")
    with S3Server() as server, BadProxy(server.port) as running:
        running.server = server
        yield running


@pytest.fixture
def cli(tmp_path, tiny_corpus, tiny_cache, proxy, monkeypatch):
    proxy.fault = NONE
    proxy.injected.clear()
    for name, value in environment(proxy.server.port).items():
        monkeypatch.setenv(name, value)
    yield S3Cli(tmp_path, tiny_corpus, proxy.server, proxy)
    proxy.fault = NONE


@pytest.fixture(scope="module")
def local_losses(tmp_path_factory, tiny_corpus, tiny_cache):
    cli = Cli(tmp_path_factory.mktemp("local"), tiny_corpus)
    done = cli.submit("local", *LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(cli.run("local"))


def wait_for_checkpoint(run, timeout_s=90.0):
    deadline = time.monotonic() + timeout_s
    while not any(event.kind == "checkpoint" for event in run.events()):  # told: its driver knows of it too
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)


def incidents(run):
    return [e.data["message"] for e in run.events() if e.kind == "incident" and e.data.get("class") == "storage"]


def test_a_run_over_a_slow_network_that_cuts_is_the_run_on_a_local_disk(cli, local_losses):
    cli.proxy.fault = Fault("delay", delay_s=0.01)
    assert cli.submit("plain", *LONG, "--detach").returncode == 0
    run = cli.run("plain")
    wait_for_checkpoint(run)
    cli.proxy.fault = Fault("cut", after_bytes=2000, times=3)
    assert wait_for_end(cli, "plain") == "FINISHED"
    assert cli.proxy.injected["delay"] and cli.proxy.injected["cut"] == 3
    assert losses(run) == local_losses, "bitwise"
    assert positions(run) == list(range(32 * STEPS)) and len(run.attempts()) == 1
    cli.proxy.fault = Fault("delay", delay_s=0.01)
    longer = cli("resume", "plain", f"train.steps={STEPS + 2}")  # the end of a run has given its memory back
    assert longer.returncode == 0, longer.stdout + longer.stderr
    assert [(a.start_step, a.from_memory) for a in run.attempts()] == [(0, False), (STEPS, False)]
    assert positions(run) == list(range(32 * (STEPS + 2)))


@contextlib.contextmanager
def outage_at(cli, step, outage=REFUSE):
    """Storage refuses (or swallows) everything from the moment at which rank 0 is at that step. Yields what to give to `submit`, and an event: it has begun."""
    begun = threading.Event()

    def strike(arrival):
        cli.proxy.fault = outage
        begun.set()
        return True

    with Gate(strike) as gate:
        yield {"kind": "storage_outage", "rank": 0, "step": step, "for_s": OUTAGE_S, "gate": gate.path}, begun


@pytest.mark.further
def test_training_goes_on_through_an_outage_and_nothing_is_lost(cli, local_losses):
    with outage_at(cli, 20) as (fault, begun):
        assert cli.submit("outage", *LONG, "--detach", ZEROFLEET_FAULTS=json.dumps([fault])).returncode == 0
        assert begun.wait(120)
        run = cli.run("outage")
        time.sleep(2 * OUTAGE_S)  # the outage itself: a save that begins late in it is to be refused for good, too
        before = {checkpoint.step for checkpoint in run.checkpoints()}
        cli.proxy.fault = NONE
        assert wait_for_end(cli, "outage") == "FINISHED"
    assert cli.proxy.injected[REFUSE.kind]
    assert losses(run) == local_losses, "bitwise"
    assert positions(run) == list(range(32 * STEPS)) and len(run.attempts()) == 1
    assert max(checkpoint.step for checkpoint in run.checkpoints()) == STEPS > max(before, default=0)
    told = incidents(run)
    assert any(re.search(r"training goes on.*nothing has become durable since", t) for t in told), told


@pytest.mark.further
def test_a_claim_waits_for_an_outage_to_pass(cli, local_losses):
    """A rank is killed while storage is down: the restart waits for storage, and goes on from memory."""
    with outage_at(cli, 20) as (fault, begun):
        faults = [fault, {"kind": "kill", "rank": 1, "step": 21}]
        assert cli.submit("claim", *LONG, "--detach", ZEROFLEET_FAULTS=json.dumps(faults)).returncode == 0
        assert begun.wait(120)
        run = cli.run("claim")
        time.sleep(3 * OUTAGE_S)
        cli.proxy.fault = NONE
        assert wait_for_end(cli, "claim") == "FINISHED"
    assert [(a.attempt, a.from_memory) for a in run.attempts()] == [(1, False), (2, True)]
    assert losses(run) == local_losses, "bitwise"
    assert positions(run) == list(range(32 * STEPS))
    assert any("the train cannot start: storage is down since" in t for t in incidents(run))


@pytest.mark.further
def test_an_export_waits_for_an_outage_to_pass(cli, local_losses):
    assert cli.submit("export", *LONG, "--detach").returncode == 0
    run = cli.run("export")
    deadline = time.monotonic() + 120
    while not any(e.kind == "state" and "exporting" in e.data["why"] for e in run.events()):
        assert time.monotonic() < deadline, "the export did not begin"
        time.sleep(0.02)
    cli.proxy.fault = REFUSE
    time.sleep(5 * OUTAGE_S)
    cli.proxy.fault = NONE
    assert wait_for_end(cli, "export") == "FINISHED"
    assert cli.proxy.injected[REFUSE.kind] and losses(run) == local_losses
    assert run.storage.exists("export/model.safetensors")


@pytest.mark.long
def test_storage_that_stays_away_ends_the_run_and_resume_goes_on_from_memory(cli, local_losses):
    """Every request is swallowed from step 20 on: the driver ends by itself, and no step is trained twice."""
    with outage_at(cli, 20, BLACK_HOLE) as (fault, begun):
        faults = json.dumps([fault])
        submitted = cli.submit("gone", *LONG, "--detach", "cluster.stop_timeout_s=3", ZEROFLEET_FAULTS=faults)
        assert submitted.returncode == 0
        assert begun.wait(120)
        run = cli.run("gone")
        psutil.Process(driver_records(run)[-1].pid).wait(300)
    cli.proxy.fault = NONE
    assert cli.proxy.injected[BLACK_HOLE.kind]
    done = cli("resume", "gone", "cluster.stop_timeout_s=100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(a.attempt, a.from_memory) for a in run.attempts()] == [(1, False), (2, True)]
    assert losses(run) == local_losses, "bitwise"
    assert positions(run) == list(range(32 * STEPS))
