"""Silos as ranks without Ray, and the outer server beside them: stages, world sizes, repeated steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.ranks import Plan
from tests.support.silos import STEPS, Silos
from zerofleet.trainer.schedule import learning_rate

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def silos(tmp_path, tiny_corpus, tiny_cache):
    found = Silos(tmp_path, tiny_corpus, tiny_cache)
    yield found
    found.close()


@pytest.mark.parametrize(("one", "other"), [((2, 2), (1, 0)), ((1, 3), (2, 0)), ((2, 3), (1, 1))])
def test_silos_of_other_stages_and_sizes_end_with_the_same_weights(silos, one, other):
    found = silos.both(one, other)
    assert not found["a"].errors and not found["b"].errors, (found["a"].errors, found["b"].errors)
    assert silos.masters("a") == silos.masters("b")
    assert [data["round"] for data in silos.told("round")] == [1, 2, 3]
    states = [(e.data["round"], e.data["state"]) for e in found["a"].of("outer")]
    assert states == [(0, "joined"), (1, "done"), (2, "done"), (3, "done")]
    assert found["a"].losses() != found["b"].losses(), "each walks through the data in its own order"


@pytest.mark.parametrize(("step", "codec"), [(2, "fp32"), (5, "fp32"), (6, "int8")])
def test_a_killed_rank_changes_no_bit(tmp_path, tiny_corpus, tiny_cache, step, codec):
    """Killed at the beginning of a step: with the outer step behind it or before it. What int8 leaves out is part of the state."""
    whole = Silos(tmp_path / "whole", tiny_corpus, tiny_cache, codec)
    expected = whole.both((2, 1), (1, 1))
    broken = Silos(tmp_path / "broken", tiny_corpus, tiny_cache, codec)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(broken.run, "b", 1, 1)
        first = broken.run("a", 2, 1, Plan(kill_at=(1, step)))
        second = broken.run("a", 2, 1)
    assert first.errors or -9 in first.exit_codes
    assert not second.errors and not other.result().errors
    assert {**first.losses(), **second.losses()} == expected["a"].losses()
    assert other.result().losses() == expected["b"].losses()
    assert broken.masters("a") == whole.masters("a")
    whole.close()
    broken.close()


def test_a_silo_joins_late_and_another_comes_back_too_late(tmp_path, tiny_corpus, tiny_cache):
    """`a` is stopped after one round; `b` begins then, and does the rest alone; then `a` comes back."""
    silos = Silos(tmp_path, tiny_corpus, tiny_cache, quorum=1, deadline_s=0.01)
    first = silos.run("a", 1, 1, Plan(stop_after=3))
    late = silos.run("b", 2, 2)
    back = silos.run("a", 1, 1)
    assert not first.errors and not late.errors and not back.errors, (first.errors, late.errors, back.errors)
    states = {
        name: [(e.data["round"], e.data["state"]) for e in found.of("outer")]
        for name, found in (("b", late), ("a", back))
    }
    assert states == {"b": [(1, "joined"), (2, "done"), (3, "done")], "a": [(1, "resumed"), (3, "late")]}
    assert sorted(late.losses()) == [1, 2, 3, 4], "its own data it takes from the beginning"
    rates = [event.data["learning_rate"] for event in late.of("step")]
    assert rates == [learning_rate(silos.config("b", 2).train, step) for step in (2, 3, 4, 5)]
    assert sorted(back.losses()) == [4]
    assert silos.masters("a") == silos.masters("b")
    silos.close()


def test_a_silo_that_was_stopped_before_the_last_outer_step_ends_with_it(silos):
    """What it had saved at its last step is the state before it."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(silos.run, "b", 1, 1)
        first = silos.run("a", 1, 1, Plan(stop_after=STEPS))
        second = silos.run("a", 1, 1)
    assert not first.errors and not second.errors and not other.result().errors
    assert first.of("stopped") and second.of("finished")
    assert [(e.data["round"], e.data["state"]) for e in second.of("outer")] == [(2, "resumed"), (3, "done")]
    assert silos.masters("a") == silos.masters("b")


def test_every_byte_that_leaves_a_silo_is_written_down(silos):
    found = silos.both((2, 1), (1, 1))
    num_bytes = sum(4 * tensor.num_elements for tensor in silos.manifest("a").tensors.values())
    seeded = 0
    for outcome in found.values():
        joined, *rounds = [event.data for event in outcome.of("outer")]
        assert [data["sent_bytes"]["deltas"] for data in rounds] == [num_bytes] * 3
        assert all(data["sent_bytes"]["initial_weights"] == 0 for data in rounds)
        assert all(0 < data["sent_bytes"]["questions"] < 20_000 for data in rounds)
        seeded += joined["sent_bytes"]["initial_weights"]
    assert seeded >= num_bytes, "whoever came first, or both"
    told = [data["delta_bytes"] for data in silos.told("round")]
    assert told == [{"a": num_bytes, "b": num_bytes}] * 3, "the other end counts the same"
