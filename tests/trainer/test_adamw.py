"""AdamW with bf16 moments: torch's AdamW up to the rounding of its moments, in half of their memory."""

import math

import pytest
import torch

from zerofleet.trainer.adamw import CHUNK_ELEMENTS, Bf16MomentsAdamW

BETAS, EPS, RATE, DECAY = (0.9, 0.95), 1e-8, 1e-2, 0.1


def trained(optimizer_of, steps: int, elements: int = 1000) -> tuple[torch.Tensor, dict]:
    """Weights and state after `steps` on the same noisy gradients."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(elements, generator=generator))
    optimizer = optimizer_of([{"params": [weights], "weight_decay": DECAY}])
    for _ in range(steps):
        weights.grad = weights.detach() + 0.3 * torch.randn(elements, generator=generator)
        optimizer.step()
    return weights.detach(), optimizer.state[weights]


def ours(groups):
    return Bf16MomentsAdamW(groups, lr=RATE, betas=BETAS, eps=EPS)


def torchs(groups):
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS)


def test_the_first_step_is_torchs():
    """Rounding comes after it: the update is made with what was computed, not with what is stored."""
    (mine, _), (theirs, _) = trained(ours, 1), trained(torchs, 1)
    assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)


def test_a_hundred_steps_stay_near_torchs():
    (start, _), (mine, _), (theirs, _) = trained(torchs, 0), trained(ours, 100), trained(torchs, 100)
    assert (mine - theirs).norm() < 0.01 * (theirs - start).norm()


def test_the_second_moment_follows_gradients_that_grow_and_shrink():
    """Of constant ones it stops short by what is rounded away: half of the last of 8 bits (0.2 to 0.4 %) over 1 - beta2."""
    weights = torch.nn.Parameter(torch.zeros(1))
    optimizer = ours([{"params": [weights]}])
    for size, tolerance in ((1.0, 0.08), (3.0, 0.08), (0.5, 0.08)):
        for _ in range(200):
            weights.grad = torch.full((1,), size)
            optimizer.step()
        assert float(optimizer.state[weights]["exp_avg_sq"]) == pytest.approx(size**2, rel=tolerance)


def test_moments_are_bf16_and_chunks_leave_nothing_out():
    elements = 2 * CHUNK_ELEMENTS + 3
    weights, state = trained(ours, 1, elements)
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    assert bool(state["exp_avg"].ne(0).all()) and float(state["step"]) == 1
    assert torch.allclose(weights, trained(torchs, 1, elements)[0], rtol=1e-6, atol=1e-7)


def test_gradients_of_any_strides_and_parameters_without_one():
    weights, idle = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(1))
    optimizer = ours([{"params": [weights, idle], "weight_decay": DECAY}])
    weights.grad = torch.arange(1.0, 7.0).view(3, 2).t()
    optimizer.step()
    assert torch.allclose(weights, torch.full((2, 3), 1 - RATE * DECAY - RATE), atol=1e-6)
    assert float(idle) == 1.0 and math.isclose(float(optimizer.state[weights]["exp_avg"][0, 1]), 0.3, rel_tol=0.01)
