"""Warnings of whoever could not create the run's pods."""

from __future__ import annotations

import pytest

from tests.k8s.objects import event
from zerofleet.k8s.reasons.refusals import refusal_reason


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (
            'admission webhook "validate.kyverno.svc" denied the request: \n\nrequire-labels: no team',
            "webhook refusal",
            "validate.kyverno.svc refuses",
        ),
        (
            'pods "a" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
            "webhook refusal",
            "restricted:latest",
        ),
        (
            'pods "a" is forbidden: exceeded quota: compute, requested: cpu=4, used: cpu=8, limited: cpu=8',
            "no quota",
            "exceeded quota: compute",
        ),
        (
            'admission webhook "validatepodgroup.volcano.sh" denied the request: can only submit PodGroup to queue with state `Open`, queue `q` status is `Closed`',
            "queue stopped",
            "Ask the platform team to open it",
        ),
    ],
)
def test_a_refusal_is_named(message, kind, says):
    found = refusal_reason(event(message))
    assert found is not None and found.kind == kind and says in found.sentence


def test_another_warning_is_no_refusal():
    assert refusal_reason(event("Readiness probe failed")) is None
