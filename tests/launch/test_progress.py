import pytest

from zerofleet.launch.progress import Progress
from zerofleet.launch.words import duration, prepare_line, step_line
from zerofleet.trainer.events import DRIVER, Event


def event(kind: str, step: int = 0, start: float = 0.0, attempt: int = 1, rank: int = DRIVER, **data) -> Event:
    return Event(kind, attempt, rank, step, "step", start, 0.5, data)


def after(*events: Event, total: int = 100) -> Progress:
    progress = Progress(total)
    for each in events:
        progress.apply(each)
    return progress


def state(to: str, why: str = "") -> Event:
    return event("state", **{"from": "", "to": to, "why": why})


def test_throughput_and_eta_come_from_the_time_between_steps():
    progress = after(*(event("step", n, start=2.0 * n, loss=9.0 - n, tokens=100, mfu=0.25) for n in range(1, 6)))
    assert progress.step_s == 2.0
    assert progress.tokens_per_second == 50
    assert progress.eta_s == 190
    assert step_line(progress) == "step 5/100  loss 4.0000  50 tokens/s  MFU 25.0%  ETA 3m10s"


def test_a_slow_step_does_not_move_the_eta():
    starts = [0, 1, 2, 3, 60, 61]
    assert after(*(event("step", n, start=s, tokens=1) for n, s in enumerate(starts, 1))).step_s == 1


def test_one_step_tells_no_speed():
    progress = after(event("step", 1, loss=1.0, tokens=5))
    assert (progress.tokens_per_second, progress.eta_s, progress.mfu) == (None, None, None)


def test_a_restart_goes_back_and_is_no_step_time():
    progress = after(
        *(event("step", n, start=n, tokens=10) for n in (1, 2, 3)),
        state("RECOVERING"),
        event("loaded", 2, start=100, attempt=2),
        event("step", 3, start=101, tokens=10, attempt=2),
        event("step", 4, start=102, tokens=10, attempt=2),
    )
    assert (progress.step, progress.attempt, progress.step_s) == (4, 2, 1)


def test_the_last_evaluation_of_a_step_counts():
    progress = after(event("eval", 0, loss=9.0), event("eval", 10, loss=5.0), event("eval", 10, loss=4.0))
    assert progress.evals == [(0, 9.0), (10, 4.0)]


def test_states_end_and_a_new_driver_begins_again():
    progress = after(
        state("RUNNING"), event("error", 3, rank=1, type="UserError", message="no", user=True), state("FAILED", "x")
    )
    assert progress.is_final and progress.why == "x" and progress.user_error == "no"
    progress.new_driver(total_steps=200)
    assert (progress.state, progress.is_final, progress.user_error, progress.total_steps) == ("PENDING", False, "", 200)


def test_preparation_is_shown_while_it_goes_on():
    progress = after(state("PREPARING"), event("prepare", stage="tokenize", fraction=0.25, detail="12 MB"))
    assert prepare_line(progress) == "preparing: tokenize 25%  12 MB"
    progress.apply(state("PLACING"))
    assert prepare_line(progress) == ""


def test_a_driver_that_begins_forgets_what_stopped_the_one_before():
    mistake = event("error", 3, rank=1, type="UserError", message="no", user=True)
    assert after(mistake, state("FAILED")).user_error == "no"
    assert after(mistake, state("FAILED"), state("PREPARING")).user_error == ""


def test_under_torchrun_the_ranks_say_how_the_run_stands():
    def under_torchrun(*events: Event) -> str:
        progress = Progress(100, torchrun_attempts=frozenset({2}))
        for each in events:
            progress.apply(each)
        return progress.state

    def rank(kind: str, attempt: int = 2) -> Event:
        return event(kind, 9, attempt=attempt, rank=0)

    failed = event("state", attempt=2, **{"from": "", "to": "FAILED"})
    assert under_torchrun(rank("step")) == "TORCHRUN"
    assert under_torchrun(rank("step"), rank("finished")) == "FINISHED"
    assert under_torchrun(rank("step"), rank("stopped")) == "STOPPED"
    assert under_torchrun(state("FINISHED"), rank("step")) == "TORCHRUN", "it trains on what a driver had finished"
    assert under_torchrun(rank("step"), failed, rank("step")) == "TORCHRUN", "a driver was refused beside it"
    assert under_torchrun(rank("step"), failed, rank("stopped")) == "STOPPED"
    assert under_torchrun(state("RUNNING"), rank("finished", attempt=1)) == "RUNNING", "a driver says its own states"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59, "59s"), (65, "1m05s"), (7500, "2h05m"), (-3, "0s")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_what_it_does_not_know_it_ignores():
    assert after(event("heartbeat", start=5.0), event("something")).last_event_at == 5.5
