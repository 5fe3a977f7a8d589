"""Outer steps: against the formulas, against torch, however the parameters are cut, and with options that are wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.strategies import PRESCRIBED_INNER_STEPS, STRATEGIES, load_strategy, proximal_gradient

COUNT = 1001


def arrays(rounds: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    return draw.standard_normal(COUNT, np.float32), [
        draw.standard_normal(COUNT, np.float32) * 0.01 for _ in range(rounds)
    ]


def zeros(strategy) -> dict[str, np.ndarray]:
    return {name: np.zeros(COUNT, np.float32) for name in strategy.moments}


def test_the_mean_of_the_silos_weights_is_fedavg_and_every_step():
    outer, deltas = arrays(2)
    shares = np.float32([0.25, 0.75])
    mean_delta = shares[0] * deltas[0] + shares[1] * deltas[1]
    mean_weights = shares[0] * (outer - deltas[0]) + shares[1] * (outer - deltas[1])
    for name in ("fedavg", "fedprox", "every_step"):
        weights = outer.copy()
        load_strategy(name).step(weights, mean_delta, {})
        np.testing.assert_allclose(weights, mean_weights, atol=1e-6)
    assert PRESCRIBED_INNER_STEPS == {"every_step": 1}


def test_the_server_learning_rate_scales_the_step():
    weights, (delta,) = arrays(1)
    expected = weights - np.float32(0.5) * delta
    load_strategy("fedavg", {"lr": 0.5}).step(weights, delta, {})
    np.testing.assert_array_equal(weights, expected)


def test_diloco_is_torchs_nesterov_sgd():
    weights, deltas = arrays(20)
    parameter = torch.nn.Parameter(torch.tensor(weights))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True, foreach=False)
    strategy = load_strategy("diloco")
    moments = zeros(strategy)
    assert strategy.moments == ("momentum",)
    for delta in deltas:
        strategy.step(weights, delta, moments)
        parameter.grad = torch.tensor(delta)
        optimizer.step()
    # torch fuses multiplication and addition where the processor can: the last bit may differ in each of the 20 steps.
    np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=0, atol=20 * 2**-24 * np.abs(weights).max())
    buffer = optimizer.state[parameter]["momentum_buffer"].numpy()
    np.testing.assert_allclose(moments["momentum"], buffer, rtol=0, atol=20 * 2**-24 * np.abs(buffer).max())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_step_is_the_same_however_the_parameters_are_cut(name):
    strategy = load_strategy(name)
    whole, deltas = arrays(3)
    cut, whole_moments, cut_moments = whole.copy(), zeros(strategy), zeros(strategy)
    for delta in deltas:
        kept = delta.copy()
        strategy.step(whole, delta, whole_moments)
        for part in (slice(0, 1), slice(1, 500), slice(500, COUNT)):
            strategy.step(cut[part], delta[part], {key: value[part] for key, value in cut_moments.items()})
        np.testing.assert_array_equal(delta, kept)  # the mean is not the strategy's to change
    np.testing.assert_array_equal(whole, cut)
    for key in whole_moments:
        np.testing.assert_array_equal(whole_moments[key], cut_moments[key])


def heavy_ball(weights, mean_delta, velocity, *, lr=0.5, drag):
    """A strategy of a user's own."""
    velocity *= 1 - drag
    velocity += mean_delta
    weights -= lr * velocity


def test_a_function_of_ones_own_is_a_strategy():
    strategy = load_strategy(f"{__name__}:heavy_ball", {"drag": 0.25})
    assert strategy.moments == ("velocity",) and strategy.options == {"lr": 0.5, "drag": 0.25}
    weights, moments = np.zeros(2, np.float32), {"velocity": np.zeros(2, np.float32)}
    for _ in range(2):
        strategy.step(weights, np.float32([1, 2]), moments)
    np.testing.assert_array_equal(moments["velocity"], np.float32([1.75, 3.5]))
    np.testing.assert_array_equal(weights, np.float32([-1.375, -2.75]))


def test_the_strategy_in_the_documentation_works(tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs/silos.md").read_text()
    (tmp_path / "documented.py").write_text(re.findall(r"```python\n(.*?)```", text, re.S)[0])
    monkeypatch.syspath_prepend(tmp_path)
    strategy = load_strategy("documented:heavy_ball", {"lr": 1.0})
    weights, moments = np.zeros(2, np.float32), {"velocity": np.ones(2, np.float32)}
    strategy.step(weights, np.float32([1, 2]), moments)
    np.testing.assert_allclose(weights, [-1.9, -2.9], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fedadam", {}, "no outer strategy 'fedadam'.*diloco, every_step, fedavg, fedprox.*package.module:function"),
        ("nowhere.at_all:step", {}, "cannot be imported"),
        ("zerofleet.trainer.silos.strategies:missing", {}, "cannot be imported"),
        ("fedavg", {"momentum_factor": 0.9}, "fedavg has no option momentum_factor; it has lr"),
        ("every_step", {"lr": 1.0}, "every_step has no option lr; it has none"),
        (f"{__name__}:heavy_ball", {}, "needs the option drag"),
        ("fedavg", {"lr": 0.0}, "lr is 0"),
        ("fedavg", {"lr": float("nan")}, "lr is nan"),
        ("fedavg", {"lr": "fast"}, "cannot be called with {'lr': 'fast'}"),
        ("diloco", {"momentum_factor": 1.0}, "momentum_factor of diloco is 1.0"),
        ("fedprox", {"mu": -1.0}, "mu of fedprox is -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_run_starts(name, options, said):
    with pytest.raises(UserError, match=said):
        load_strategy(name, options)


def test_the_proximal_gradient_is_that_of_its_penalty():
    outer = torch.randn(50, generator=torch.Generator().manual_seed(0))
    weights = torch.nn.Parameter(outer + 0.1)
    (0.3 / 2 * (weights - outer).square().sum()).backward()
    torch.testing.assert_close(proximal_gradient(weights.detach(), outer, 0.3), weights.grad)
    as_arrays = proximal_gradient(weights.detach().numpy(), outer.numpy(), 0.3)
    np.testing.assert_allclose(as_arrays, weights.grad.numpy(), rtol=1e-6)
