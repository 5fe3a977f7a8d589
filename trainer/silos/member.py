"""One rank of a silo: sends the delta of the fragments that it owns every so many inner steps, and takes the outer weights.

What a silo's state says of rounds: `outer_round`, the round whose weights it began its newest inner steps from, and `outer_step`, the
number of its own steps then. Both are saved with the weights, so a state is never taken for one before or after the outer step.
A silo that joins late, or comes back when its round is no longer kept, goes on from the newest outer weights: its schedule then
counts the steps of the rounds that it missed, its data does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from zerofleet.trainer.checkpoint.adapters import Adapter, Slot
from zerofleet.trainer.checkpoint.gradients import add_to_gradients
from zerofleet.trainer.config import SiloConfig
from zerofleet.trainer.events import Control, ControlSource
from zerofleet.trainer.reporter import Reporter
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.outbox import Message, Outbox, master_slots, reserve_residuals
from zerofleet.trainer.silos.strategies import proximal_gradient
from zerofleet.trainer.silos.wire import SENT, Connection, Server, State, cut
from zerofleet.trainer.storage import Storage
from zerofleet.trainer.world import World

if TYPE_CHECKING:
    from zerofleet.trainer.silos.masked import Conversation
    from zerofleet.trainer.silos.private import Privacy

RETRY_S = 1.0
"""Between two tries to reach the outer server."""
ROUND, STEP = "outer_round", "outer_step"
_STATES: tuple[State, ...] = ("wait", "done", "late", "rejected")
_NOBODYS = 2**62
"""What ranks say that are not asked: the smallest answer counts."""

Float32 = NDArray[np.float32]


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
    storage: Storage
    """Of the silo's run folder."""
    _outer: dict[str, torch.Tensor] = field(default_factory=dict)
    """For the proximal term: by parameter, the outer weights that the inner steps began from, of all elements that this rank holds."""
    _asked: Control = field(default_factory=Control)
    """The strongest that was, since this outer step began; the same on every rank."""
    _conversation: Conversation | None = None
    """On rank 0, of the round of secure aggregation that it is in."""
    _privacy: Privacy | None = None
    _is_told_away: bool = False

    reserve = staticmethod(reserve_residuals)

    @staticmethod
    def of(config: SiloConfig | None, *rest: Any) -> Member | None:
        """None in a run that is no silo."""
        return Member(config, *rest) if config is not None else None

    def __post_init__(self) -> None:
        hello = {"silo": self.config.name, "life": self.life}
        server = Server.from_env()
        self._outbox = Outbox(self.config, self.adapter)
        if self.config.privacy is not None:
            from zerofleet.trainer.silos.private import Privacy  # brings an extra

            mine = (self.storage, self.config.key_file, self.world.rank, self.device)
            self._privacy = Privacy(self.config.privacy, *mine)
        self._connection = Connection(server, {**hello, "rank": self.world.rank, "world_size": self.world.world_size})
        self._told = [0] * (len(SENT) + 1)
        """Bytes of each kind, and received ones, that the last event told of."""

    @property
    def round(self) -> int:
        return self.adapter.counters[ROUND]

    @property
    def _is_stopped(self) -> bool:
        """Whether a stop was asked for, since this outer step began."""
        return self._asked.action == "stop"

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
        had, started, self._asked = self.adapter.counters.get(ROUND, -1), time.time(), Control()
        self.reporter.begin("outer")
        if self._privacy is not None:
            self._privacy.open()
        while True:
            answer = self._together(lambda: self._start_of(had) if self.world.rank == 0 else _NOBODYS)
            if answer == -1:
                answer = self._together(lambda: self._send("seed", self._outbox.initial()))
            if answer is None or self._is_stopped:
                return self._asked
            if answer >= 0:
                self._take(answer, "joined" if answer != had else "resumed", started, 0)
                return self._asked
            self.reporter.alive("outer")

    def exchange(self) -> Control:
        """The outer step that is due. Returns what was asked for meanwhile; a stop ends the waiting, and then the state is as before."""
        started, self._outbox.planted, self._asked = time.time(), self.reporter.begin("outer"), Control()
        number, state, target = self.round + 1, "wait", -1
        tokens = self.tokens_of(self.adapter.counters[STEP], self.reporter.step)
        if self._prepare(number, tokens):
            self._together(lambda: self._send("push", self._outbox.messages(number, tokens)))
        while not self._is_stopped and state == "wait":
            answer = self._together(lambda: self._verdict(number) if self.world.rank == 0 else _NOBODYS)
            if answer is not None:
                state, target = _STATES[answer % len(_STATES)], answer // len(_STATES)
            self.reporter.alive("outer")
        if state == "wait":
            return Control("stop")
        self._take(target, state, started, tokens)
        return self._asked

    def _prepare(self, number: int, tokens: int) -> bool:
        """Noise and masks of the round's delta, where there are any. False: it is not sent, since a stop came first or the round goes on without it."""
        if not tokens:
            self._outbox.refuse("the silo was fed nothing")
        if self._privacy is not None and self._privacy.measure(self._outbox, number):
            self._together(lambda: self._note_release() if self.world.rank == 0 else _NOBODYS)
        if self.config.masking is not None and not self._is_stopped:
            from zerofleet.trainer.silos.masked import GO, WAIT, Conversation, wrapping_of  # brings an extra

            is_first, answer = self.world.rank == 0, WAIT
            talk = self._conversation = Conversation(self._connection, self.config.name, number) if is_first else None
            while answer == WAIT and not self._is_stopped:
                found = self._together(lambda: talk.go_on() if talk is not None else _NOBODYS)
                answer = WAIT if found is None else found
                self.reporter.alive("outer")
            if answer != GO:
                return False
            self._outbox.wrapping = wrapping_of(talk, self.config.masking, tokens, self.device)
        return not self._is_stopped

    def add_proximal_gradient(self, engine: Any) -> None:
        """After the backward pass that ends an inner step: FedProx's pull towards the outer weights becomes part of the gradient, of its norm and of its
        clipping."""
        if mu := self.config.proximal_mu:
            slots = {slot.name: slot for slot in master_slots(self.adapter)}
            pulls = {
                name: proximal_gradient(slots[name].view.detach(), outer, mu) for name, outer in self._outer.items()
            }
            add_to_gradients(engine, slots, pulls)

    # -- what all ranks do together --------------------------------------------------------------------------------
    def _together(self, action: Callable[[], int]) -> int | None:
        """Every rank does it, until every rank could: a server that is away is waited for, unless a stop is asked for meanwhile. The smallest
        answer of any rank; None where a stop came first."""
        while True:
            is_done, answer = 1, _NOBODYS
            try:
                answer = action()
            except OSError as error:
                is_done = 0
                self._say_away(error)
            if self.world.rank == 0:
                self._asked = _stronger(self._asked, self.control())
            found = torch.tensor([is_done, -self._asked.code, answer], dtype=torch.int64, device=self.device)
            dist.all_reduce(found, dist.ReduceOp.MIN)
            is_done, code, answer = map(int, found.tolist())
            self._asked = Control.from_code(-code)
            if is_done:
                return answer
            if self._is_stopped:
                return None
            self.reporter.alive("outer")
            time.sleep(RETRY_S)

    def _take(self, number: int, state: str, started: float, tokens: int) -> None:
        """Pulls a round's outer weights, which the next delta is counted from; they become the silo's unless they are its own already
        (`resumed`). Not where a stop comes first."""
        pulled: list[tuple[Slot, Float32]] = []

        def pull() -> int:
            pulled[:] = [(slot, self._pull(number, slot)) for slot in master_slots(self.adapter)]
            return 0

        if self._together(pull) is None:
            return
        if state != "resumed":
            self.settle()
            for slot, values in pulled:
                slot.view.copy_(torch.from_numpy(values))
            self.adapter.refresh()
            self._outbox.settle(state)
            self.adapter.counters |= {ROUND: number, STEP: self.reporter.step}
        self._outbox.rebase(pulled)
        if self.config.proximal_mu:
            self._outer = {slot.name: torch.from_numpy(values).to(slot.view.device) for slot, values in pulled}
        self._tell(number, state, started, tokens)

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
            if self._privacy is not None:
                data |= {"privacy": self._privacy.spent()}
            self.reporter.event("outer", "outer", started, time.time() - started, **data)

    # -- what this rank asks ---------------------------------------------------------------------------------------
    def _start_of(self, had: int) -> int:
        return int(self._connection.ask("open", {"round": had})["round"])

    def _note_release(self) -> int:
        assert self._privacy is not None
        self._privacy.note()
        return 0

    def _verdict(self, number: int) -> int:
        """State and round in one number."""
        answer = self._connection.ask("verdict", {"round": number})
        if answer["state"] == "reveal" and self._conversation is not None:
            self._conversation.reveal(answer["survivors"])
            return _STATES.index("wait")
        if why := answer.get("why"):
            message = f"round {number} is without this silo's delta, which was rejected: {why}"
            self._incident("silo", message)
        return max(0, int(answer["round"])) * len(_STATES) + _STATES.index(answer["state"])

    def _send(self, op: str, messages: Iterable[Message]) -> int:
        for fields, payload in messages:
            self._connection.ask(op, fields, payload)
        return 0

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


def _stronger(one: Control, other: Control) -> Control:
    return max(one, other, key=lambda control: control.code)
