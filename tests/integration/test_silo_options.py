"""What silos may agree on besides the outer strategy: FedProx's inner steps, means that hostile silos cannot move."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.ranks import Plan
from tests.support.silos import Silos

pytestmark = [pytest.mark.integration, pytest.mark.further, pytest.mark.timeout(500)]

MU = 30.0
"""Far above any sensible one, so that its effect is not rounding."""


def inner_steps(folder, corpus, cache, world_size: int, stage: int, mu: float, **changes) -> dict[str, list[float]]:
    """Losses and gradient norms of a silo that is alone: its outer step gives it the mean of its own weights."""
    silos = Silos(folder, corpus, cache, quorum=1, names="a", strategy="fedavg", silo={"proximal_mu": mu})
    found = silos.run("a", world_size, stage, train__gradient_clipping=0.5, **changes)
    silos.close()
    assert not found.errors, found.errors
    return {key: [event.data[key] for event in found.of("step")] for key in ("loss", "grad_norm")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_corpus, tiny_cache):
    """ZeRO-0 on one rank, where a gradient is `parameter.grad`."""
    return inner_steps(tmp_path_factory.mktemp("reference"), tiny_corpus, tiny_cache, 1, 0, MU)


@pytest.mark.parametrize(("world_size", "stage"), [(2, 0), (2, 1), (2, 2), (1, 3), (2, 3)])
def test_fedprox_is_the_same_in_every_stage(tmp_path, tiny_corpus, tiny_cache, reference, world_size, stage):
    """The term is part of the gradient that is clipped, and so of the norm."""
    found = inner_steps(tmp_path, tiny_corpus, tiny_cache, world_size, stage, MU)
    np.testing.assert_allclose(found["loss"], reference["loss"], rtol=2e-4)
    np.testing.assert_allclose(found["grad_norm"], reference["grad_norm"], rtol=2e-3)


def test_fedprox_pulls_from_the_second_inner_step_of_a_round_on(tmp_path, tiny_corpus, tiny_cache, reference):
    """In the first one the weights are the outer ones; norms tell the pull of the second one, losses that of the steps after it."""
    plain = inner_steps(tmp_path, tiny_corpus, tiny_cache, 1, 0, 0.0)
    assert plain["loss"][:2] == reference["loss"][:2] and plain["loss"][2] != reference["loss"][2]
    assert plain["grad_norm"][0] == reference["grad_norm"][0]
    assert reference["grad_norm"][1] > 2 * plain["grad_norm"][1]


@pytest.mark.parametrize("stage", [2, 3])
def test_fedprox_with_16_bits(tmp_path, tiny_corpus, tiny_cache, reference, stage):
    """The term is that of the fp32 masters: rounded weights would be further away."""
    found = inner_steps(tmp_path, tiny_corpus, tiny_cache, 2, stage, MU, train__precision="bf16")
    np.testing.assert_allclose(found["grad_norm"], reference["grad_norm"], rtol=5e-2)


LAST = 16


def last_loss(folder, corpus, cache, aggregation: str, names: str, faulty: str = "") -> float:
    """Mean over the honest silos of the last round's losses."""
    agreed = {"aggregation": aggregation}
    silos = Silos(folder, corpus, cache, names=names, quorum=len(names), strategy="fedavg", agreed=agreed)
    config = silos.config
    silos.config = lambda name, stage: config(name, stage, train__steps=LAST)  # type: ignore[method-assign]
    found = silos.all(**{name: (1, 1, Plan(delta_fault="garbage" if name in faulty else None)) for name in names})
    silos.close()
    assert not any(outcome.errors for outcome in found.values())
    assert [len(data["tokens"]) for data in silos.told("round")] == [len(names)] * (LAST // 2), "nobody was rejected"
    return float(np.mean([found[name].losses()[LAST] for name in names if name not in faulty]))


def test_one_of_five_silos_sends_garbage_of_a_usual_size(tmp_path, tiny_corpus, tiny_cache):
    """Its deltas point the wrong way and are four times as long: they take away all that the others' mean has."""
    honest = last_loss(tmp_path / "honest", tiny_corpus, tiny_cache, "mean", "abcd")
    plain = last_loss(tmp_path / "plain", tiny_corpus, tiny_cache, "mean", "abcde", "e")
    losses = {
        aggregation: last_loss(tmp_path / aggregation, tiny_corpus, tiny_cache, aggregation, "abcde", "e")
        for aggregation in ("trimmed_mean", "median")
    }
    assert plain > 1.2 * honest, (plain, honest)
    for aggregation, loss in losses.items():
        assert abs(loss - honest) < 0.2 * (plain - honest), (aggregation, loss, honest, plain)
