"""What goes up (events) and what comes down (control) between a rank and whoever runs it.

Heartbeats, progress, goodput and the ledger are readings of the one event stream. Kinds, and what `data` holds:

| kind         | from          | data |
|---|---|---|
| `phase`      | every rank    | a phase begins: a sign of life; `phase` is one of `PHASES`. For `step`, sent at the end of each step with its duration, `own_s` (see own_time), `data_s` and `stall_s` (see waits), now and then `memory_bytes` (see memory_use) |
| `step`       | rank 0        | loss, grad_norm, learning_rate, tokens, tokens_per_second, mfu, mfu_causal, own_s, data_s, stall_s, where there is some compile_s and paging_s (see waits), now and then memory_bytes, `ledger` (a LedgerEntry) |
| `eval`       | rank 0        | loss, tokens |
| `snapshot`   | every rank    | its state is in memory: `path` of the buffer (None: none was free), `durable`, `replicate`: where it is to go |
| `replicated` | agent         | the node's buddy has its snapshots of a step: `checkpoint`, `world_size`, `message` (why not; else empty) |
| `written`    | agent or rank | a rank file is in storage: a commit.Written, with `results`, those of the newest steps, which nobody may have heard |
| `unwritten`  | agent or rank | it will not be: `checkpoint`, `message` |
| `checkpoint` | who commits   | a manifest was written: `bytes`, `path` |
| `recalled`   | rank 0, agent | `events`: results that a snapshot, or an agent before, remembered, should nobody have heard them |
| `incident`   | anyone        | `class`, `message`: something a user should know |
| `info`       | anyone        | `message`: arithmetic, sizes, what was loaded |
| `loaded`     | rank 0        | the state was restored: step, from_attempt, digests verified |
| `finished`   | rank 0        | the last step is done and durable: step |
| `stopped`    | rank 0        | a stop was obeyed: the durable step |
| `error`      | a rank        | `type`, `message`, `traceback`: the exception that ends it; `user` true for a UserError |
| `state`      | driver        | the controller's state: `from`, `to`, `why` |
| `claimed`    | driver        | an attempt begins: `start_step`, `world_size`, `from_memory`, and its whole `quarantine` |
| `verdict`    | driver        | class, action, sentence |
| `environment` | driver       | what the driver's host is: processor, cores, memory, versions |
| `plan`       | driver        | what a rank is planned to take at its peak: `memory_bytes` of the host, `device_bytes` of a GPU, `parts`, `moment`, `ranks`; see launch/planning/rank_plan.py |
| `prepare`    | driver        | data preparation: `stage`, `fraction` in [0, 1], `detail`, at last with what it came to |
| `skipped`    | rank 0        | `message`: an fp16 step that overflowed and was not applied |
| `ranks`      | recorder      | sums since the last one over the steps of each of `ranks`: `steps`, `own_s`, `data_s`, `stall_s`; so far in the attempt the most `memory_bytes` and `device_bytes`, and `snapshot_step`, the newest in all ranks' memory |
| `profile`    | a rank        | it has traced `steps` [first, last]: `path` in the run folder, `ops`, `memory` (see profiler) |
| `exit`       | node agent    | code, signal, pid, node and what the kernel said: a rank process has gone |
| `node_lost`  | driver        | node, host, node_rank, message: its agent does not answer any more; `announced`: it was said that it would be taken away |
| `heartbeat`  | driver        | every 10 s: the driver is alive |
| `export`     | driver        | `path`, dtype |
| `outer`      | rank 0        | a silo took part in an outer step: `round`, `state` (see trainer/silos/wire.py), `sent_bytes` by kind, `received_bytes`, `tokens`, `codec`; with `silos.privacy` in `privacy` the epsilon and delta of all that it has let out, and how many `releases` that was; with `silos.overlap_steps` it is the merge, `handed_over_step` the step at whose end the delta was made, `handed_over_at` and `arrived_at` when rank 0's thread took it over and had all back (Unix s) |
| `round`      | driver        | an outer step of all silos: `round`, `is_step` (false: it changed nothing), `tokens` by silo whose delta is in it, `missing`, `rejected` (why, by silo), `delta_bytes` by silo |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

DRIVER = -1
"""The `rank` of events that the driver makes."""

RESULTS = frozenset(("step", "eval"))
"""Kinds that tell what a step came to: rank 0 may hold them back, and metrics/ has them."""

PHASES = ("import", "init", "build", "load", "step", "profile", "outer", "eval", "snapshot", "save", "end")


@dataclass(frozen=True)
class Event:
    """`start` is Unix time in seconds; `duration_s` is 0 for an instant; `rank` is DRIVER (-1) for the driver."""

    kind: str
    attempt: int
    rank: int
    step: int
    phase: str
    start: float
    duration_s: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line; NaN and infinity are written as JavaScript does (`NaN`), which Python reads back."""
        return json.dumps(vars(self), separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Event:
        return Event(**json.loads(line))


Action = Literal["none", "snapshot", "replicate", "save", "stop"]
ACTIONS: tuple[Action, ...] = ("none", "snapshot", "replicate", "save", "stop")


@dataclass(frozen=True)
class Control:
    """What rank 0 is asked to do. All ranks do it at the end of the same step. `replicate` is a snapshot of which the nodes' buddies
    get a copy, `save` one that goes to storage."""

    action: Action = "none"
    settled_step: int = 0
    """The newest step whose save is durable, or was given up: the next may begin."""
    replicated_step: int = 0
    """The newest step that all buddies have, or that was given up: the next may be sent."""

    @property
    def code(self) -> int:
        """Larger is stronger, so the largest over ranks is what everyone obeys."""
        return ACTIONS.index(self.action)

    @staticmethod
    def from_code(code: int) -> Control:
        return Control(action=ACTIONS[code])


Report = Callable[[Event], None]
ControlSource = Callable[[], Control]
