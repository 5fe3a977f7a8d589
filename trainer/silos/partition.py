"""One corpus dealt out to several silos, for experiments: which silo each document belongs to.

Names, options and sizes are those of flwr-datasets 0.5 and later, whose partitioners cut the data set in the order that it comes in, after a shuffle of their
own. Here the documents are dealt in a keyed order, so silos have the same sizes as there, of other documents. The order and the draws (numpy's
RandomState, frozen by NEP 19) are the same for a seed on every machine and with every version.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.data.order import position_to_sample
from zerofleet.trainer.errors import UserError

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_MAX_DRAWS = 11
"""As flwr-datasets: a draw and ten more."""


def partition_documents(
    name: str,
    labels: Sequence[str] | Sequence[int],
    num_partitions: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> Int64:
    """The number of the silo, from 0, that each document belongs to [documents]. `labels` has each document's label or source; only
    DirichletPartitioner and NaturalIdPartitioner look at more than their number.

    Raises UserError for a name or an option that there is not, and where a silo would get no document.
    """
    if name not in PARTITIONERS:
        raise UserError(f"there is no partitioner {name!r}; there are {', '.join(PARTITIONERS)}")
    if not 1 <= num_partitions <= len(labels):
        raise UserError(
            f"{len(labels)} documents cannot be dealt out to {num_partitions} silos: each needs at least one"
        )
    function, chosen = PARTITIONERS[name], dict(options or {})
    known = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY}
    unknown = sorted(set(chosen) - set(known))
    missing = sorted(key for key, default in known.items() if default is inspect.Parameter.empty and key not in chosen)
    if unknown or missing:
        raise UserError(
            f"{name} has the options {', '.join(known) or '(none)'}: "
            + "; ".join(
                [*(f"{key} is not one of them" for key in unknown), *(f"{key} has to be given" for key in missing)]
            )
        )
    order = position_to_sample(np.arange(len(labels)), len(labels), seed, "partition", "")
    return function(order, np.asarray(labels), num_partitions, seed, **chosen)


def iid(order: Int64, labels: NDArray[Any], num_partitions: int, seed: int) -> Int64:
    """Each silo gets as many documents as the next, one more or less, whatever they are."""
    base, surplus = divmod(len(order), num_partitions)
    return _dealt(order, [base + (number < surplus) for number in range(num_partitions)])


def linear(order: Int64, labels: NDArray[Any], num_partitions: int, seed: int) -> Int64:
    """Silo i of 1, 2, ... gets i parts."""
    return _by_size(order, np.arange(1.0, num_partitions + 1))


def square(order: Int64, labels: NDArray[Any], num_partitions: int, seed: int) -> Int64:
    """Silo i of 1, 2, ... gets i^2 parts."""
    return _by_size(order, np.arange(1.0, num_partitions + 1) ** 2)


def exponential(order: Int64, labels: NDArray[Any], num_partitions: int, seed: int) -> Int64:
    """Silo i of 1, 2, ... gets e^i parts."""
    return _by_size(order, np.exp(np.arange(1.0, num_partitions + 1) - num_partitions))


def natural_id(order: Int64, labels: NDArray[Any], num_partitions: int, seed: int) -> Int64:
    """Each source is a silo, in ascending order of their names."""
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) != num_partitions:
        raise UserError(
            f"NaturalIdPartitioner makes a silo of every source: there are {len(names)}, not {num_partitions}"
        )
    return numbers.astype(np.int64)


def dirichlet(
    order: Int64,
    labels: NDArray[Any],
    num_partitions: int,
    seed: int,
    *,
    alpha: float,
    min_partition_size: int = 10,
    self_balancing: bool = False,
) -> Int64:
    """The documents of each label are shared out by a draw from a symmetric Dirichlet distribution: the smaller `alpha`, the more of a
    label lies in one silo (Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, section 4.1).

    Drawn again until every silo has `min_partition_size` documents. With `self_balancing`, silos that have more than their average get none of the
    labels that are still to come.
    """
    if not alpha > 0:
        raise UserError(f"the option alpha of DirichletPartitioner is {alpha}: give a number above 0")
    draw = np.random.RandomState(seed)
    shuffled = labels[order]
    members = [order[shuffled == label] for label in np.unique(labels)]
    for _ in range(_MAX_DRAWS):
        silos = np.empty(len(order), np.int64)
        sizes = np.zeros(num_partitions, np.int64)
        for documents in members:
            shares = draw.dirichlet(np.full(num_partitions, alpha))
            if self_balancing:
                shares = _balanced(shares, sizes, len(order) / num_partitions)
            ends = (np.cumsum(shares) * len(documents)).astype(np.int64)
            ends[-1] = len(documents)
            counts = np.diff(ends, prepend=0)
            silos[documents] = np.repeat(np.arange(num_partitions), counts)
            sizes += counts
        if sizes.min() >= min_partition_size:
            return silos
    raise UserError(
        f"{_MAX_DRAWS} draws with alpha={alpha} left some silo with fewer than {min_partition_size} documents (the last one with {sizes.min()}): "
        "give a larger alpha, a smaller min_partition_size, or fewer silos"
    )


PARTITIONERS: Mapping[str, Callable[..., Int64]] = {
    "IidPartitioner": iid,
    "DirichletPartitioner": dirichlet,
    "LinearPartitioner": linear,
    "SquarePartitioner": square,
    "ExponentialPartitioner": exponential,
    "NaturalIdPartitioner": natural_id,
}
"""By the names of flwr-datasets."""


def _balanced(shares: Float64, sizes: Int64, average: float) -> Float64:
    """Shares without those of silos that have more than the average; in equal parts where nothing would be left of them."""
    is_open = sizes <= average
    opened = np.where(is_open, shares, 0.0)
    if opened.sum() == 0:
        opened = is_open.astype(np.float64)
    balanced: Float64 = opened / opened.sum()
    return balanced


def _by_size(order: Int64, units: Float64) -> Int64:
    """In proportion to `units`, rounded down; what that leaves goes to the last silo."""
    sizes = (units / units.sum() * len(order)).astype(np.int64)
    sizes[-1] += len(order) - sizes.sum()
    if sizes.min() < 1:
        raise UserError(
            f"of {len(order)} documents silo {int(sizes.argmin())} would get none: give more documents or fewer silos"
        )
    return _dealt(order, sizes.tolist())


def _dealt(order: Int64, sizes: Sequence[int]) -> Int64:
    """The first sizes[0] documents of the order to silo 0, and so on."""
    silos = np.empty(len(order), np.int64)
    silos[order] = np.repeat(np.arange(len(sizes)), sizes)
    return silos
