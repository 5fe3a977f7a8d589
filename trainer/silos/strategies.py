"""Outer strategies: what becomes of the outer weights when the silos' deltas have come in.

A delta is what a silo's inner steps took off the outer weights: delta = outer weights - the silo's weights. It points where a
gradient points, so the mean of the silos' deltas is an outer gradient (Reddi et al., "Adaptive Federated Optimization", ICLR 2021),
and a strategy is one step of an optimizer.

A strategy is one function, in place on fp32 arrays of equal shape [count], any contiguous part of the flattened parameters:

    def mine(weights, mean_delta, velocity, *, lr=0.7): ...

Further positional parameters are the strategy's moments: fp32 arrays that begin as zeros and are kept between rounds under these
names. Keyword parameters are its options. It may write to the weights and to the moments only, must treat every element alike
wherever the arrays are cut, and raises UserError for options that make no sense: it is tried on empty arrays when a run starts.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.config import FEDPROX_MU
from zerofleet.trainer.errors import UserError

Float32 = NDArray[np.float32]
Array = TypeVar("Array", bound="Arithmetic")


class Strategy(Protocol):
    """What a run needs of a strategy."""

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the fp32 arrays that it keeps, one element for each weight; they begin as zeros."""
        ...

    def step(self, weights: Float32, mean_delta: Float32, moments: Mapping[str, Float32]) -> None:
        """Takes the outer step in place on `weights` and `moments`, all of the same shape [count]."""
        ...


@dataclass(frozen=True)
class FunctionStrategy:
    """A strategy made of one function, and the options that it is called with, defaults included."""

    function: Callable[..., None]
    moments: tuple[str, ...]
    options: Mapping[str, Any]

    def step(self, weights: Float32, mean_delta: Float32, moments: Mapping[str, Float32]) -> None:
        self.function(weights, mean_delta, *(moments[name] for name in self.moments), **self.options)


def every_step(weights: Float32, mean_delta: Float32) -> None:
    """The plain mean of the silos' weights, after each single inner step: no strategy to save bytes with, but one to compare others with."""
    weights -= mean_delta


def fedavg(weights: Float32, mean_delta: Float32, *, lr: float = 1.0) -> None:
    """w <- w - lr mean_delta. With lr 1 it is w <- sum_k (n_k / n) w_k (McMahan et al., "Communication-Efficient Learning of Deep Networks
    from Decentralized Data", AISTATS 2017, algorithm 1); `lr` is the server's learning rate of Reddi et al."""
    _check_positive(lr=lr)
    weights -= lr * mean_delta


def fedprox(weights: Float32, mean_delta: Float32, *, lr: float = 1.0, mu: float = FEDPROX_MU) -> None:
    """The outer step of fedavg. `mu` belongs to the inner steps: see `proximal_gradient`."""
    if not (mu >= 0 and math.isfinite(mu)):
        raise UserError(f"the option mu of fedprox is {mu}: give a number of at least 0, where 0 is fedavg")
    fedavg(weights, mean_delta, lr=lr)


def diloco(
    weights: Float32, mean_delta: Float32, momentum: Float32, *, lr: float = 0.7, momentum_factor: float = 0.9
) -> None:
    """Nesterov momentum over outer gradients (Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models",
    2023, algorithm 1 and table 5), in the form of torch.optim.SGD(nesterov=True): b <- m b + g; w <- w - lr (g + m b)."""
    _check_positive(lr=lr)
    if not 0 < momentum_factor < 1:
        raise UserError(
            f"the option momentum_factor of diloco is {momentum_factor}: give one above 0 and below 1, or take fedavg"
        )
    momentum *= momentum_factor
    momentum += mean_delta
    update = momentum_factor * momentum
    update += mean_delta
    update *= lr
    weights -= update


STRATEGIES: Mapping[str, Callable[..., None]] = {
    function.__name__: function for function in (diloco, every_step, fedavg, fedprox)
}
PRESCRIBED_INNER_STEPS: Mapping[str, int] = {"every_step": 1}
"""Inner steps between two outer steps, of strategies that leave no choice."""


def load_strategy(name: str, options: Mapping[str, Any] | None = None) -> FunctionStrategy:
    """The strategy `name`, or the function that `package.module:function` names, with its options.

    Raises UserError for a name or an option that there is not, and for an option that the strategy refuses.
    """
    function = STRATEGIES[name] if name in STRATEGIES else _imported(name)
    parameters = inspect.signature(function).parameters.values()
    moments = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))[2:]
    defaults = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
    chosen = {**defaults, **(options or {})}
    unknown = sorted(set(chosen) - set(defaults))
    if unknown:
        raise UserError(
            f"the strategy {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(defaults)) or 'none'}"
        )
    missing = sorted(key for key, value in chosen.items() if value is inspect.Parameter.empty)
    if missing:
        raise UserError(f"the strategy {name} needs the option {', '.join(missing)}")
    strategy = FunctionStrategy(function, moments, chosen)
    nothing = np.empty(0, np.float32)
    try:
        strategy.step(nothing, nothing, {moment: nothing.copy() for moment in moments})
    except TypeError as error:
        raise UserError(f"the strategy {name} cannot be called with {dict(chosen)}: {error}") from error
    return strategy


def _imported(name: str) -> Callable[..., None]:
    module, _, attribute = name.partition(":")
    known = f"the known ones are {', '.join(sorted(STRATEGIES))}; one of your own is named package.module:function"
    if not attribute:
        raise UserError(f"there is no outer strategy {name!r}: {known}")
    try:
        function: Callable[..., None] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the outer strategy {name!r} cannot be imported ({error}): {known}") from error
    return function


def _check_positive(**options: float) -> None:
    for name, value in options.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"the outer strategy's option {name} is {value}: give a finite number above 0")


class Arithmetic(Protocol):
    """A numpy array or a torch tensor."""

    def __sub__(self, other: Any, /) -> Any: ...


def proximal_gradient(weights: Array, outer_weights: Array, mu: float) -> Array:
    """What FedProx adds to the gradient of an inner step: the gradient of mu/2 ||w - w_outer||^2, which is mu (w - w_outer) (Li et al.,
    "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2). Arrays or tensors of any one shape."""
    pull: Array = (weights - outer_weights) * mu
    return pull
