"""The run folder: names, attempts, fencing, requests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import CheckpointId, RunFolder, last_that_counts


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(str(tmp_path), "demo")
    folder.create("run: {}")
    return folder


def test_a_taken_name_is_refused_with_the_way_on(run, tmp_path):
    with pytest.raises(UserError, match="`zerofleet resume demo` goes on with it"):
        RunFolder(str(tmp_path), "demo").create("run: {}")


def test_a_run_is_opened_by_name_path_or_url(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROFLEET_STORAGE", str(tmp_path))
    for text in ("demo", str(tmp_path / "demo"), f"{tmp_path}/demo/", f"file://{tmp_path}/demo"):
        assert RunFolder.open(text).job_yaml() == "run: {}"
    with pytest.raises(NotFoundError, match="no run 'dmo'.*demo"):
        RunFolder.open("dmo")


def test_an_attempt_is_claimed_once_and_names_its_start(run):
    run.claim_attempt(1, None, 2, 1)
    record = run.claim_attempt(2, CheckpointId(40, 1), 3, 2)
    assert run.attempts()[1] == record
    assert (record.start_step, record.checkpoint_attempt, record.world_size, record.zero_stage) == (40, 1, 3, 2)
    with pytest.raises(UserError, match="attempt 2 of run 'demo' was claimed by another driver"):
        run.claim_attempt(2, None, 2, 1)


def test_a_run_whose_owner_still_lives_on_this_host_is_not_claimed(run):
    storage = str(run.storage.local_path().parent)
    claim = f"RunFolder({storage!r}, 'demo').claim_attempt(1, None, 1, 1); input()"
    code = f"from zerofleet.trainer.run_folder import RunFolder; {claim}"
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        while not run.attempts():
            assert owner.poll() is None
            time.sleep(0.02)
        with pytest.raises(UserError, match=f"being trained by process {owner.pid}"):
            run.claim_attempt(2, None, 1, 1)
    finally:
        owner.communicate(b"\n")
    assert run.claim_attempt(2, None, 1, 1).attempt == 2


def test_an_owner_lives_on_whatever_the_clock_is_set_to(run):
    """The claim is a day older, as after the clock was set back by a day; processes are told apart by the kernel's ticks."""
    record = run.claim_attempt(1, None, 1, 1)
    assert replace(record, claimed_at=record.claimed_at - 86_400).lives_here
    own = ProcessId.own()
    assert not replace(record, process=str(replace(own, ticks=own.ticks - 1))).lives_here, "another had its number"


def test_an_old_record_counts_as_living_where_a_process_has_its_number(run):
    record = replace(run.claim_attempt(1, None, 1, 1), process="")
    assert record.lives_here and not replace(record, pid=2**22 + 1).lives_here
    assert not replace(record, host="elsewhere").lives_here


def test_a_claim_that_seemed_to_fail_is_this_process_s_only_where_it_made_it(run):
    record = run.claim_attempt(1, None, 1, 1)
    assert record.is_same_claim(replace(record, token="another", claimed_at=0.0))
    before = replace(record, process=str(replace(ProcessId.own(), ticks=1)))
    assert not before.is_same_claim(before), "a process that had this one's number made it"


def test_what_an_attempt_leaves_out_is_left_out_by_every_later_one(run):
    run.claim_attempt(1, None, 2, 1)
    assert run.claim_attempt(2, CheckpointId(5, 1), 2, 1, quarantine=[(48, 56)]).quarantine == [[48, 56]]
    run.claim_attempt(3, CheckpointId(5, 1), 2, 1)
    run.claim_attempt(4, CheckpointId(2, 1), 1, 3, quarantine=((24, 32), (56, 64)))
    assert [record.quarantine for record in run.attempts()] == [[], [[48, 56]], [[48, 56]], [[24, 32], [48, 64]]]


def test_a_halved_micro_batch_stays_halved_for_the_recipe_that_asked_for_the_whole(run):
    assert run.claim_attempt(1, None, 2, 1).micro_batch_size(8) == 8
    assert run.claim_attempt(2, None, 2, 1, halved=(8, 4)).micro_batch_size(8) == 4
    later = run.claim_attempt(3, None, 2, 1)
    assert (later.micro_batch_size(8), later.micro_batch_size(16), later.micro_batch_size(2)) == (4, 16, 2)
    assert run.attempts()[2] == later


def test_a_record_without_a_quarantine_is_read(run):
    run.claim_attempt(1, None, 2, 1)
    fields = json.loads(run.storage.read("attempts/0001.json"))
    del fields["quarantine"]
    run.storage.create("attempts/0002.json", json.dumps(fields).encode())
    assert run.attempts()[1].quarantine == []


@pytest.mark.parametrize(
    ("step", "attempt", "fenced"), [(40, 1, False), (41, 1, True), (30, 1, False), (50, 2, False), (50, 1, True)]
)
def test_what_an_older_attempt_wrote_past_its_successors_start_is_fenced_off(run, step, attempt, fenced):
    run.claim_attempt(1, None, 2, 1)
    run.claim_attempt(2, CheckpointId(40, 1), 2, 1)
    assert run.fenced(CheckpointId(step, attempt)) is fenced


def test_the_last_step_of_an_attempt_that_counts_is_where_the_earliest_later_one_began(run):
    for attempt, start in enumerate([0, 40, 60, 30], 1):
        run.claim_attempt(attempt, CheckpointId(start, 1) if start else None, 2, 1)
    assert [last_that_counts(attempt, run.attempts()) for attempt in (1, 2, 3, 4)] == [30, 30, 30, None]


def test_requests_are_numbered_and_read_once(run):
    run.request("save")
    run.request("stop")
    assert [(n, r["action"]) for n, r in run.requests()] == [(1, "save"), (2, "stop")]
    assert [n for n, _ in run.requests(after=1)] == [2]


def test_only_complete_checkpoints_are_listed(run):
    run.claim_attempt(1, None, 2, 1)
    run.storage.create(CheckpointId(10, 1).manifest, b"{}")
    run.storage.create(CheckpointId(20, 1).rank_file(0, 2), b"data")
    assert run.checkpoints() == [CheckpointId(10, 1)]
    assert run.checkpoint_folders() == [CheckpointId(10, 1), CheckpointId(20, 1)]
