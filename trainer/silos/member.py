"""One rank of a silo: sends the delta of the fragments that it owns every so many inner steps, and takes the outer weights.

What a silo's state says of rounds: `outer_round`, the round whose weights it began its newest inner steps from, and `outer_step`, the
number of its own steps then. Both are saved with the weights, so a state is never taken for one before or after the outer step.
A silo that joins late, or comes back when its round is no longer kept, goes on from the newest outer weights: its schedule then
counts the steps of the rounds that it missed, its data does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from zerofleet.trainer.checkpoint.adapters import Adapter, Slot
from zerofleet.trainer.checkpoint.fragments import MASTER
from zerofleet.trainer.config import SiloConfig
from zerofleet.trainer.events import Control, ControlSource
from zerofleet.trainer.reporter import Reporter
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.codecs import ErrorFeedback, load_codec
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.wire import SENT, Connection, Server, State, cut
from zerofleet.trainer.world import World

RETRY_S = 1.0
"""Between two tries to reach the outer server."""
ROUND, STEP = "outer_round", "outer_step"
RESIDUAL = "outer_residual"
"""Kind of the fragments that hold what was left out (codecs.ErrorFeedback)."""
_STATES: tuple[State, ...] = ("wait", "done", "late", "rejected")
_NOBODYS = 2**62
"""What ranks say that are not asked: the smallest answer counts."""

Float32 = NDArray[np.float32]


def reserve_residuals(adapter: Adapter, config: SiloConfig | None) -> None:
    """In a silo, room for what its codec leaves out of the deltas, as part of the state that is saved; before anything is saved or loaded."""
    if config is not None and config.codec != "fp32":
        masters = (slot for slot in adapter.slots() if slot.kind == MASTER)
        adapter.extras[RESIDUAL] = {slot.name: torch.zeros(slot.view.numel()) for slot in masters}


@dataclass(frozen=True)
class _Met:
    """What came of something that all ranks did together."""

    is_done: bool
    """False: a stop was asked for before every rank could."""
    asked: Control
    answer: int
    """The smallest of any rank."""


@dataclass
class Member:
    """All methods are collective."""

    config: SiloConfig
    world: World
    life: str
    """Token of the attempt."""
    adapter: Adapter
    device: torch.device
    reporter: Reporter
    control: ControlSource
    settle: Callable[[], None]
    """Returns when nobody reads the weights any more."""
    tokens_of: Callable[[int, int], int]
    """Tokens that the silo is fed in the steps after the one and up to the other."""
    _base: dict[str, Float32] = field(default_factory=dict)
    """By parameter, the outer weights that the inner steps began from, of the elements that this rank sends."""
    _left_out: dict[str, Float32] = field(default_factory=dict)
    """By parameter, the residuals after the delta that is on its way: they count when it does."""
    _is_told_away: bool = False

    def __post_init__(self) -> None:
        hello = {"silo": self.config.name, "life": self.life}
        server = Server.from_env()
        self._connection = Connection(server, {**hello, "rank": self.world.rank, "world_size": self.world.world_size})
        self._told = [0] * (len(SENT) + 1)
        """Bytes of each kind, and received ones, that the last event told of."""

    @property
    def round(self) -> int:
        return self.adapter.counters[ROUND]

    @property
    def is_due(self) -> bool:
        """Whether an outer step comes before the next inner one."""
        step = self.reporter.step
        return step % self.config.interval_steps == 0 and step != self.adapter.counters[STEP]

    def schedule_step(self, step: int) -> int:
        """Where a step lies in the whole run's schedule: beyond `step` in a silo that has missed rounds."""
        return step - self.adapter.counters[STEP] + self.round * self.config.interval_steps

    def begin(self) -> Control:
        """After the state was loaded: finds the outer weights that it belongs to, or takes the newest. Returns what was asked for
        meanwhile; after a stop nothing was begun."""
        had, started = self.adapter.counters.get(ROUND, -1), time.time()
        self.reporter.begin("outer")
        while True:
            met = self._together(lambda: self._start_of(had) if self.world.rank == 0 else _NOBODYS)
            if met.is_done and met.answer == -1:
                met = self._together(self._send_initial)
            if not met.is_done or met.asked.action == "stop":
                return met.asked
            if met.answer >= 0:
                return self._take(met.answer, "joined" if met.answer != had else "resumed", started, 0).asked
            self.reporter.alive("outer")

    def exchange(self) -> Control:
        """The outer step that is due. Returns what was asked for meanwhile; a stop ends the waiting, and then the state is as before."""
        started, planted = time.time(), self.reporter.begin("outer")
        number = self.round + 1
        tokens = self.tokens_of(self.adapter.counters[STEP], self.reporter.step)
        met = self._together(lambda: self._send_delta(number, tokens, planted == "nan"))
        asked, state, target = met.asked, "wait", -1
        while met.is_done and asked.action != "stop" and state == "wait":
            met = self._together(lambda: self._verdict(number) if self.world.rank == 0 else _NOBODYS)
            asked = _stronger(asked, met.asked)
            if met.is_done:
                state, target = _STATES[met.answer % len(_STATES)], met.answer // len(_STATES)
            self.reporter.alive("outer")
        if state == "wait":
            return Control("stop")
        return _stronger(asked, self._take(target, state, started, tokens).asked)

    # -- what all ranks do together --------------------------------------------------------------------------------
    def _together(self, action: Callable[[], int]) -> _Met:
        """Every rank does it, until every rank could: a server that is away is waited for, unless a stop is asked for meanwhile."""
        asked = Control()
        while True:
            is_done, answer = 1, _NOBODYS
            try:
                answer = action()
            except OSError as error:
                is_done = 0
                self._say_away(error)
            if self.world.rank == 0:
                asked = _stronger(asked, self.control())
            found = torch.tensor([is_done, -asked.code, answer], dtype=torch.int64, device=self.device)
            dist.all_reduce(found, dist.ReduceOp.MIN)
            is_done, code, answer = found.tolist()
            asked = Control.from_code(-code)
            if is_done or asked.action == "stop":
                return _Met(bool(is_done), asked, answer)
            self.reporter.alive("outer")
            time.sleep(RETRY_S)

    def _take(self, number: int, state: str, started: float, tokens: int) -> _Met:
        """Pulls a round's outer weights, which the next delta is counted from; they become the silo's unless they are its own already
        (`resumed`)."""
        pulled: list[tuple[Slot, Float32]] = []

        def pull() -> int:
            pulled[:] = [(slot, self._pull(number, slot)) for slot in self._slots()]
            return 0

        met = self._together(pull)
        if not met.is_done:
            return met
        if state != "resumed":
            self.settle()
            for slot, values in pulled:
                slot.view.copy_(torch.from_numpy(values))
            self.adapter.refresh()
            self._keep_residuals(state)
            self.adapter.counters |= {ROUND: number, STEP: self.reporter.step}
        self._base = {
            slot.name: values[slot.save_start - slot.start : slot.save_end - slot.start] for slot, values in pulled
        }
        self._tell(number, state, started, tokens)
        return met

    def _tell(self, number: int, state: str, started: float, tokens: int) -> None:
        """The egress record: what all ranks have sent since the last one."""
        counts = [*self._connection.sent_bytes.values(), self._connection.received_bytes]
        news = torch.tensor(counts, dtype=torch.int64, device=self.device) - torch.tensor(
            self._told, device=self.device
        )
        self._told = counts
        dist.all_reduce(news)
        if self.world.rank == 0:
            *sent, received = news.tolist()
            data = {"round": number, "state": state, "tokens": tokens, "codec": self.config.codec}
            data |= {"sent_bytes": dict(zip(SENT, sent, strict=True)), "received_bytes": received}
            self.reporter.event("outer", "outer", started, time.time() - started, **data)

    # -- what this rank asks ---------------------------------------------------------------------------------------
    def _start_of(self, had: int) -> int:
        return int(self._connection.ask("open", {"round": had})["round"])

    def _verdict(self, number: int) -> int:
        """State and round in one number."""
        answer = self._connection.ask("verdict", {"round": number})
        if why := answer.get("why"):
            message = f"round {number} is without this silo's delta, which was rejected: {why}"
            self._incident("silo", message)
        return max(0, int(answer["round"])) * len(_STATES) + _STATES.index(answer["state"])

    def _send_initial(self) -> int:
        """Round 0, which is there when every rank has sent its part."""
        sizes = {name: t.num_elements for name, t in self.adapter.tensors().items() if MASTER in t.kinds}
        owned = self._owned()
        batches = _batches(owned)
        for index, batch in enumerate(batches, 1):
            payload = b"".join(_elements(owned, chunk).tobytes() for chunk in batch)
            self._connection.ask("seed", {"sizes": sizes, "spans": batch, "is_last": index == len(batches)}, payload)
        return 0

    def _send_delta(self, number: int, tokens: int, is_nan: bool) -> int:
        """In messages of a few chunks each, the last of which says so."""
        owned = self._owned()
        batches = _batches(owned)
        feedback = ErrorFeedback(load_codec(self.config.codec))
        for index, batch in enumerate(batches, 1):
            fields: dict[str, Any] = {"round": number, "tokens": tokens, "is_last": index == len(batches)}
            try:
                parts = [self._encoded(feedback, owned, chunk, is_nan) for chunk in batch]
            except UnusableDelta as error:
                self._connection.ask("push", {**fields, "spans": [], "unusable": str(error)})
                return 0
            spans = [[*chunk, len(part)] for chunk, part in zip(batch, parts, strict=True)]
            self._connection.ask("push", {**fields, "spans": spans}, b"".join(parts))
        return 0

    def _encoded(self, feedback: ErrorFeedback, owned: Mapping[str, Slot], chunk: Chunk, is_nan: bool) -> bytes:
        """Outer weights - the silo's, and what earlier deltas left out. Raises UnusableDelta."""
        slot = owned[chunk.name]
        part = slice(chunk.start - slot.save_start, chunk.start - slot.save_start + chunk.count)
        delta = self._base[chunk.name][part] - _elements(owned, chunk)
        if is_nan:
            delta[0] = np.nan
        if (residuals := self.adapter.extras.get(RESIDUAL)) is None:
            return feedback.codec.encode(delta)
        at = slice(chunk.start - slot.start, chunk.start - slot.start + chunk.count)
        feedback.residuals[chunk] = residuals[chunk.name].numpy()[at]
        data = feedback.encode(chunk, delta)
        left_out = self._left_out.setdefault(chunk.name, np.empty(slot.save_end - slot.save_start, np.float32))
        left_out[part] = feedback.residuals.pop(chunk)
        return data

    def _keep_residuals(self, state: str) -> None:
        """Of a delta that was not used nothing was left out."""
        if RESIDUAL in self.adapter.extras and state == "done":
            for name, slot in self._owned().items():
                part = slice(slot.save_start - slot.start, slot.save_end - slot.start)
                self.adapter.extras[RESIDUAL][name][part] = torch.from_numpy(self._left_out[name])
        self._left_out.clear()

    def _pull(self, number: int, slot: Slot) -> Float32:
        """The outer weights of all elements that this rank holds of a parameter."""
        values = np.empty(slot.view.numel(), np.float32)
        for batch in cut([Chunk(slot.name, slot.start, len(values))]):
            answer = self._connection.ask("pull", {"round": number, "spans": batch})
            body = np.frombuffer(self._connection.payload(answer["body_bytes"]), np.float32)
            first = batch[0].start - slot.start
            values[first : first + len(body)] = body
        return values

    def _say_away(self, error: OSError) -> None:
        if not self._is_told_away:
            self._is_told_away = True
            self._incident("network", f"{error}; it is tried again every {RETRY_S:g} s")

    def _incident(self, kind: str, message: str) -> None:
        data: dict[str, Any] = {"class": kind}
        self.reporter.event("incident", "outer", message=message, **data)

    def _slots(self) -> Iterator[Slot]:
        return (slot for slot in self.adapter.slots() if slot.kind == MASTER)

    def _owned(self) -> dict[str, Slot]:
        """By parameter, where what this rank sends of it is."""
        return {slot.name: slot for slot in self._slots() if slot.save_end > slot.save_start}


def _batches(owned: Mapping[str, Slot]) -> list[list[Chunk]]:
    """One message at least, since its end has to be told."""
    chunks = [Chunk(slot.name, slot.save_start, slot.save_end - slot.save_start) for slot in owned.values()]
    return list(cut(chunks)) or [[]]


def _elements(owned: Mapping[str, Slot], chunk: Chunk) -> Float32:
    slot = owned[chunk.name]
    first = chunk.start - slot.start
    return slot.view[first : first + chunk.count].detach().cpu().numpy()


def _stronger(one: Control, other: Control) -> Control:
    return max(one, other, key=lambda control: control.code)
