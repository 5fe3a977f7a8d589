"""Documents dealt out to silos: each exactly once, the same for a seed, in the sizes that flwr-datasets gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.partition import PARTITIONERS, partition_documents

LABELS = [f"label{number % 7}" for number in range(1000)]
OPTIONS = {"DirichletPartitioner": {"alpha": 1.0, "min_partition_size": 1}}
NUM_PARTITIONS = {"NaturalIdPartitioner": 7}


def deal(name: str, seed: int = 3) -> np.ndarray:
    return partition_documents(name, LABELS, NUM_PARTITIONS.get(name, 5), seed, OPTIONS.get(name))


@given(
    st.sampled_from(sorted(PARTITIONERS)),
    st.lists(st.integers(0, 4), min_size=60, max_size=200),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_every_document_is_in_exactly_one_silo_and_no_silo_is_empty(name, labels, seed):
    num_partitions = len(set(labels)) if name == "NaturalIdPartitioner" else 3
    options = {"alpha": 100.0} if name == "DirichletPartitioner" else {}
    silos = partition_documents(name, labels, num_partitions, seed, options)
    assert silos.shape == (len(labels),)
    assert sorted(set(silos.tolist())) == list(range(num_partitions))


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_seed_gives_the_same_silos_and_another_one_others(name):
    assert np.array_equal(deal(name), deal(name))
    assert np.array_equal(deal(name, 3), deal(name, 4)) == (name == "NaturalIdPartitioner")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # as flwr-datasets 0.6 gives them for 1000 rows
        ("IidPartitioner", [200, 200, 200, 200, 200]),
        ("LinearPartitioner", [66, 133, 200, 266, 335]),
        ("SquarePartitioner", [18, 72, 163, 290, 457]),
        ("ExponentialPartitioner", [11, 31, 86, 234, 638]),
    ],
)
def test_sizes_are_those_of_flwr_datasets(name, sizes):
    silos = deal(name)
    assert np.bincount(silos).tolist() == sizes
    # Whatever they are: every silo has of every label about what it should.
    labels = np.array(LABELS)
    for silo, size in enumerate(sizes):
        for label in set(LABELS):
            expected = size / 7
            assert abs((labels[silos == silo] == label).sum() - expected) < 6 * expected**0.5


def test_iid_differs_by_one_at_most():
    assert np.bincount(partition_documents("IidPartitioner", [0] * 11, 4, 0)).tolist() == [3, 3, 3, 2]


def test_natural_id_makes_a_silo_of_every_source_by_name():
    silos = partition_documents("NaturalIdPartitioner", ["web", "code", "web", "books"], 3, 0)
    assert silos.tolist() == [2, 1, 2, 0]
    with pytest.raises(UserError, match="a silo of every source: there are 2, not 3"):
        partition_documents("NaturalIdPartitioner", ["web", "code", "web"], 3, 0)


def label_entropy(alpha: float) -> float:
    """Mean entropy (nats) of the silos' labels; ln 7 = 1.95 where all labels are everywhere alike."""
    silos = partition_documents("DirichletPartitioner", LABELS, 5, 0, {"alpha": alpha, "min_partition_size": 1})
    entropies = []
    for silo in range(5):
        counts = np.unique(np.array(LABELS)[silos == silo], return_counts=True)[1]
        shares = counts / counts.sum()
        entropies.append(float(-(shares * np.log(shares)).sum()))
    return sum(entropies) / 5


def test_alpha_rules_how_much_silos_differ():
    low, middle, high = (label_entropy(alpha) for alpha in (0.1, 1.0, 1000.0))
    assert low < middle < high and high > 1.9


def test_self_balancing_evens_sizes_out():
    labels = [number % 40 for number in range(2000)]
    sizes = {
        is_balanced: np.bincount(
            partition_documents("DirichletPartitioner", labels, 5, 1, {"alpha": 0.2, "self_balancing": is_balanced})
        )
        for is_balanced in (False, True)
    }
    assert sizes[True].std() < sizes[False].std()
    assert sizes[True].max() <= 400 + 50  # the average, and what one label may bring on top


@pytest.mark.parametrize(
    ("name", "num_documents", "num_partitions", "options", "said"),
    [
        ("Iid", 9, 2, {}, "no partitioner 'Iid'; there are IidPartitioner, Dirichlet"),
        ("IidPartitioner", 3, 4, {}, "3 documents cannot be dealt out to 4 silos"),
        ("IidPartitioner", 3, 0, {}, "to 0 silos"),
        ("IidPartitioner", 9, 2, {"alpha": 1}, "alpha is not one of them"),
        ("DirichletPartitioner", 9, 2, {}, "alpha has to be given"),
        ("DirichletPartitioner", 9, 2, {"alpha": 0.0}, "alpha of DirichletPartitioner is 0.0"),
        ("DirichletPartitioner", 9, 2, {"alpha": 1.0}, "11 draws with alpha=1.0 left some silo with fewer than 10"),
        ("ExponentialPartitioner", 30, 9, {}, "of 30 documents silo 0 would get none"),
    ],
)
def test_what_cannot_be_done_is_said(name, num_documents, num_partitions, options, said):
    with pytest.raises(UserError, match=said):
        partition_documents(name, [0] * num_documents, num_partitions, 0, options)
