"""Joins what a run's driver says of a lost node with what Kubernetes says of the pod that was there: one verdict.

The driver's pods may not ask the API server; whoever follows the run from outside may, and has both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from zerofleet.k8s.names import WORKER
from zerofleet.k8s.observer import Observed, component
from zerofleet.k8s.pod_loss import Cause, PodLoss, loss_of, restarts, vanished
from zerofleet.trainer.events import DRIVER, Event

PATIENCE_S = 5.0
"""How long a verdict about a node is held back for what the API server says of its pod: the driver may notice first."""
REMEMBERED_S = 60.0
"""How long after its pod is gone a loss may explain a verdict: later ones have other causes."""
_JOINED = frozenset(("node", "preemption", "network", "hang"))
"""Classes of verdicts that the loss of a pod may be behind."""
_OF_ANOTHER = frozenset(("network", "hang"))
"""Classes that may name the node of a rank that waited for the one which was lost."""
_CLASS: dict[Cause, str] = {"OOM-killed": "host OOM", "node gone": "node", "ended": "node"}
"""Of a verdict whose cause is known; all others were taken away by somebody: a preemption."""


class PodVerdicts:
    """`see` what the API server holds, then `join` the events of the driver's log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pods: dict[str, dict[str, Any]] = {}
        """The workers as they were seen last, by uid."""
        self._told: set[tuple[str, int]] = set()
        self._losses: dict[str, tuple[PodLoss, float]] = {}
        """Those that no verdict has been joined with, by uid, and when their pod was there last."""
        self._held: list[Event] = []
        self._held_since = 0.0

    def see(self, observed: Observed) -> list[Event]:
        """An incident for each pod that was lost since."""
        if observed.status.deployment != "Running":
            self._pods.clear()  # the job is over, or goes to another cluster: its pods go with it
            return []
        now, pods = self._clock(), {pod["metadata"]["uid"]: pod for pod in observed.pods if component(pod) == WORKER}
        found = {uid: loss for uid, pod in pods.items() if (loss := loss_of(pod)) and self._is_news(uid, pod)}
        gone = {uid: pod for uid, pod in self._pods.items() if uid not in pods}
        found |= {uid: vanished(pod) for uid, pod in gone.items() if self._is_news(uid, pod)}
        self._pods = pods
        self._losses |= {uid: (loss, now) for uid, loss in found.items()}
        for uid, (loss, last) in [*self._losses.items()]:
            if uid in gone or pods.get(uid, {}).get("metadata", {}).get("deletionTimestamp"):
                self._losses[uid] = loss, now
            elif now - last > REMEMBERED_S:
                del self._losses[uid]
        return [_incident(loss) for loss in found.values()]

    def _is_news(self, uid: str, pod: dict[str, Any]) -> bool:
        """Once for each life of its container."""
        key = uid, restarts(pod)
        is_news = key not in self._told
        self._told.add(key)
        return is_news

    def join(self, events: Sequence[Event], is_over: bool = False) -> list[Event]:
        """Those of `events`, and of what was held back, that can be told now; all of them when the run `is_over`."""
        waiting, self._held = [*self._held, *events], []
        told: list[Event] = []
        while waiting:
            event = waiting[0]
            if _is_about_node(event):
                loss = self._behind(event)
                if loss is None and not is_over and self._waits(event):
                    self._held = waiting
                    return told
                if loss is not None:
                    event = joined(event, loss)
            self._held_since = 0.0
            told.append(event)
            waiting = waiting[1:]
        return told

    def _behind(self, verdict: Event) -> PodLoss | None:
        """The loss that explains it, which explains no other then."""
        at_node = [uid for uid, (loss, _) in self._losses.items() if loss.node == verdict.data["node"]]
        others = [*self._losses] if verdict.data["class"] in _OF_ANOTHER else []
        chosen = next(iter([*at_node, *others]), None)
        return self._losses.pop(chosen)[0] if chosen is not None else None

    def _waits(self, event: Event) -> bool:
        self._held_since = self._held_since or self._clock()
        return self._clock() - self._held_since < PATIENCE_S


def _is_about_node(event: Event) -> bool:
    return event.kind == "verdict" and bool(event.data.get("node")) and event.data["class"] in _JOINED


def joined(verdict: Event, loss: PodLoss) -> Event:
    """The verdict with the cause that only Kubernetes knows: its class, sentence, and the pod for machines."""
    sentence = f"{loss.sentence}. Seen by the run: {verdict.data['sentence']}"
    changed = {"class": _CLASS.get(loss.cause, "preemption"), "sentence": sentence, "pod": _fields(loss)}
    return replace(verdict, data={**verdict.data, **changed})


def _incident(loss: PodLoss) -> Event:
    data = {"class": "node", "message": loss.sentence, "node": loss.node, "pod": _fields(loss)}
    return Event("incident", 0, DRIVER, 0, "end", time.time(), data=data)


def _fields(loss: PodLoss) -> dict[str, str]:
    return {"name": loss.pod, "node": loss.node, "cause": loss.cause}
