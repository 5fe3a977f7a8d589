"""What one rank of a silo sends in a round: the delta of the fragments that it owns, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerofleet.trainer.checkpoint.adapters import Adapter, Slot
from zerofleet.trainer.checkpoint.fragments import MASTER
from zerofleet.trainer.config import SiloConfig
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.codecs import ErrorFeedback, load_codec
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.wire import State, cut

if TYPE_CHECKING:
    from zerofleet.trainer.silos.masked import Wrapping  # these bring an extra
    from zerofleet.trainer.silos.privacy import Noise

RESIDUAL = "outer_residual"
"""Kind of the fragments that hold what was left out (codecs.ErrorFeedback)."""
BOUNDARY = "outer_boundary"
"""Kind of the fragments that hold the silo's weights as they were at the end of the round whose delta is on its way (overlap.py)."""
UNTOLD = "it cannot go under masks, and only the silo's own incidents say why"
"""What the server hears of a delta that was to be masked: a number of it would be in the clear."""
GARBAGE_FACTOR = -4.0
"""What an injected fault makes of a delta: the wrong way, and not so long that the inspection of norms would see it."""

Float32 = NDArray[np.float32]
Message = tuple[dict[str, Any], bytes]
"""Fields and payload of a question."""


def reserve_extras(adapter: Adapter, config: SiloConfig | None) -> None:
    """In a silo, room for what its codec leaves out of the deltas, and for the weights that a delta on its way is of, as part of the
    state that is saved; before anything is saved or loaded."""
    if config is None:
        return
    kinds = {RESIDUAL: config.codec != "fp32", BOUNDARY: config.overlap_steps > 0}
    for kind in (kind for kind, is_needed in kinds.items() if is_needed):
        adapter.extras[kind] = {slot.name: torch.zeros(slot.view.numel()) for slot in master_slots(adapter)}


def master_slots(adapter: Adapter) -> Iterator[Slot]:
    return (slot for slot in adapter.slots() if slot.kind == MASTER)


