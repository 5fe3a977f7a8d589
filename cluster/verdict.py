"""From evidence to a class and one sentence for the user. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zerofleet.cluster.stacks import RankStack
from zerofleet.trainer.events import PHASES, Event

Class = Literal["user bug", "host OOM", "device OOM", "node", "network", "preemption", "storage", "data", "hang"]
TIME_LIMIT = "time limit"
"""The class of a verdict that no failure has led to: the run has had its hours."""

_BY_TYPE: dict[str, Class] = {
    "CheckpointUnusable": "storage",
    "StorageError": "storage",
    "DataError": "data",
    "NonFiniteStep": "data",
    "LossSpike": "data",
    "ReplicaDivergence": "node",
    "WrongProbe": "node",
    "WrongResult": "node",
    "SnapshotUnreachable": "network",
}

_DEVICE_OOM = ("OutOfMemoryError", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_NETWORK = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket Timeout",
    "Timed out waiting",
    "NCCL error",
    "DistBackendError",
    "DistNetworkError",
    "gloo",
    "ProcessGroup",
    "recvBytes",
    "sendBytes",
)
_STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for a disk or a device"}
_ORDER = {phase: number for number, phase in enumerate(PHASES)} | {"snapshot": PHASES.index("save")}
"""After a step come its evaluation and then its save or its snapshot: one or the other."""
_HOST_OOM = ("MemoryError", "Cannot allocate memory", "DefaultCPUAllocator", "std::bad_alloc")


def progress(step: int, phase: str) -> tuple[int, int]:
    """How far a rank had got, to be compared with other ranks."""
    return step, _ORDER.get(phase, -1)


@dataclass(frozen=True)
class Place:
    """Where a rank was when it was last heard of: its node, phase, and the newest step that it had done."""

    node: str = ""
    phase: str = ""
    step: int = 0
    had_state: bool = False
    """Whether it had begun to load its state, and thus built its model."""

    @property
    def progress(self) -> tuple[int, int]:
        return progress(self.step, self.phase)


@dataclass(frozen=True)
class Evidence:
    """What ended an attempt. `events` are its errors, exits and lost nodes, in the order they were heard."""

    events: tuple[Event, ...]
    silent: tuple[tuple[int, str, float], ...] = ()
    """(rank, phase, seconds of silence) of ranks that gave no sign of life for longer than they may."""
    late: str = ""
    """What did not happen within its time limit, when that is the reason."""
    places: dict[int, Place] = field(default_factory=dict)
    """By rank."""
    stacks: Mapping[int, RankStack] = field(default_factory=dict)
    """What the ranks were doing when somebody had been silent for too long, by rank; of agents that answered."""


@dataclass(frozen=True)
class BadStep:
    """A step that gave a non-finite gradient, or a loss spike: then `loss` is its loss. Equal ones gave the same twice."""

    step: int
    ranges: tuple[tuple[int, int], ...]
    """The sample positions that it was fed."""
    loss: float | None = None


@dataclass(frozen=True)
class Verdict:
    """`rank` and `node` are where it began, when that is known. `frames` tells one traceback from another."""

    kind: Class
    sentence: str
    rank: int | None = None
    node: str | None = None
    frames: tuple[str, ...] = ()
    user_error: str = ""
    """The message of a UserError: the user has to act, trying again cannot help."""
    bad_step: BadStep | None = None
    checkpoint: tuple[int, int] | None = None
    """(step, attempt) of a checkpoint that the ranks found unusable."""
    unreachable: tuple[int, int] | None = None
    """(step, attempt) of snapshots of which a part could not be read from the node that has it."""
    suspects: tuple[str, ...] = ()
    """Nodes whose ranks were proved to compute or to keep something wrong."""
    had_state: bool = False
    """Whether the rank had built its model: what it takes beyond that grows with the micro-batch."""


LOST_MEANWHILE = Verdict("node", "a node was lost before its ranks were started")


def is_echo(event: Event) -> bool:
    """Whether an event only says that another rank has gone: a broken connection, or a death that the agent inflicted."""
    if event.kind == "error":
        return not event.data.get("user") and _is_broken_connection(f"{event.data['type']}: {event.data['message']}")
    return event.kind == "exit" and (bool(event.data["killed"]) or event.data["signal"] is None)


def is_failure(event: Event) -> bool:
    """Whether an event ends an attempt."""
    if event.kind == "exit":
        return not event.data["killed"] and (event.data["code"] != 0)
    return event.kind in ("error", "node_lost")


def judge(evidence: Evidence) -> Verdict:
    """The first cause: what is not an echo of another rank's end comes before what is."""
    failures = [event for event in evidence.events if is_failure(event)]
    causes = [event for event in failures if not is_echo(event)]
    if checkpoint := _first(causes, "error", "checkpoint"):
        return _of_error(checkpoint, evidence)
    if user := next((event for event in causes if event.kind == "error" and event.data.get("user")), None):
        return _of_error(user, evidence)
    if causes:
        return _of_cause(causes[0], evidence)
    if evidence.silent:
        return _of_silence(evidence)
    if evidence.late:
        return Verdict("hang", evidence.late)
    if errors := [event for event in failures if event.kind == "error"]:
        return _of_error(errors[0], evidence)
    assert failures, "there is nothing to judge"
    return _of_exit(failures[0], evidence)


