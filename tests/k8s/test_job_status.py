"""When a RayJob is over."""

from __future__ import annotations

import pytest

from zerofleet.k8s.job_status import RETRY_SETTLE_S, job_status


def status(deployment: str, retries: int = 0, **fields):
    return job_status({"spec": {"backoffLimit": retries}, "status": {"jobDeploymentStatus": deployment, **fields}})


@pytest.mark.parametrize(
    "deployment", ["", "Initializing", "Waiting", "Running", "Suspending", "Suspended", "Retrying"]
)
def test_a_job_goes_on(deployment):
    assert not status(deployment).is_over(1000.0)


@pytest.mark.parametrize("deployment", ["Complete", "ValidationFailed", "Failed"])
def test_a_job_is_over(deployment):
    assert status(deployment).is_over(0.0)


def test_a_failure_with_tries_left_is_final_only_when_nothing_follows():
    failed = status("Failed", retries=2, failed=1, reason="AppFailed")
    assert not failed.is_over(0.0) and not failed.is_over(RETRY_SETTLE_S - 1) and failed.is_over(RETRY_SETTLE_S)
    assert status("Failed", retries=2, failed=3).is_over(0.0)
    assert status("Failed", retries=2, failed=1, reason="DeadlineExceeded").is_over(0.0)


def test_a_job_that_nobody_has_looked_at():
    fresh = job_status({"spec": {"suspend": True}})
    assert fresh.is_suspended and not fresh.has_begun and fresh.words == "not looked at by KubeRay"


def test_running_is_said_of_a_job_that_ray_may_not_have_yet():
    assert not status("Running").has_begun and status("Running", jobStatus="PENDING").has_begun
    assert status("Complete").has_begun and status("Failed").has_begun


def test_words_are_one_line():
    assert status("Failed", reason="AppFailed", message="a\n  b").words == "Failed (AppFailed): a b"
    assert (
        status("ValidationFailed", reason="ValidationFailed", message="name is too long").words
        == "ValidationFailed: name is too long"
    )
