"""Why the API server refuses the pods of a run, from the warnings of whoever tried to create them."""

from __future__ import annotations

import re
from typing import Any

from zerofleet.k8s.reasons.reason import Reason

_WEBHOOK = re.compile(r'admission webhook "([^"]+)" denied the request:?\s*(.*)', re.DOTALL)
_SECURITY = re.compile(r'violates PodSecurity "([^"]+)":?\s*(.*)', re.DOTALL)
_CLOSED = re.compile(r"queue `?[\w-]+`? status is `?(?:Closed|Closing)|queue with state `?Open", re.IGNORECASE)


def refusal_reason(event: dict[str, Any]) -> Reason | None:
    """None for a warning of another kind."""
    message = str(event.get("message") or "")
    about = event.get("involvedObject", {})
    where = f"{about.get('kind', 'object')} {about.get('name', '')}"
    if _CLOSED.search(message):
        return Reason(
            "queue stopped",
            f"the run's queue takes no jobs: {_line(message)}. Ask the platform team to open it, or set another queue.name in the profile",
        )
    if found := _WEBHOOK.search(message):
        return Reason(
            "webhook refusal",
            f"the admission webhook {found[1]} refuses what {where} needs: {_line(found[2]) or 'it does not say why'}. Change the profile so that it "
            "does not, or ask whoever owns the webhook",
        )
    if found := _SECURITY.search(message):
        return Reason(
            "webhook refusal",
            f"the namespace enforces pod security {found[1]}, which a pod of {where} breaks: {_line(found[2])}. Set security.pod_security in the profile "
            "to what the namespace enforces: lint then says what to change",
        )
    if "exceeded quota" in message:
        said = message[message.index("exceeded quota") :]
        return Reason(
            "no quota",
            f"the namespace's ResourceQuota has no room for the pods of {where}: {_line(said)}. Wait until other jobs end, lower cluster.nodes, or ask the "
            "platform team for quota",
        )
    return None


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:397]}..."