def _first(events: Sequence[Event], kind: str, key: str) -> Event | None:
    return next((event for event in events if event.kind == kind and event.data.get(key)), None)


def _of_cause(event: Event, evidence: Evidence) -> Verdict:
    if event.kind == "node_lost":
        return _of_lost_node(event.data)
    return _of_error(event, evidence) if event.kind == "error" else _of_exit(event, evidence)


def _of_lost_node(data: dict[str, Any]) -> Verdict:
    """`announced`: somebody had said that it would be taken away, and its ranks had not left it yet."""
    node, host, message = data["node"], data.get("host", data["node"]), data["message"]
    where = f"node {node}" + (f" (host {host})" if host != node else "")
    if data.get("announced"):
        return Verdict(
            "preemption", f"{where} was taken away, as announced, before its ranks had left it: {message}", node=node
        )
    return Verdict("node", f"{where} was lost: {message}", node=node)


def _of_error(event: Event, evidence: Evidence) -> Verdict:
    data: dict[str, Any] = event.data
    text = f"{data['type']}: {data['message']}"
    found, bad, away = data.get("checkpoint"), data.get("bad_step"), data.get("unreachable")
    suspects = data.get("suspects") or []
    rank = suspects[0] if suspects else event.rank  # every rank raises it, the odd ones included
    return Verdict(
        kind=_class_of_error(data["type"], text),
        sentence=f"{_where(event.rank, evidence)} ended with {text}",
        rank=rank,
        node=_node(rank, evidence),
        frames=() if away else tuple(data.get("frames", ())),  # no bug, however often it is met at the same place
        user_error=data["message"] if data.get("user") else "",
        bad_step=BadStep(bad["step"], tuple((start, end) for start, end in bad["ranges"]), bad["loss"])
        if bad
        else None,
        checkpoint=(found["step"], found["attempt"]) if found else None,
        unreachable=(away["step"], away["attempt"]) if away else None,
        suspects=tuple(dict.fromkeys(node for rank in suspects if (node := _node(rank, evidence)))),
        had_state=_had_state(event.rank, evidence),
    )


def _class_of_error(name: str, text: str) -> Class:
    if name in _BY_TYPE:
        return _BY_TYPE[name]
    if any(word in text for word in _DEVICE_OOM):
        return "device OOM"
    if any(word in text for word in _HOST_OOM):
        return "host OOM"
    if "No space left on device" in text:
        return "storage"
    return "network" if _is_broken_connection(text) else "user bug"


def _is_broken_connection(text: str) -> bool:
    return any(word.lower() in text.lower() for word in _NETWORK)