@dataclass
class Outbox:
    """Of one rank; no communication."""

    config: SiloConfig
    adapter: Adapter
    say_unusable: Callable[[str], None]
    """Hears, within the silo, what is wrong with a delta that goes under masks; once a round."""
    planted: str | None = None
    """An injected fault: what becomes of this round's delta."""
    noise: Noise | None = None
    """Of this round, in a silo that keeps its data private."""
    wrapping: Wrapping | None = None
    """Masks of this round, with secure aggregation."""
    _refusal: str = ""
    _is_said: bool = False
    _base: dict[str, Float32] = field(default_factory=dict)
    """By parameter, the outer weights that the inner steps began from, of the elements that this rank sends."""
    _left_out: dict[str, Float32] = field(default_factory=dict)
    """By parameter, the residuals after the delta that is on its way: they count when it does."""

    def rebase(self, pulled: Sequence[tuple[Slot, Float32]]) -> None:
        """The next delta is counted from these weights."""
        self._base = {
            slot.name: values[slot.save_start - slot.start : slot.save_end - slot.start] for slot, values in pulled
        }

    def initial(self) -> Iterator[Message]:
        """Round 0: the weights themselves."""
        sizes = {name: t.num_elements for name, t in self.adapter.tensors().items() if MASTER in t.kinds}
        owned = self._owned()
        for batch, is_last in _batches(owned):
            payload = b"".join(_elements(owned[chunk.name], chunk).tobytes() for chunk in batch)
            yield {"sizes": sizes, "spans": batch, "is_last": is_last}, payload

    def refuse(self, why: str) -> None:
        """There is no delta in this round."""
        self._refusal = why

    def deltas(self) -> Iterator[tuple[Chunk, Float32]]:
        """The delta as it is, for those who measure it."""
        owned = self._owned()
        for batch, _ in _batches(owned):
            for chunk in batch:
                yield chunk, self._delta(owned[chunk.name], chunk)

    def keep_boundary(self) -> None:
        """With overlap: the round's delta is of the weights as they are now, whatever becomes of them."""
        for slot in master_slots(self.adapter):
            self.adapter.extras[BOUNDARY][slot.name].copy_(slot.view.detach())

    def messages(self, number: int, tokens: int) -> Iterator[Message]:
        """The round's delta, in messages of a few chunks each, the last of which says so; or one that says why there is none. With overlap
        another thread may take them while the weights change."""
        return self._messages(self._owned(), number, tokens)

    def _messages(self, owned: dict[str, Slot], number: int, tokens: int) -> Iterator[Message]:
        feedback = ErrorFeedback(load_codec(self.config.codec))
        for batch, is_last in _batches(owned):
            fields = {"round": number, "tokens": tokens, "is_last": is_last}
            try:
                if self._refusal:
                    raise UnusableDelta(self._refusal)
                parts = [self._encoded(feedback, owned[chunk.name], chunk) for chunk in batch]
            except UnusableDelta as error:
                yield {**fields, "spans": [], "unusable": self._why_for_others(str(error))}, b""
                return
            spans = [[*chunk, len(part)] for chunk, part in zip(batch, parts, strict=True)]
            yield {**fields, "spans": spans}, b"".join(parts)

    def _why_for_others(self, why: str) -> str:
        """What leaves the silo of why there is no delta."""
        if self.wrapping is None:
            return why
        if not self._is_said:  # the message is made anew whenever a connection broke
            self.say_unusable(why)
            self._is_said = True
        return UNTOLD

    def settle(self, state: State | str) -> None:
        """What became of the delta. Of one that was not used nothing was left out."""
        if RESIDUAL in self.adapter.extras and state == "done":
            for name, slot in self._owned().items():
                part = slice(slot.save_start - slot.start, slot.save_end - slot.start)
                self.adapter.extras[RESIDUAL][name][part] = torch.from_numpy(self._left_out[name])
        self._left_out.clear()
        self.noise, self.wrapping, self._refusal, self._is_said = None, None, "", False

    def _delta(self, slot: Slot, chunk: Chunk) -> Float32:
        """Outer weights - the silo's [chunk.count]."""
        part = slice(chunk.start - slot.save_start, chunk.start - slot.save_start + chunk.count)
        delta = self._base[chunk.name][part] - self._ended_with(slot, chunk)
        if self.planted == "nan":
            delta[0] = np.nan
        elif self.planted == "garbage":
            delta *= np.float32(GARBAGE_FACTOR)
        return delta

    def _ended_with(self, slot: Slot, chunk: Chunk) -> Float32:
        """The silo's weights at the end of the round [chunk.count]."""
        if (kept := self.adapter.extras.get(BOUNDARY)) is None:
            return _elements(slot, chunk)
        first = chunk.start - slot.start
        return kept[chunk.name].numpy()[first : first + chunk.count]

    def _encoded(self, feedback: ErrorFeedback, slot: Slot, chunk: Chunk) -> bytes:
        """Under noise and masks, or with what earlier deltas left out. Raises UnusableDelta."""
        delta = self._delta(slot, chunk)
        if self.noise is not None:
            delta = self.noise.put_on(delta, chunk)
        if self.wrapping is not None:
            return self.wrapping.put_on(delta, chunk)
        if (residuals := self.adapter.extras.get(RESIDUAL)) is None:
            return feedback.codec.encode(delta)
        at = slice(chunk.start - slot.start, chunk.start - slot.start + chunk.count)
        feedback.residuals[chunk] = residuals[chunk.name].numpy()[at]
        data = feedback.encode(chunk, delta)
        left_out = self._left_out.setdefault(chunk.name, np.empty(slot.save_end - slot.save_start, np.float32))
        part = slice(chunk.start - slot.save_start, chunk.start - slot.save_start + chunk.count)
        left_out[part] = feedback.residuals.pop(chunk)
        return data

    def _owned(self) -> dict[str, Slot]:
        """By parameter, where what this rank sends of it is."""
        return {slot.name: slot for slot in master_slots(self.adapter) if slot.save_end > slot.save_start}


def _batches(owned: dict[str, Slot]) -> Iterator[tuple[list[Chunk], bool]]:
    """Chunks of a message, and whether it is the last. One message at least, since its end has to be told."""
    chunks = [Chunk(slot.name, slot.save_start, slot.save_end - slot.save_start) for slot in owned.values()]
    batches = list(cut(chunks)) or [[]]
    for index, batch in enumerate(batches, 1):
        yield batch, index == len(batches)


def _elements(slot: Slot, chunk: Chunk) -> Float32:
    first = chunk.start - slot.start
    return slot.view[first : first + chunk.count].detach().cpu().numpy()
