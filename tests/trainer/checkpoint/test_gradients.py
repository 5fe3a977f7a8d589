"""On a model without ranks; tests/integration/test_silo_options.py has the ZeRO stages."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from zerofleet.trainer.checkpoint.adapters import Slot
from zerofleet.trainer.checkpoint.fragments import MASTER
from zerofleet.trainer.checkpoint.gradients import add_to_gradients
from zerofleet.trainer.silos.strategies import proximal_gradient


def test_the_proximal_term_is_the_gradient_of_its_share_of_the_loss():
    """Li et al. 2020, equation 2: the loss plus mu/2 ||w - w_outer||^2, by autograd."""
    torch.manual_seed(0)
    model, other, inputs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.randn(4, 3)
    outer = {name: torch.randn_like(p).view(-1) for name, p in model.named_parameters()}
    other.load_state_dict(model.state_dict())
    model(inputs).square().sum().backward()
    slots = {
        name: Slot(name, MASTER, 0, p.data.view(-1), 0, p.numel())
        for name, p in sorted(model.named_parameters(), reverse=True)
    }
    pulls = {name: proximal_gradient(slot.view, outer[name], 0.3) for name, slot in slots.items()}
    add_to_gradients(SimpleNamespace(module=model, optimizer=None), slots, pulls)
    distance = sum((p.view(-1) - outer[name]).square().sum() for name, p in other.named_parameters())
    (other(inputs).square().sum() + 0.15 * distance).backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
