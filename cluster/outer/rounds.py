"""The rounds of a run of silos: what each silo has delivered, when a round closes, what then becomes of the outer weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zerofleet.cluster.outer.delivery import Delivery
from zerofleet.cluster.outer.seeding import Seeding
from zerofleet.cluster.outer.state import Arrays, OuterState, OuterStore, RoundRecord
from zerofleet.cluster.outer.step import Means, means_of, odd_ones, stepped
from zerofleet.cluster.outer.terms import Terms
from zerofleet.cluster.policy.masking import Phase
from zerofleet.cluster.policy.rounds import Round
from zerofleet.trainer.errors import StorageError, ZerofleetError
from zerofleet.trainer.silos.errors import MaskingFailed, UnusableDelta
from zerofleet.trainer.silos.wire import VERDICT_S

Emit = Callable[[str, dict[str, Any]], None]
"""kind and data of an event"""
_RETRY_S = 5.0
"""Between two tries to make a round durable."""
Answer = tuple[dict[str, Any], bytes | memoryview]


class Rounds:
    """All state of the outer server; its methods are called from many threads."""

    def __init__(self, terms: Terms, store: OuterStore, emit: Emit) -> None:
        """Goes on from the newest round of the store. Raises StorageError."""
        self._terms, self._store, self._emit = terms, store, emit
        self._changed = threading.Condition()
        self._state = store.newest()
        self._records = {number: store.record_of(number) for number in store.rounds()}
        self._rejected: dict[tuple[str, int], str] = {}
        self._present = set(terms.weights)
        self._seeding = Seeding()
        self._deliveries: dict[str, Delivery] = {}
        self._lives: dict[str, str] = {}
        """By silo, the token of its newest attempt: what an older one still sends is not heard."""
        self._retry_at = 0.0
        self._open()

    @property
    def number(self) -> int:
        """The newest round that is closed; -1 before there are initial weights."""
        return self._state.record.round if self._state is not None else -1

    def _open(self) -> None:
        number = max(0, self.number) + 1
        self._round, self._told_short = Round(number, self._terms.quorum, self._terms.deadline_s), False
        self._masked = self._terms.masked_round(number)

    # -- who takes part --------------------------------------------------------------------------------------------
    def gone(self, silo: str) -> None:
        """No round waits for it until it asks again."""
        with self._changed:
            self._present.discard(silo)
            self._seeding.forget(silo)
            self._changed.notify_all()

    # -- questions -------------------------------------------------------------------------------------------------
    def answer(self, hello: Mapping[str, Any], question: Mapping[str, Any], payload: bytearray) -> Answer:
        """One question of a rank. Raises ZerofleetError for what can never be answered."""
        silo = hello["silo"]
        if silo not in self._terms.weights:
            raise ZerofleetError(f"{silo!r} is no silo of this run; it has {', '.join(self._terms.weights)}")
        with self._changed:
            match question["op"]:
                case "open":
                    return {"round": self._begin(silo, hello["life"], question["round"])}, b""
                case "seed":
                    self._seed(hello, question, payload)
                    return {}, b""
                case "push":
                    self._take(hello, question, payload)
                    return {}, b""
                case "keys" | "shares" | "reveal":
                    return self._pass_on(hello, question), b""
                case "verdict":
                    return self._verdict(hello, question["round"]), b""
                case "pull":
                    body = self._span_bytes(question["round"], question["spans"])
                    return {"body_bytes": len(body)}, body
        raise ZerofleetError(f"{question['op']!r} is no question")

    def _begin(self, silo: str, life: str, newest: int) -> int:
        """A new attempt of a silo: what an older one has delivered in part is forgotten."""
        start = self._start_of(silo, newest)
        if self._masked is not None and self._lives.get(silo) != life:
            self._masked.policy.begins_anew(silo)
        self._lives[silo] = life
        self._present.add(silo)
        if silo not in self._round.delivered:
            self._deliveries.pop(silo, None)
        return start if self._state is not None else self._choose_seeder(silo)

    def _choose_seeder(self, silo: str) -> int:
        """Before there are weights: -1 for the first silo that asks, and -2 for the others until it has sent them."""
        if self._seeding.choose(silo):
            return -1
        self._changed.wait_for(lambda: self._state is not None, VERDICT_S)
        return self.number if self._state is not None else -2

    def _start_of(self, silo: str, newest: int) -> int:
        """The round whose weights a silo goes on from: the one that its state has, or the newest one."""
        if newest > self.number:
            raise ZerofleetError(
                f"silo {silo} has been through {newest} rounds and the run's outer state through {max(0, self.number)}: "
                "files under outer/ are gone. Restore them"
            )
        start = newest if newest in self._records else self.number
        if start > newest >= 0 or (newest < 0 < start):
            what = "joins at" if newest < 0 else f"was at round {newest}, which is no longer kept, and goes on from"
            self._emit("info", {"message": f"silo {silo} {what} round {start}", "silo": silo, "round": start})
        return start

    def _seed(self, hello: Mapping[str, Any], question: Mapping[str, Any], payload: bytearray) -> None:
        """Initial weights: they follow from the run's seed, so one silo's are everyone's."""
        if self._state is not None or self._lives.get(hello["silo"]) != hello["life"]:
            return
        if (arrays := self._seeding.take(hello, question, payload)) is not None:
            state = OuterState.initial(arrays, self._terms.strategy.moments)
            self._store.save(state)
            self._adopt(state)

    def _take(self, hello: Mapping[str, Any], question: Mapping[str, Any], payload: bytearray) -> None:
        """Part of a silo's delta. What repeats an old round, or what is known, changes nothing."""
        silo, number, now = hello["silo"], question["round"], time.monotonic()
        if number > self.number + 1 or self._state is None:
            raise ZerofleetError(f"silo {silo} sent a delta for round {number}, the next one is {self.number + 1}")
        is_old = self._lives.get(silo) != hello["life"] or number <= self.number
        if is_old or silo in self._round.delivered or silo in self._round.rejected:
            return
        if self._masked is not None and not self._masked.may_deliver(silo, hello["life"]):
            return
        if silo not in self._deliveries:
            codec = self._terms.codec if self._masked is None else None
            self._deliveries[silo] = Delivery(hello["world_size"], self._state.sizes, codec)
        delivery = self._deliveries[silo]
        try:
            if not delivery.take(hello["rank"], question, payload):
                return
            self._round.deliver(silo, now)
            if self._masked is not None:
                self._masked.policy.answer("deltas", silo, now)
        except UnusableDelta as error:
            del self._deliveries[silo]
            self._round.reject(silo, str(error), now)
            self._reject(silo, self._round.number, str(error))
            if self._masked is not None:
                self._masked.policy.excuse(silo)
        self._changed.notify_all()

    def _pass_on(self, hello: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, Any]:
        """What secure aggregation needs besides deltas. Waits a little for the others' part of it."""
        masked, who, op = self._masked, (hello["silo"], hello["life"]), question["op"]
        if masked is None:
            raise ZerofleetError("this run has no secure aggregation")
        if question["round"] != self._round.number:
            return {"state": "out"}
        masked.take(*who, question, time.monotonic())
        self._changed.notify_all()
        self._changed.wait_for(lambda: self._phase() and masked.reply(*who, op).get("state") != "wait", VERDICT_S)
        self._tell_if_short(time.monotonic())
        return masked.reply(*who, op)

    def _phase(self) -> Phase:
        """Of secure aggregation, now."""
        assert self._masked is not None
        before = self._masked.policy.phase
        if (phase := self._masked.policy.advance(self._present, time.monotonic())) != before:
            self._changed.notify_all()
        return phase

    def _may_close(self, now: float) -> bool:
        if self._masked is not None:
            return self._phase() in ("sum", "failed")
        return self._round.decide(self._present, now) == "close"

    def _verdict(self, hello: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Waits a little for a round that is open."""
        silo, deadline = hello["silo"], time.monotonic() + VERDICT_S
        while number > self.number:
            now = time.monotonic()
            if self._may_close(now) and now >= self._retry_at:
                self._try_to_close(now)
                continue
            if self._masked is not None and (survivors := self._masked.survivors_for(silo, hello["life"])):
                return {"state": "reveal", "round": self.number, "survivors": survivors}
            self._tell_if_short(now)
            if now >= deadline:
                return {"state": "wait", "round": self.number}
            self._changed.wait(min(deadline - now, VERDICT_S))
        record = self._records.get(number)
        # Earlier versions recorded tokens of rounds without a step, too.
        if record is not None and record.is_step and silo in record.tokens:
            return {"state": "done", "round": number}
        state = "rejected" if (silo, number) in self._rejected else "late"
        return {"state": state, "round": self.number, "why": self._rejected.get((silo, number), "")}

    def _try_to_close(self, now: float) -> None:
        """The silos wait while storage does not take the round."""
        try:
            self._close_round()
        except StorageError as error:
            self._retry_at = now + _RETRY_S
            self._incident(f"round {self._round.number} cannot be made durable and is tried again: {error}")

    def _tell_if_short(self, now: float) -> None:
        """Once a round: the deadline is over and the quorum is not there."""
        open_ = self._round if self._masked is None else self._masked.policy
        if self._told_short or not open_.is_overdue(now):
            return
        self._told_short = True
        self._incident(
            f"round {self._round.number} waits for {', '.join(open_.missing(self._present))}: {open_.num_answers} silos have delivered, the "
            f"quorum is {open_.least}, and the deadline of {self._terms.deadline_s:g} s is over"
        )

    def _span_bytes(self, number: int, spans: list[tuple[str, int, int]]) -> memoryview:
        weights = self._weights_of(number)
        body = np.concatenate([weights[name][start : start + count] for name, start, count in spans])
        return body.data.cast("B")

    def _weights_of(self, number: int) -> Arrays:
        if self._state is not None and number == self._state.record.round:
            return self._state.weights
        if number not in self._records:
            raise ZerofleetError(f"the outer weights of round {number} are no longer kept")
        return self._store.weights_of(number)

    # -- the outer step --------------------------------------------------------------------------------------------
    def _close_round(self) -> None:
        """Raises StorageError, and then the round is as open as before."""
        began, closing, state = time.time(), self._round, self._state
        assert state is not None
        delivered = {silo: self._deliveries[silo] for silo in sorted(closing.delivered)}
        rejected = {**closing.rejected, **(odd_ones(delivered) if self._masked is None else {})}
        taken = {silo: delivery for silo, delivery in delivered.items() if silo not in rejected}
        weights = {silo: delivery.tokens * self._terms.weights[silo] for silo, delivery in taken.items()}
        means, why = self._means(state, taken, weights)
        is_step = means is not None
        tokens = {silo: delivery.tokens for silo, delivery in taken.items() if is_step}
        record = RoundRecord(closing.number, tokens, is_step)
        arrays = stepped(state, self._terms.strategy, means) if means is not None else (state.weights, state.moments)
        self._store.save(after := OuterState(record, *arrays))
        missing = sorted(set(self._terms.weights) - delivered.keys() - rejected.keys())
        self._adopt(after)
        for silo in rejected.keys() - closing.rejected.keys():
            self._reject(silo, closing.number, rejected[silo])
        sent = {silo: delivery.num_bytes for silo, delivery in delivered.items()}
        data = {"round": closing.number, "tokens": tokens, "missing": missing, "rejected": rejected}
        self._emit("round", {**data, "is_step": is_step, "delta_bytes": sent, "seconds": time.time() - began})
        without = f" without {', '.join(missing)}" if missing else ""
        effect = "" if is_step else f", and changed nothing: {why}"
        if without or effect:
            self._incident(f"round {closing.number} closed{without}{effect}")

    def _means(
        self, state: OuterState, taken: Mapping[str, Delivery], weights: Mapping[str, float]
    ) -> tuple[Means | None, str]:
        """Of what was delivered; None where there is no outer step, and why."""
        if self._masked is None:
            if len(taken) < self._terms.quorum:
                return None, f"{len(taken)} deltas are below the quorum"
            return means_of(self._terms, state.sizes, taken, weights), ""
        if self._masked.policy.phase == "failed":
            return None, f"too few silos were left to take the masks off ({len(taken)} deltas had come)"
        try:
            return self._masked.means(state.sizes, taken, weights), ""
        except MaskingFailed as error:
            return None, str(error)

    def _adopt(self, state: OuterState) -> None:
        """It is durable: no silo is ever ahead of what a new driver finds. Raises StorageError, and then nothing has changed."""
        kept = self._store.rounds()
        self._state = state
        self._records = {number: self._records[number] for number in kept if number in self._records}
        self._records[state.record.round] = state.record
        self._deliveries.clear()
        self._open()
        self._changed.notify_all()

    def _reject(self, silo: str, number: int, why: str) -> None:
        self._rejected[silo, number] = why
        self._incident(f"the delta of silo {silo} in round {number} was rejected: {why}", silo=silo, round=number)

    def _incident(self, message: str, **data: Any) -> None:
        self._emit("incident", {"class": "silo", "message": message, "round": self._round.number, **data})
