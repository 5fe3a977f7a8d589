"""Storage that is down where the controller needs it: attempts wait for their claim, ends say what is known, nothing hangs."""

from __future__ import annotations

from tests.cluster.fakes import FakeSelection, ended, event, exit_of, harness, step
from zerofleet.cluster.commits import Outcome
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.state import State
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import CheckpointId

DOWN = StorageError("no route to the bucket")


def failing_times(h, name, times):
    """The hook `name` fails so many times, each a while after the one before."""
    hook, calls = getattr(h, name), []

    def fail_first(*arguments):
        calls.append(h.clock.now)
        if len(calls) <= times:
            raise DOWN
        return hook(*arguments)

    object.__setattr__(h.controller._hooks, name.strip("_"), fail_first)
    return calls


def killed_then_well(attempt):
    if attempt == 1:
        return [step(1, 1), [exit_of(1, 1, None, 9)]]
    return [step(attempt, 2), ended(attempt, "finished", 2)]


def test_a_claim_waits_for_storage_and_the_run_goes_on():
    h = harness(killed_then_well)
    h.run_until("RUNNING")
    calls = failing_times(h, "_claim", 4)
    assert h.run().state is State.FINISHED
    assert [number for number, _ in h.claims] == [1, 2] and len(calls) == 5
    assert calls[-1] - calls[-2] > calls[1] - calls[0], "with backoff"
    told = [e.data["message"] for e in h.said("incident")]
    assert len(told) == 1 and "the train cannot start: storage is down since" in told[0]
    assert "no route to the bucket" in told[0]


def test_a_selection_waits_for_storage_too():
    h = harness(killed_then_well)
    failing_times(h, "_select", 3)
    assert h.run().state is State.FINISHED


def test_waiting_for_a_claim_has_an_end():
    h = harness(killed_then_well, config=ClusterConfig(storage_timeout_s=60))
    calls = failing_times(h, "_claim", 10**6)
    assert h.run().state is State.FAILED and h.controller.exit_code == 1
    assert "cluster.storage_timeout_s=60" in h.controller.why and "no route" in h.controller.why
    assert 60 <= calls[-1] - calls[0] <= 65


def test_a_stop_is_obeyed_while_the_claim_waits():
    h = harness(killed_then_well)
    failing_times(h, "_claim", 10**6)
    for _ in range(20):
        h.controller.step(h.clock.now)
    h.requests.append("stop")
    assert h.run().state is State.STOPPED and "before it trained" in h.controller.why


def fails_for_good(attempt):
    error = event("error", 1, 0, 3, type="E", message="bad", traceback="", frames=[], user=True)
    return [step(1, 3), [error, exit_of(1, 0, 1), exit_of(1, 1, 1)]]


def test_an_end_waits_for_storage_and_rescues_what_memory_holds():
    h = harness(fails_for_good)
    h.run_until("RUNNING")
    h.selections = [FakeSelection(CheckpointId(3, 1), found=1, in_memory=True)]
    failing_times(h, "_select", 3)
    for _ in range(60):
        h.controller.step(h.clock.now)
    assert h.group.persisted == [CheckpointId(3, 1)]
    h.outcomes.append(Outcome(CheckpointId(3, 1), True))
    assert h.run().state is State.FAILED and "step 3, which was in memory, is durable now" in h.controller.why


def test_an_end_without_storage_says_so_and_keeps_the_memory():
    h = harness(fails_for_good, config=ClusterConfig(stop_timeout_s=30))
    h.run_until("RUNNING")
    failing_times(h, "_select", 10**6)
    began = h.clock.now
    assert h.run().state is State.FAILED and h.clock.now - began < 60
    assert h.controller.keep_snapshots and h.controller.exit_code == 2
    for words in ("bad", "cluster.stop_timeout_s=30", "storage has been down since", "resume while they keep it"):
        assert words in h.controller.why


def test_what_an_agent_says_is_completed_by_since_when_nothing_is_durable():
    said = {"class": "storage", "message": "step 7 cannot be made durable"}

    def train(attempt):
        trouble = [event("incident", 1, 0, 7, "save", **said)]
        return [step(1, 7), trouble, step(1, 8), trouble, ended(1, "finished", 8)]

    h = harness(train)
    h.run_until("RUNNING")
    h.controller.step(h.clock.now)
    h.outcomes.append(Outcome(CheckpointId(5, 1), True))
    h.run()
    first, second = [e.data["message"] for e in h.said("incident")]
    assert first == "step 7 cannot be made durable; nothing has become durable since this driver began"
    assert second.startswith("step 7 cannot be made durable; nothing has become durable since step 5 at ")