def _of_exit(event: Event, evidence: Evidence) -> Verdict:
    data, where, node = event.data, _where(event.rank, evidence), _node(event.rank, evidence)
    if data.get("zygote_log") is not None:
        tail = (data["zygote_log"].strip().splitlines() or ["it said nothing"])[-1]
        sentence = (
            f"the process that ranks are forked from ended on node {node} ({_ending(data['zygote_code'])}): {tail}"
        )
        return Verdict("user bug", sentence, event.rank, node, frames=(sentence,))
    number = data["signal"]
    if number is None:
        return Verdict("user bug", f"{where} ended with exit code {data['code']} and said nothing", event.rank, node)
    if number == signal.SIGKILL and data.get("oom_kills"):
        sentence = (
            f"{where} was killed by the kernel: the host ran out of memory ({data['memory_bytes'] / 2**30:.1f} GiB in all). "
            "Lower train.micro_batch_size (or let it be halved: train.min_micro_batch_size) or cluster.ranks_per_node, or raise train.zero_stage"
        )
        return Verdict("host OOM", sentence, event.rank, node, had_state=_had_state(event.rank, evidence))
    if number == signal.SIGKILL:
        return Verdict("node", f"{where} was killed (SIGKILL) by something outside the run", event.rank, node)
    if number == signal.SIGTERM:
        return Verdict("preemption", f"{where} was asked to end (SIGTERM)", event.rank, node)
    name = signal.Signals(number).name
    return Verdict("user bug", f"{where} crashed with {name}", event.rank, node, frames=(f"signal {name}",))


def _of_silence(evidence: Evidence) -> Verdict:
    """All ranks fall silent when one does: they wait for it in a collective. Who does not wait is the culprit, else who got least far.

    In this order: a process that the kernel does not let run; one whose Python stack is outside any collective; one whose stack is
    unknown; the least progress, then the longest silence.
    """
    frozen, stacks = _frozen(evidence), evidence.stacks
    seconds = {rank: silence_s for rank, _, silence_s in evidence.silent}
    busy = [rank for rank in seconds if rank in stacks and stacks[rank].is_in_collective is False]
    unknown = [rank for rank in seconds if rank not in stacks or stacks[rank].is_in_collective is None]
    suspects = list(frozen) or busy or unknown or list(seconds)
    if not frozen and not busy and not unknown and len({_progress(rank, evidence) for rank in suspects}) == 1:
        return Verdict("network", _all_wait(seconds))
    rank = min(suspects, key=lambda rank: (_progress(rank, evidence), -seconds.get(rank, 0.0)))
    silence = f"gave no sign of life for {seconds.get(rank, max(seconds.values())):.1f} s"
    state = f", {frozen[rank]}" if rank in frozen else ""
    at = f", in {stacks[rank].innermost}" if rank in stacks and stacks[rank].innermost and not state else ""
    others = f"; {len(seconds)} ranks are silent" if len(seconds) > 1 else ""
    waiting = sum(bool(stack.is_in_collective) for number, stack in stacks.items() if number != rank)
    victims = f", {waiting} of them wait for others in a collective" if waiting else ""
    sentence = f"{_where(rank, evidence)} {silence}{state}{at}{others}{victims}"
    return Verdict("hang", sentence, rank, _node(rank, evidence))


def _frozen(evidence: Evidence) -> dict[int, str]:
    """The ranks that the kernel did not let run, before they were killed, and why."""
    letters = {rank: stack.state for rank, stack in evidence.stacks.items()}
    for event in evidence.events:
        if event.kind == "exit" and event.data.get("state_before") in _STATES:
            letters.setdefault(event.rank, event.data["state_before"])
    return {rank: _STATES[letter] for rank, letter in letters.items() if letter in _STATES}


def _progress(rank: int, evidence: Evidence) -> tuple[int, int]:
    return evidence.places.get(rank, Place()).progress


def _all_wait(seconds: Mapping[int, float]) -> str:
    return (
        f"all {len(seconds)} ranks wait for each other in a collective, for {max(seconds.values()):.1f} s: what one of them sent did not "
        "arrive. Look at the network between the nodes"
    )


def _ending(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _node(rank: int, evidence: Evidence) -> str | None:
    place = evidence.places.get(rank)
    return place.node or None if place else None


def _had_state(rank: int, evidence: Evidence) -> bool:
    return evidence.places.get(rank, Place()).had_state


def _where(rank: int, evidence: Evidence) -> str:
    place = evidence.places.get(rank)
    if place is None:
        return f"rank {rank}"
    node = f" on node {place.node}" if place.node else ""
    return f"rank {rank}{node}, in phase {place.phase} after step {place.step},"
