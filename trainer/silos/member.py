"""One rank of a silo: sends the delta of the fragments that it owns every so many inner steps, and takes the outer weights.

What a silo's state says of rounds: `outer_round`, the round whose weights it began its newest inner steps from, and `outer_step`, the
number of its own steps then. Both are saved with the weights, so a state is never taken for one before or after the outer step.
A silo that joins late, or comes back when its round is no longer kept, goes on from the newest outer weights: its schedule then
counts the steps of the rounds that it missed, its data does not.

With overlap (overlap.py) the outer step is in two parts: a delta is handed over at the end of a round, and the outer weights are
merged some inner steps later. A state between the two has `outer_handed_over`, and the weights that the delta is of: it is sent once more.
`outer_from` is the step from which on the next delta has what was learned: behind `outer_step` where a delta was left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from zerofleet.trainer.checkpoint.adapters import Adapter
from zerofleet.trainer.checkpoint.gradients import add_to_gradients
from zerofleet.trainer.config import SiloConfig, TrainConfig
from zerofleet.trainer.events import Control, ControlSource
from zerofleet.trainer.reporter import Reporter
from zerofleet.trainer.silos.outbox import BOUNDARY, Outbox, master_slots, reserve_extras
from zerofleet.trainer.silos.overlap import HANDED_OVER, LANDINGS, Flight, Landing, merged
from zerofleet.trainer.silos.questions import Pulled, Questions
from zerofleet.trainer.silos.strategies import proximal_gradient
from zerofleet.trainer.silos.wire import SENT, Connection, Server, State
from zerofleet.trainer.storage import Storage
from zerofleet.trainer.world import World

if TYPE_CHECKING:
    from zerofleet.trainer.silos.masked import Conversation
    from zerofleet.trainer.silos.private import Privacy

RETRY_S = 1.0
"""Between two tries to reach the outer server."""
ROUND, STEP, FROM = "outer_round", "outer_step", "outer_from"
_STATES: tuple[State, ...] = ("wait", "done", "late", "rejected")
_NOBODYS = 2**62
"""What ranks say that are not asked: the smallest answer counts."""


@dataclass
class Member:
    """All methods are collective."""

    config: SiloConfig
    num_steps: int
    """Of the whole run's schedule."""
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

    _flight: Flight | None = None
    """With overlap, the delta that is on its way."""

    reserve = staticmethod(reserve_extras)

    @staticmethod
    def of(config: TrainConfig, *rest: Any) -> Member | None:
        """None in a run that is no silo."""
        return Member(config.silo, config.train.steps, *rest) if config.silo is not None else None

    def __post_init__(self) -> None:
        hello = {"silo": self.config.name, "life": self.life}
        server = Server.from_env()
        self._outbox = Outbox(self.config, self.adapter, self._say_unusable)
        if self.config.privacy is not None:
            from zerofleet.trainer.silos.private import Privacy  # brings an extra

            mine = (self.storage, self.config.key_file, self.world.rank, self.device)
            self._privacy = Privacy(self.config.privacy, *mine)
        self._connection = Connection(server, {**hello, "rank": self.world.rank, "world_size": self.world.world_size})
        self._questions = Questions(self._connection)
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
    def _handed_over(self) -> int:
        """Step at whose end the delta on its way was handed over; 0 where none is."""
        return self.adapter.counters.get(HANDED_OVER, 0)

    @property
    def is_due(self) -> bool:
        """Whether an outer step, or a part of one, comes before the next inner one."""
        return self._is_merge_due or self._is_round_done

    @property
    def _is_round_done(self) -> bool:
        """Whether a delta is to be made."""
        step = self.reporter.step
        return step % self.config.interval_steps == 0 and step not in (self.adapter.counters[STEP], self._handed_over)

    @property
    def _is_merge_due(self) -> bool:
        """Whether the outer weights of the delta on its way are to be taken: after the last step at once."""
        step = self.reporter.step
        is_over = step >= self._handed_over + self.config.overlap_steps or self.schedule_step(step) >= self.num_steps
        return bool(self._handed_over) and is_over

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
            answer = self._together(lambda: self._questions.start_of(had) if self.world.rank == 0 else _NOBODYS)
            if answer == -1:
                answer = self._together(lambda: self._questions.send("seed", self._outbox.initial()))
            if answer is None or self._is_stopped:
                return self._asked
            if answer >= 0:
                self._take(answer, "joined" if answer != had else "resumed", started, 0)
                if self._handed_over and not self._is_stopped:
                    self._launch()
                return self._asked
            self.reporter.alive("outer")

    def exchange(self) -> Control:
        """The outer step that is due, or with overlap its parts. Returns what was asked for meanwhile; a stop ends the waiting, and then
        the state is as before."""
        if not self.config.overlap_steps:
            return self._step_and_wait()
        self._asked = Control()
        while self.is_due and not self._is_stopped:
            if self._is_merge_due:
                self._merge()
            else:
                self._hand_over()
        return self._asked

    def _step_and_wait(self) -> Control:
        """An outer step without overlap."""
        started, self._outbox.planted, self._asked = time.time(), self.reporter.begin("outer"), Control()
        number, target = self.round + 1, -1
        state: State = "wait"
        tokens = self.tokens_of(self.adapter.counters[STEP], self.reporter.step)
        if self._prepare(number, tokens):
            self._together(lambda: self._questions.send("push", self._outbox.messages(number, tokens)))
        while not self._is_stopped and state == "wait":
            state, target = self._judged(number)
        if state == "wait":
            return Control("stop")
        self._take(target, state, started, tokens)
        return self._asked

    def _judged(self, number: int) -> tuple[State, int]:
        """What became of a round, and whose weights to go on with; `wait` where that is open."""
        answer = self._together(lambda: self._verdict(number) if self.world.rank == 0 else _NOBODYS)
        self.reporter.alive("outer")
        return ("wait", -1) if answer is None else (_STATES[answer % len(_STATES)], answer // len(_STATES))

    # -- an outer step beside inner ones ---------------------------------------------------------------------------
    def _hand_over(self) -> None:
        """The delta of the round that is done goes on its way. Not where a stop comes first."""
        self._outbox.planted = self.reporter.begin("outer")
        self.settle()
        self._outbox.keep_boundary()
        self.adapter.counters[HANDED_OVER] = self.reporter.step
        if not self._launch():
            self.adapter.counters[HANDED_OVER] = 0

    def _launch(self) -> bool:
        """Sends the delta of the state, for the first time or once more. Whether it did: not where a stop comes first."""
        number, tokens = self.round + 1, self._tokens_on_their_way
        if not self._prepare(number, tokens):
            return False
        messages, slots = partial(self._outbox.messages, number, tokens), list(master_slots(self.adapter))
        self._flight = Flight(self._questions, number, messages, slots, self._say_away, RETRY_S)
        return True

    @property
    def _tokens_on_their_way(self) -> int:
        """Of the delta that is on its way."""
        return self.tokens_of(self.adapter.counters[FROM], self._handed_over)

    def _merge(self) -> None:
        """Takes the outer weights that the delta on its way went into, and waits for them. Not where a stop comes first."""
        started, flight, number, tokens = time.time(), self._flight, self.round + 1, self._tokens_on_their_way
        assert flight is not None
        self.reporter.event("phase", "outer")
        landing: Landing = "wait"
        state: State = "wait"
        while landing == "wait" and not self._is_stopped:
            answer = self._together(lambda: flight.look(RETRY_S))
            landing = "wait" if answer is None else LANDINGS[answer]
            self.reporter.alive("outer")
        if landing == "done":
            return self._take(number, "done", started, tokens, flight)
        while state == "wait" and not self._is_stopped:  # left out: rank 0 says which weights all ranks go on with
            state, target = self._judged(number)
        if state != "wait":
            self._take(target, state, started, tokens, flight)

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

    def _take(self, number: int, state: str, started: float, tokens: int, flight: Flight | None = None) -> None:
        """Pulls a round's outer weights, which the next delta is counted from; they become the silo's unless they are its own already
        (`resumed`). Not where a stop comes first. A `flight` that is done has brought them, and what was learned meanwhile is carried over; one
        that came to nothing is forgotten with it."""
        slots = list(master_slots(self.adapter))
        pulled: Pulled = []

        def pull() -> int:
            pulled[:] = self._questions.pull(number, slots)
            return 0

        if flight is not None and state == "done":
            pulled[:] = [(slot, values) for slot, (_, values) in zip(slots, flight.pulled, strict=True)]
        elif self._together(pull) is None:
            return
        told = {} if flight is None else self._account_of(flight)
        if state != "resumed":
            self._adopt(pulled, number, state)
        self._outbox.rebase(pulled)
        if self.config.proximal_mu:
            self._outer = {slot.name: torch.from_numpy(values).to(slot.view.device) for slot, values in pulled}
        self._tell(number, state, started, tokens, told)

    def _adopt(self, pulled: Pulled, number: int, state: str) -> None:
        """Outer weights become the silo's own."""
        step, boundary = self.reporter.step, self._handed_over
        is_merge = state == "done" and boundary > 0
        self.settle()
        for slot, values in pulled:
            kept = self.adapter.extras[BOUNDARY][slot.name] if is_merge else None
            slot.view.copy_(torch.from_numpy(values) if kept is None else merged(values, slot.view, kept))
        self.adapter.refresh()
        self._outbox.settle(state)
        is_within = boundary > 0 and step < boundary + self.config.interval_steps
        counters = {ROUND: number, STEP: boundary if is_merge or is_within else step}
        self.adapter.counters |= {**counters, FROM: boundary if is_merge else step, HANDED_OVER: 0}
        self._flight = None

    def _account_of(self, flight: Flight) -> dict[str, Any]:
        """When its delta was handed over, and when all had come back."""
        times = {"handed_over_at": flight.handed_over_at, "arrived_at": flight.arrived_at}
        return {"handed_over_step": self._handed_over, **times}

    def _tell(self, number: int, state: str, started: float, tokens: int, more: dict[str, Any]) -> None:
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
            data |= {"sent_bytes": dict(zip(SENT, sent, strict=True)), "received_bytes": received, **more}
            if self._privacy is not None:
                data |= {"privacy": self._privacy.spent()}
            self.reporter.event("outer", "outer", started, time.time() - started, **data)

    # -- what this rank asks ---------------------------------------------------------------------------------------
    def _note_release(self) -> int:
        assert self._privacy is not None
        self._privacy.note()
        return 0

    def _verdict(self, number: int) -> int:
        """State and round in one number."""
        answer = self._questions.verdict(number)
        if answer["state"] == "reveal" and self._conversation is not None:
            self._conversation.reveal(answer["survivors"])
            return _STATES.index("wait")
        if why := answer.get("why"):
            message = f"round {number} is without this silo's delta, which was rejected: {why}"
            self._incident("silo", message)
        return max(0, int(answer["round"])) * len(_STATES) + _STATES.index(answer["state"])

    def _say_unusable(self, why: str) -> None:
        self._incident("silo", f"the delta of round {self.round + 1} is not sent: {why}")

    def _say_away(self, error: OSError) -> None:
        if not self._is_told_away:
            self._is_told_away = True
            self._incident("network", f"{error}; it is tried again every {RETRY_S:g} s")

    def _incident(self, kind: str, message: str) -> None:
        data: dict[str, Any] = {"class": kind}
        self.reporter.event("incident", "outer", message=message, **data)


def _stronger(one: Control, other: Control) -> Control:
    return max(one, other, key=lambda control: control.code)
