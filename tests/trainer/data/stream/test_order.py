"""The windowed order is a permutation per epoch that needs few shards at a time, reached anywhere at once, and never changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.data.test_order import chi_square_bound
from zerofleet.trainer.data import order as order_module
from zerofleet.trainer.data.stream.order import WindowedOrder, shards_of_samples


def order_of(num_samples=100, shard_samples=7, window_shards=4, seed=0, silo="main") -> WindowedOrder:
    return WindowedOrder(num_samples, shard_samples, window_shards, seed, silo)


ORDERS = st.builds(
    WindowedOrder,
    num_samples=st.integers(1, 600),
    shard_samples=st.integers(1, 40),
    window_shards=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    silo=st.text(max_size=3),
)


def epoch_of(order: WindowedOrder, epoch: int) -> np.ndarray:
    return order.samples_at(np.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples))


@settings(max_examples=60)
@given(ORDERS, st.integers(0, 2**40))
def test_every_sample_comes_once_per_epoch(order, epoch):
    assert np.array_equal(np.sort(epoch_of(order, epoch)), np.arange(order.num_samples))


@settings(max_examples=30)
@given(ORDERS, st.integers(0, 1000))
def test_a_window_needs_its_own_shards_only_and_they_are_told_beforehand(order, epoch):
    samples, at = epoch_of(order, epoch), 0
    for window in range(order.num_windows):
        shards = set(order.shards_of(epoch, window).tolist())
        assert len(shards) <= order.window_shards
        size = sum(min(order.shard_samples, order.num_samples - shard * order.shard_samples) for shard in shards)
        assert {sample // order.shard_samples for sample in samples[at : at + size].tolist()} == shards
        for position in (at, at + size - 1):
            assert set(order.shards_from(epoch * order.num_samples + position, 1)) == shards
        at += size
    assert at == order.num_samples


@settings(max_examples=40)
@given(ORDERS, st.integers(1, 120), st.integers(0, 30))
def test_no_step_needs_more_shards_than_are_told_beforehand(order, num_positions, first_epoch):
    """Full shards and the short one, of all steps of some epochs."""
    num_full, is_last_on_top = order.most_shards(num_positions)
    last = order.num_shards - 1 if order.num_samples % order.shard_samples else -1
    start = first_epoch * order.num_samples
    shards = order.samples_at(np.arange(start, start + 3 * order.num_samples + num_positions)) // order.shard_samples
    for at in range(len(shards) - num_positions):
        found = set(shards[at : at + num_positions].tolist())
        assert len(found - {last} if is_last_on_top else found) <= num_full


def test_a_step_of_a_full_window_reaches_over_one_that_is_smaller():
    """1,030 samples in shards of 100, one to a window: the window of the last shard holds 30."""
    order = order_of(1030, 100, 1)
    assert (order.smallest_window, order.most_shards(31), order.most_shards(100)) == (30, (2, False), (2, True))
    assert order_of(1000, 100, 3).smallest_window == 100 and order_of(1000, 100, 3).most_shards(300) == (8, False)
    starts = range(0, 50 * 1030, 100)
    most = max(len(np.unique(order.samples_at(np.arange(start, start + 100)) // 100)) for start in starts)
    assert most == 3


@settings(max_examples=25)
@given(ORDERS, st.integers(0, 10**9))
def test_any_position_alone_gives_what_a_row_gives(order, start):
    together = order.samples_at(np.arange(start, start + 300))
    picked = np.array([299, 0, 17, 120, 5])
    assert np.array_equal(order.samples_at(start + picked), together[picked])


@settings(max_examples=25)
@given(ORDERS, st.integers(0, 10**6), st.integers(1, 4))
def test_the_shards_ahead_are_those_of_the_next_windows_into_the_next_epoch(order, epoch, num_windows):
    for window in {0, order.num_windows - 1}:
        size = sum(
            min(order.shard_samples, order.num_samples - shard * order.shard_samples)
            for before in range(window)
            for shard in order.shards_of(epoch, before).tolist()
        )
        ahead = order.shards_from(epoch * order.num_samples + size, num_windows)
        turns = [divmod(window + step, order.num_windows) for step in range(num_windows)]
        expected = [shard for more, turn in turns for shard in order.shards_of(epoch + more, turn).tolist()]
        assert ahead == list(dict.fromkeys(expected))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"silo": "other"}, {"window_shards": 5}, {"shard_samples": 8}])
def test_it_depends_on_all_its_keys(changes):
    assert (epoch_of(order_of(1000), 0) == epoch_of(order_of(1000, **changes), 0)).mean() < 0.05
    assert (epoch_of(order_of(1000), 0) == epoch_of(order_of(1000), 1)).mean() < 0.05


def test_each_sample_is_as_likely_at_each_position():
    """The short last shard's too: 3 shards of 4 and one of 2, two to a window."""
    order, epochs = order_of(14, 4, 2), 3000
    samples = order.samples_at(np.arange(14 * epochs)).reshape(epochs, 14)
    for sample in (0, 7, 13):
        places = np.argmax(samples == sample, axis=1)
        counts = np.bincount(places, minlength=14)
        # Windows are of 8 and 6, or of 6 and 8: the two halves are as likely, and so are the places that both ways have in common.
        first, last = counts[:6], counts[8:]
        assert abs(first.sum() - last.sum()) < 6 * (first.sum() + last.sum()) ** 0.5
        for half in (first, last):
            assert ((half - half.mean()) ** 2 / half.mean()).sum() < chi_square_bound(5)


def test_shards_are_shuffled_within_their_window_evenly():
    """A window of 4 shards of 5: which shard a place takes from is as good as drawn."""
    order, epochs = order_of(20, 5, 4), 2000
    samples = order.samples_at(np.arange(20 * epochs)).reshape(epochs, 20)
    for place in (0, 9, 19):
        counts = np.bincount(samples[:, place], minlength=20)
        assert ((counts - epochs / 20) ** 2 / (epochs / 20)).sum() < chi_square_bound(19)


@pytest.mark.parametrize("num_samples", [10**9, 10**12 + 39])
def test_a_seek_takes_as_many_operations_at_any_position(monkeypatch, num_samples):
    order = order_of(num_samples, 2**15 - 19, 16)
    evaluated, feistel = [], order_module._feistel
    monkeypatch.setattr(
        order_module, "_feistel", lambda values, *rest: evaluated.append(len(values)) or feistel(values, *rest)
    )
    for start in (0, num_samples - 30, 10**15 + 7):
        del evaluated[:]
        assert len(np.unique(order.samples_at(np.arange(start, start + 64)))) == 64
        # 64 samples and the shards of one window, or of two; with the last few walks.
        assert 64 + 1 <= sum(evaluated) <= 64 + 2 * 16 + 4, (start, evaluated)


def test_samples_by_shard():
    found = {shard: rows.tolist() for shard, rows in shards_of_samples(np.array([9, 1, 0, 12, 8]), 4)}
    assert found == {0: [1, 2], 2: [0, 4], 3: [3]}


def test_frozen():
    """Runs resume by position: when this fails, the change breaks every run that exists."""
    assert order_of().samples_at(np.arange(95, 105)).tolist() == [89, 9, 72, 76, 87, 18, 78, 79, 11, 80]
    assert order_of(10**9, 32768, 16, 5).samples_at(np.arange(10**12, 10**12 + 4)).tolist() == [
        762465782,
        575045588,
        908143799,
        62501620,
    ]
