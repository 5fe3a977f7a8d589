"""The loader benchmark's arithmetic, and that all loaders give the same sequences where the peers are installed."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest

from zerofleet.benchmarks import loader
from zerofleet.benchmarks.loader import compared, measure_loaders, measure_resumes, prepared, report, resumed, summary
from zerofleet.benchmarks.peers.loaders import LOADERS, Corpus

ROUNDS = [
    {name: {"tokens": rate * seconds, "cpu_s": seconds, "wall_s": 2 * seconds} for name, rate in rates.items()}
    for seconds, rates in [
        (1.0, {"zerofleet": 80e6, "litdata": 10e6, "streaming": 1e6, "other": 8e6}),
        (2.0, {"zerofleet": 60e6, "litdata": 15e6, "streaming": 2e6, "other": 6e6}),
        (1.0, {"zerofleet": 72e6, "litdata": 9e6, "streaming": 2e6, "other": 7.2e6}),
    ]
]


def small(folder, **changes) -> Corpus:
    corpus = Corpus(folder, **({"sequence_length": 16, "num_sequences": 300, "block_size": 4} | changes))
    corpus.write()
    return corpus


def test_ratios_are_of_one_round_and_judged_by_their_median():
    found = summary(ROUNDS)
    assert found["ratios"]["zerofleet over litdata"] == {
        **compared(ROUNDS, "zerofleet", "litdata"),
        "median": 8.0,
        "bar": 5.0,
        "met": True,
    }
    assert (
        found["ratios"]["zerofleet over streaming"]["median"],
        found["ratios"]["zerofleet over streaming"]["met"],
    ) == (36, False)
    assert "met" not in found["ratios"]["zerofleet over other"]
    assert found["tokens_per_s"]["litdata"] == {"cpu_s": 10e6, "wall_s": 5e6}


def test_a_bar_that_is_missed_is_said_aloud():
    text = report(
        {
            "loaders": {512: summary(ROUNDS)},
            "resume": resumed([{"cpu_s": s, "wall_s": 2 * s} for s in (0.001, 0.002, 0.006)]),
        }
    )
    assert "512 tokens, zerofleet over litdata: 8 [4, 8], bar 5: met" in text
    assert "zerofleet over streaming: 36 [30, 80], bar 40: MISSED" in text
    assert "3 times: median 2.00 ms (wall 4.00), slowest 6.00 ms (wall 12.00), bar 5 ms: MISSED" in text


def test_resuming_makes_a_block_anywhere_in_a_billion_sequences():
    trials = measure_resumes(64, 3)
    assert len(trials) == 3 and all(trial["cpu_s"] > 0 for trial in trials)


def test_documents_fill_the_corpus_and_both_stores_read_all_of_it(tmp_path):
    corpus = small(tmp_path)
    store, packed = corpus.store(), corpus.packed_store()
    assert store.num_sequences == 300 and store.document_ends[-1] == store.num_tokens == 300 * 16 + 1
    assert packed.num_targets(np.arange(packed.num_sequences)).sum() == packed.num_tokens
    (rows,) = corpus.rows()
    assert np.array_equal(rows[:, :-1], store.read(np.arange(300))[0])


def sequences(name: str, corpus: Corpus) -> Counter[bytes]:
    """One epoch."""
    blocks, found = LOADERS[name](corpus), Counter()
    for _ in range(corpus.num_sequences // corpus.block_size):
        inputs, labels = next(blocks)
        assert inputs.shape == labels.shape == (corpus.block_size, corpus.sequence_length)
        found.update(
            np.concatenate([i, label[-1:]]).tobytes() for i, label in zip(inputs.numpy(), labels.numpy(), strict=True)
        )
    return found


def test_all_loaders_give_the_same_sequences(tmp_path):
    if any(find_spec(peer) is None for peer in loader.PEERS):
        pytest.skip("the peers of the loader benchmark are no part of the project's environment")
    corpus = prepared(tmp_path / "corpus", 16, 300 * 16, 4)
    (rows,) = corpus.rows()
    expected = Counter(row.astype(np.int64).tobytes() for row in rows)
    for name in ("zerofleet", "litdata", "streaming"):
        assert sequences(name, corpus) == expected, name


@pytest.mark.integration
def test_loaders_take_turns_in_processes_of_their_own(tmp_path):
    rounds = measure_loaders(small(tmp_path), ["zerofleet", "zerofleet_best_fit"], 2, 0.02, 0)
    assert [list(r) for r in rounds] == [["zerofleet", "zerofleet_best_fit"], ["zerofleet_best_fit", "zerofleet"]]
    assert all(trial["tokens"] > 0 and trial["cpu_s"] >= 0.02 for r in rounds for trial in r.values())
