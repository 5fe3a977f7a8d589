"""What a RayJob's status says: whether it is over, and how it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RETRY_SETTLE_S = 15.0
"""How long a failed job that may be started again is given to become `Retrying`."""
_NO_RETRY = frozenset(("DeadlineExceeded",))
"""Reasons of a failure after which KubeRay does not try again."""


@dataclass(frozen=True)
class JobStatus:
    """`deployment` and `job` are KubeRay's jobDeploymentStatus and jobStatus, empty before its operator has looked."""

    deployment: str = ""
    job: str = ""
    reason: str = ""
    message: str = ""
    cluster: str = ""
    """Name of its RayCluster."""
    failed: int = 0
    """Clusters that it failed on."""
    retries: int = 0
    """backoffLimit."""
    is_suspended: bool = False
    """By its spec: a queue's doing."""

    @property
    def has_begun(self) -> bool:
        """Whether Ray is known to have the job. `Running` does not say so: KubeRay says that of a submitter that waits for a node, too."""
        return self.deployment in ("Complete", "Failed") or bool(self.job)

    @property
    def may_be_retried(self) -> bool:
        """Whether KubeRay starts a job anew that has failed."""
        return self.failed <= self.retries and self.retries > 0 and self.reason not in _NO_RETRY

    def is_over(self, unchanged_s: float) -> bool:
        """Whether nothing more happens to it; `unchanged_s` is how long its status has been this one.

        KubeRay's own notion of terminal lacks ValidationFailed. `Failed` is followed by `Retrying` while there are tries left.
        """
        if self.deployment == "Failed":
            return not self.may_be_retried or unchanged_s >= RETRY_SETTLE_S
        return self.deployment in ("Complete", "ValidationFailed")

    @property
    def words(self) -> str:
        """One line: `Failed (AppFailed): ...`."""
        reason = f" ({self.reason})" if self.reason and self.reason != self.deployment else ""
        message = " ".join(self.message.split())
        return f"{self.deployment or 'not looked at by KubeRay'}{reason}" + (f": {message}" if message else "")


def job_status(ray_job: Mapping[str, Any]) -> JobStatus:
    status, spec = ray_job.get("status") or {}, ray_job.get("spec") or {}
    return JobStatus(
        deployment=status.get("jobDeploymentStatus") or "",
        job=status.get("jobStatus") or "",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        cluster=status.get("rayClusterName") or "",
        failed=int(status.get("failed") or 0),
        retries=int(spec.get("backoffLimit") or 0),
        is_suspended=bool(spec.get("suspend")),
    )
