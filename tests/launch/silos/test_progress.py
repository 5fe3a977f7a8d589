from zerofleet.launch.silos.progress import PATIENCE_S, RoundLosses
from zerofleet.trainer.events import Event


def step(number: int, loss: float, tokens: int, start: float = 0.0) -> Event:
    return Event("step", 1, 0, number, "step", start, 1.0, {"loss": loss, "tokens": tokens})


def outer(number: int, last_step: int, state: str = "done") -> Event:
    return Event("outer", 1, 0, last_step, "outer", 0.0, 0.0, {"round": number, "state": state})


def hear(losses: RoundLosses, silo: str, *events: Event) -> None:
    for event in events:
        losses.hear(silo, event)


def test_a_round_is_told_when_every_silo_in_it_has_told_its_steps():
    losses = RoundLosses(2)
    hear(losses, "a", step(1, 4.0, 10, 5.0), step(2, 2.0, 10, 6.0), outer(1, 2))
    losses.close(1, ["a", "b"], now=0.0)
    assert list(losses.take(now=0.0)) == []
    hear(losses, "b", outer(1, 2), step(1, 1.0, 20, 5.5), step(2, 1.0, 20, 7.0))
    assert list(losses.take(now=0.0)) == [(2, (40 + 20 + 20 + 20) / 60, 60, 5.0, 3.0)]
    assert list(losses.take(now=0.0, is_end=True)) == []


def test_a_repeated_step_counts_once():
    losses = RoundLosses(1)
    hear(losses, "a", step(1, 4.0, 10), step(1, 2.0, 10), outer(1, 1))
    losses.close(1, ["a"], now=0.0)
    assert [found[1] for found in losses.take(now=0.0)] == [2.0]


def test_with_overlap_a_round_ends_where_its_delta_was_handed_over():
    losses = RoundLosses(2)
    hear(losses, "a", step(1, 1.0, 10), step(2, 3.0, 10), step(3, 9.0, 10))
    merged = outer(1, 3)
    merged.data["handed_over_step"] = 2
    hear(losses, "a", merged)
    losses.close(1, ["a"], now=0.0)
    assert [found[1] for found in losses.take(now=0.0)] == [2.0]


def test_a_silo_that_joined_late_has_other_step_numbers():
    losses = RoundLosses(2)
    hear(losses, "a", step(1, 1.0, 10), step(2, 1.0, 10), outer(7, 2))
    losses.close(7, ["a"], now=0.0)
    assert [found[:2] for found in losses.take(now=0.0)] == [(14, 1.0)]


def test_a_round_does_not_wait_beyond_the_next_one_nor_the_end():
    losses = RoundLosses(1)
    hear(losses, "a", step(1, 1.0, 10), outer(1, 1), step(2, 2.0, 10), outer(2, 2))
    losses.close(1, ["a", "b"], now=0.0)
    losses.close(2, ["a", "b"], now=0.0)
    assert list(losses.take(now=PATIENCE_S - 1)) == [], "its other silo may only be slow to tell"
    assert [found[1] for found in losses.take(now=PATIENCE_S)] == [1.0]
    assert [found[1] for found in losses.take(now=0.0, is_end=True)] == [2.0]
