"""What is written down where, and that a tracker's trouble ends nothing."""

from __future__ import annotations

import json
import sys
import types
import uuid
from dataclasses import asdict

import pytest

from tests.support.ranks import job
from zerofleet.trainer.config import TrackingConfig
from zerofleet.trainer.credentials import VARIABLE
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Event
from zerofleet.trainer.recorder import Recorder
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.tracking import run_id


def event(kind, phase="step", step=3, **data):
    return Event(kind, 1, 0, step, phase, 100.0, 0.5, data)


@pytest.fixture
def config(tmp_path):
    return job(tmp_path, tmp_path)


def test_steps_and_evaluations_go_to_metrics_and_the_rest_to_events_without_heartbeats(config):
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    events = [
        event("step", loss=1.5),
        event("phase"),
        event("phase", "save"),
        event("checkpoint", "save"),
        event("eval", "eval", loss=float("nan")),
    ]
    for item in events:
        recorder.on_event(item)
    recorder.close()
    assert [r["kind"] for r in run.read("metrics")] == ["step", "eval"]
    assert [(e.kind, e.phase) for e in run.events()] == [("phase", "save"), ("checkpoint", "save")]
    assert next(iter(run.read("metrics"))) == events[0].__dict__


def test_credentials_are_in_no_record(config, monkeypatch):
    monkeypatch.setenv("STORE_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv(VARIABLE, "STORE_KEY")
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    recorder.on_event(event("incident", message="the store refused wJalrXUtnFEMI"))
    recorder.close()
    assert [told.data["message"] for told in run.events()] == ["the store refused ***"]


def test_what_ranks_say_at_the_end_of_a_step_is_written_in_sums_at_the_end_of_the_attempt(config):
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    for _ in range(3):
        recorder.on_event(event("phase", data_s=0.5, stall_s=0.25))
    recorder.close()
    (sums,) = run.events()
    assert (sums.kind, sums.data["steps"], sums.data["data_s"], sums.data["stall_s"]) == ("ranks", [3], [1.5], [0.75])


@pytest.mark.parametrize("mark", ["checkpoint", "finished", "stopped"])
def test_what_came_before_a_commit_or_an_end_can_be_read_by_others_at_once(config, mark):
    run = RunFolder(f"memory://{uuid.uuid4().hex}", "r")
    recorder = Recorder(run, 1, config)
    recorder.on_event(event("step", loss=1.5))
    assert not list(run.read("metrics"))
    recorder.on_event(event(mark, "save"))
    assert [r["kind"] for r in run.read("metrics")] == ["step"] and [e.kind for e in run.events()] == [mark]


def test_metrics_that_cannot_be_written_do_not_hold_back_the_events(config, monkeypatch):
    run = RunFolder(f"memory://{uuid.uuid4().hex}", "r")
    recorder = Recorder(run, 1, config)
    recorder.on_event(event("step", loss=1.5))
    recorder.on_event(event("info"))
    write = type(run.storage).write_stream

    def refuse_metrics(storage, path, chunks):
        if path.startswith("metrics/"):
            raise StorageError("unreachable")
        return write(storage, path, chunks)

    monkeypatch.setattr(type(run.storage), "write_stream", refuse_metrics)
    with pytest.raises(StorageError):
        recorder.close()
    assert [e.kind for e in run.events()] == ["info"]
    monkeypatch.undo()
    recorder.close()
    assert [r["kind"] for r in run.read("metrics")] == ["step"], "a later close writes what is left"


class FakeWandb(types.ModuleType):
    def __init__(self, fail_at):
        super().__init__("wandb")
        self.logged, self.arguments, self._fail_at = [], None, fail_at

    def init(self, **arguments):
        if self._fail_at == "init":
            raise OSError("no network")
        self.arguments = arguments
        return self

    def Settings(self, **_):
        return None

    def log(self, values, step):
        if self._fail_at == "log":
            raise OSError("gone")
        self.logged.append((step, values))

    def finish(self):
        if self._fail_at == "finish":
            raise OSError("cut off")
        self.logged.append("finished")


@pytest.fixture(params=["never", "init", "log", "finish"])
def wandb(request, monkeypatch):
    fake = FakeWandb(request.param)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return request.param, fake


def test_wandb_gets_numbers_and_its_trouble_is_an_incident(config, wandb):
    fails, fake = wandb
    config = config.model_copy(update={"tracking": TrackingConfig(wandb={"enabled": True})})
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    recorder.on_event(event("step", loss=1.5, note="text"))
    recorder.on_event(event("eval", loss=2.5))
    recorder.close()
    incidents = [e.data["message"] for e in run.events() if e.kind == "incident"]
    assert len(list(run.read("metrics"))) == 2
    if fails == "never":
        assert fake.logged == [(3, {"train/loss": 1.5}), (3, {"eval/loss": 2.5}), "finished"]
        assert (
            fake.arguments["id"] == run_id(config.run.storage, config.run.name) and fake.arguments["mode"] == "offline"
        )
        assert not incidents
    else:
        assert len(incidents) == 1 and "wandb" in incidents[0]


def test_the_id_is_the_same_over_all_attempts_and_differs_between_runs():
    assert run_id("s3://b/", "a") == run_id("s3://b", "a") != run_id("s3://b", "c")


def stepped(number, attempt=1, **data):
    entry = {"step": number, "attempt": attempt, "ranges": [[8 * number, 8 * number + 8]]}
    return Event("step", attempt, 0, number, "step", 100.0, 0.5, {"loss": 1 / number, "ledger": entry, **data})


def test_what_a_step_was_fed_goes_to_the_ledger(config):
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    recorder.on_event(stepped(1))
    recorder.make_ledger_durable()
    assert [line["step"] for line in run.read("ledger")] == [1]
    assert next(iter(run.read("metrics")))["data"] == {"loss": 1.0}
    recorder.close()


def test_what_only_a_committer_needs_is_not_written(config):
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    for item in (event("snapshot", "save"), event("written", "save"), event("phase", "snapshot")):
        recorder.on_event(item)
    recorder.close()
    assert not list(run.events()) and not list(run.read("metrics"))


def test_what_a_snapshot_remembers_and_nobody_heard_is_written_once(config):
    run = RunFolder(config.run.storage, config.run.name)
    first = Recorder(run, 1, config)
    first.on_event(stepped(1))
    first.on_event(stepped(2))
    first.close()
    second = Recorder(run, 2, config)
    told = [stepped(number).__dict__ for number in (1, 2, 3)] + [event("eval", "eval", 3, loss=0.5).__dict__]
    for _ in range(2):
        second.on_event(event("recalled", "load", events=told))
    second.on_event(stepped(4, attempt=2))
    second.close()
    steps = [(line["attempt"], line["step"]) for line in run.read("metrics") if line["kind"] == "step"]
    assert steps == [(1, 1), (1, 2), (1, 3), (2, 4)]
    assert [line["step"] for line in run.read("metrics") if line["kind"] == "eval"] == [3]
    assert [(line["attempt"], line["step"]) for line in run.read("ledger")] == [(1, 1), (1, 2), (1, 3), (2, 4)]


def test_what_an_attempt_has_recalled_that_ended_before_its_first_step_is_not_written_again(config):
    """A rank is killed while it loads: the next attempt starts from the same snapshot, and recalls the same."""
    run = RunFolder(config.run.storage, config.run.name)
    for attempt in (2, 3, 4):
        recorder = Recorder(run, attempt, config)
        recorder.on_event(event("recalled", "load", events=[stepped(1).__dict__]))
        recorder.close()
    assert [(line["attempt"], line["step"]) for line in run.read("ledger")] == [(1, 1)]
    assert [(line["attempt"], line["step"]) for line in run.read("metrics")] == [(1, 1)]


@pytest.mark.parametrize("there", ["ledger", "metrics"])
def test_of_what_is_recalled_each_stream_gets_what_it_lacks(config, there):
    """A disk that was full took the one line and not the other."""
    run = RunFolder(config.run.storage, config.run.name)
    writer = run.writer(there, 1)
    told = stepped(1)
    writer.append(json.dumps(told.data["ledger"]) if there == "ledger" else told.to_json())
    writer.close()
    second = Recorder(run, 2, config)
    second.on_event(event("recalled", "load", events=[told.__dict__]))
    second.close()
    assert [(line["attempt"], line["step"]) for line in run.read("ledger")] == [(1, 1)]
    assert [(line["attempt"], line["step"]) for line in run.read("metrics")] == [(1, 1)]


def test_a_ledger_that_takes_nothing_costs_no_metrics(config, monkeypatch):
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    taken = recorder._ledger.append

    def full(line: str) -> None:
        taken(line)
        raise StorageError("no space left")

    monkeypatch.setattr(recorder._ledger, "append", full)
    with pytest.raises(StorageError):
        recorder.on_event(stepped(1))
    recorder.close()
    assert [line["step"] for line in run.read("ledger")] == [line["step"] for line in run.read("metrics")] == [1]


def written(*results):
    """A rank's file, with what the step's own results say."""
    return Event("written", 1, 0, 3, "save", 101.0, 0.5, {"results": [asdict(result) for result in results]})


def test_a_step_that_its_rank_has_not_told_yet_is_in_the_ledger_before_its_checkpoint_and_once(config):
    run = RunFolder(config.run.storage, config.run.name)
    recorder = Recorder(run, 1, config)
    recorder.on_event(stepped(2))
    result = event("eval", "eval", step=3, loss=1.5)
    recorder.on_event(written(stepped(3), result))
    recorder.make_ledger_durable()
    assert [line["step"] for line in run.read("ledger")] == [2, 3]
    for told in (stepped(3), result, stepped(4)):
        recorder.on_event(told)
    recorder.on_event(written(stepped(3), result))
    recorder.close()
    assert [line["step"] for line in run.read("ledger")] == [2, 3, 4]
    assert [(r["kind"], r["step"]) for r in run.read("metrics")] == [("step", 2), ("step", 3), ("eval", 3), ("step", 4)]


@pytest.mark.parametrize("recalled_first", [True, False])
def test_a_snapshot_that_is_written_out_in_a_later_attempt_brings_nothing_twice(config, recalled_first):
    """Attempt 1 recorded step 2 and, on a disk that was full, not step 3. Attempt 2 starts from its snapshot, and writes it out."""
    run = RunFolder(config.run.storage, config.run.name)
    first = Recorder(run, 1, config)
    first.on_event(stepped(2))
    first.close()
    second = Recorder(run, 2, config)
    recalled = Event("recalled", 2, 0, 0, "load", 102.0, 0.0, {"events": [asdict(stepped(2)), asdict(stepped(3))]})
    for event in (recalled, written(stepped(3))) if recalled_first else (written(stepped(3)), recalled):
        second.on_event(event)
    second.make_ledger_durable()
    second.on_event(stepped(3))
    second.on_event(stepped(4, attempt=2))
    second.close()
    assert [line["step"] for line in run.read("ledger")] == [2, 3, 4]
    assert [line["step"] for line in run.read("metrics")] == [2, 3, 4]


def test_what_an_attempt_before_has_recorded_is_not_recorded_again_with_its_file(config):
    run = RunFolder(config.run.storage, config.run.name)
    first = Recorder(run, 1, config)
    first.on_event(stepped(3))
    first.close()
    second = Recorder(run, 2, config)
    second.on_event(written(stepped(3)))
    second.make_ledger_durable()
    second.close()
    assert [line["step"] for line in run.read("ledger")] == [line["step"] for line in run.read("metrics")] == [3]
