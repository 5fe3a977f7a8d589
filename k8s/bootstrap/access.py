"""Who may do what: the account of the pods, and the role of whoever submits."""

from __future__ import annotations

from collections.abc import Iterator

from zerofleet.k8s.bootstrap.platform_object import Document, platform_object
from zerofleet.k8s.permissions import helpful, needed, role_rules
from zerofleet.k8s.profile import Profile

SUBMITTER = "zerofleet-submitter"
"""Name of the Role, and of what binds it."""
_GROUP = "rbac.authorization.k8s.io"


def access(profile: Profile) -> Iterator[Document]:
    """The pods' account has no rights at all: with autoscaling KubeRay binds it to a Role of its own making, per cluster."""
    if account := profile.security.service_account:
        yield platform_object(profile, "v1", "ServiceAccount", account, automountServiceAccountToken=False)
    rules = role_rules([*needed(profile), *helpful(profile)])
    yield platform_object(profile, f"{_GROUP}/v1", "Role", SUBMITTER, rules=rules)
    if groups := profile.security.submitter_groups:
        yield platform_object(
            profile,
            f"{_GROUP}/v1",
            "RoleBinding",
            SUBMITTER,
            subjects=[{"apiGroup": _GROUP, "kind": "Group", "name": group} for group in groups],
            roleRef={"apiGroup": _GROUP, "kind": "Role", "name": SUBMITTER},
        )
