"""Everything that is wrong with a job under a profile, before anything is created: the controllers' own rules, and what pods need."""

from __future__ import annotations

from zerofleet.cluster.config import Finding
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rules.lifecycle import lifecycle
from zerofleet.k8s.rules.monitoring import monitoring
from zerofleet.k8s.rules.naming import naming
from zerofleet.k8s.rules.nodes import nodes
from zerofleet.k8s.rules.security import security
from zerofleet.k8s.workload import Workload


def lint(profile: Profile, workload: Workload) -> list[Finding]:
    """Errors first; each with its reason, numbers and remedy."""
    findings = [
        finding for rule in (naming, nodes, lifecycle, security, monitoring) for finding in rule(profile, workload)
    ]
    return sorted(findings, key=lambda finding: finding.level)
