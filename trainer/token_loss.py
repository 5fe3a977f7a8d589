"""Cross entropy of a causal language model, computed where its logits are made, so that they never exist whole.

The output embedding is asked for the loss in place of logits: a chunk of tokens at a time it makes their logits, their loss, and at once the
gradients of the chunk's input and of its own weights, as in Liger Kernel's fused linear cross entropy (Hsu et al. 2024, arXiv:2410.10989). What
is kept for the backward are gradients of the size of the hidden states and of the embedding: 16 bytes for every logit are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from zerofleet.trainer.data.feed import Int64, MicroBatch
from zerofleet.trainer.data.sequences import IGNORED_LABEL
from zerofleet.trainer.row_sequences import one_sequence_per_row
from zerofleet.trainer.sizing.memory import LOSS_CHUNK_BYTES, LOSS_WORKING_BYTES

_WORKED_ON_BYTES = {False: LOSS_WORKING_BYTES[False] // 2, True: LOSS_WORKING_BYTES[True] // 2}
"""On CPUs and GPUs: of fp32 probabilities that are worked on at a time; on a CPU they lie in a core's own cache."""
_TRIED_TOKENS = 8


def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy in fp32 of logits [..., vocabulary], summed over the labels that are not ignored: padding gives 0 and a zero gradient."""
    flat = logits.float().view(-1, logits.shape[-1])
    return F.cross_entropy(flat, labels.view(-1), ignore_index=IGNORED_LABEL, reduction="sum")


def on_device(batch: MicroBatch, device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs and labels of a block, int64 [sequences, tokens]. A GPU fetches them while the host goes on, which it does from pinned memory only."""

    def sent(values: Int64) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    return {name: sent(values) for name, values in batch.inputs.items()}, sent(batch.labels)


class TokenLoss:
    """The summed loss of a batch, by the model's own forward.

    Fused where the output embedding is a linear layer without bias and what the model returns as logits is what that layer returned: a model that
    scales or caps its logits afterwards is noticed on the first tokens, and trained with whole logits. So is one in
    fp16, where gradients have to be multiplied by the loss scale before they are rounded.
    """

    def __init__(self, model: Any) -> None:
        head = head_of(model)
        self._head = head if head is not None and head.weight.dtype != torch.float16 else None
        self.is_tried = self._head is None

    @property
    def is_fused(self) -> bool:
        return self._head is not None

    def __call__(self, engine: Any, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Nats summed over real tokens, an fp32 scalar. `engine` calls the model with `inputs`; labels are [sequences, tokens]. Collective at
        ZeRO-3."""
        if not self.is_tried:
            self.try_out(engine, inputs)
        with contextlib.nullcontext() if "position_ids" in inputs else one_sequence_per_row():
            if self._head is None:
                return plain_loss(engine(**inputs).logits, labels)
            with self._asked(self._head, labels):
                return engine(**inputs).logits  # type: ignore[no-any-return]

    def try_out(self, engine: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        """Finds out on a few tokens of a batch whether the loss can be fused. Collective at ZeRO-3."""
        self.is_tried = True
        few = {name: values[:1, :_TRIED_TOKENS] for name, values in inputs.items()}
        if self._head is not None and not returns_what_its_head_returns(self._head, engine, few):
            self._head = None

    @staticmethod
    def _asked(head: Any, labels: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """Within it the output embedding returns the loss of what it is given."""

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            # Within a Function nothing says that no gradients are wanted but that nothing asks for them.
            weight = head.weight if torch.is_grad_enabled() else head.weight.detach()
            made: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]
            return made

        return _in_place_of_forward(head, forward)


def head_of(model: Any) -> torch.nn.Linear | None:
    """The output embedding, if it is nothing but a matrix."""
    head = model.get_output_embeddings()
    return head if isinstance(head, torch.nn.Linear) and head.bias is None else None


@torch.no_grad()
def returns_what_its_head_returns(head: torch.nn.Linear, engine: Any, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the logits of `engine(**inputs)` are what the output embedding has returned, and nothing was done with them: tried with a scalar in
    their place. Leaves generators as they are. Collective at ZeRO-3."""
    made = torch.zeros((), device=head.weight.device)
    devices = [made.device] if made.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _in_place_of_forward(head, lambda hidden: made):
        try:
            returned = engine(**inputs).logits
        except (IndexError, RuntimeError, TypeError, ValueError):  # a scalar cannot be cut, reshaped or unpacked
            return False
    if made._version:  # changed in place
        return False
    # DeepSpeed's hooks return another tensor over the same memory; on meta tensors there is none.
    is_same = returned.data_ptr() == made.data_ptr() and made.device.type != "meta"
    return returned is made or (returned.dim() == 0 and is_same)


@contextlib.contextmanager
def _in_place_of_forward(head: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The instance's own: its hooks stay."""
    head.forward = forward
    try:
        yield
    finally:
        del head.forward


class _LinearCrossEntropy(torch.autograd.Function):
    """hidden [sequences, tokens, width], weight [vocabulary, width], labels [sequences, tokens] -> fp32 scalar, the sum."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows, flat_labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1, 1)
        chunk = max(1, LOSS_CHUNK_BYTES[rows.device.type != "cpu"] // (weight.shape[0] * weight.element_size()))
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        loss = torch.zeros((), dtype=torch.float64, device=rows.device)
        grad_hidden = torch.empty_like(rows) if for_hidden else None
        grad_weight: torch.Tensor | None = None
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            logits = part @ weight.t()
            loss += _to_gradients(logits, flat_labels[start : start + chunk], keep=for_hidden or for_weight)
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[start : start + chunk])
            if for_weight:
                grad_weight = _added(grad_weight, logits.t() @ part, is_only=chunk >= len(rows))
        ctx.save_for_backward(
            None if grad_hidden is None else grad_hidden.view(hidden.shape),
            None if grad_weight is None else grad_weight.to(weight.dtype),
        )
        return loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        for made in (grad_hidden, grad_weight):
            if made is not None:
                _scale(made, gradient)
        return grad_hidden, grad_weight, None


def _scale(values: torch.Tensor, factor: torch.Tensor) -> None:
    """In place: nothing else holds a gradient, and a backward runs once. In fp32 on GPUs too, where 16-bit values would have the factor rounded."""
    if values.device.type == "cpu" or values.dtype == torch.float32:
        values.mul_(factor)
        return
    flat = values.view(-1)
    for part in torch.split(flat, _WORKED_ON_BYTES[True] // 4):
        part.copy_(part.float().mul_(factor))


def _added(total: torch.Tensor | None, part: torch.Tensor, is_only: bool) -> torch.Tensor:
    """Of several, in fp32: 16 bits would round after every chunk."""
    if total is None:
        return part if is_only else part.float()
    return total.add_(part)


def _to_gradients(logits: torch.Tensor, labels: torch.Tensor, keep: bool) -> torch.Tensor:
    """The summed loss (fp64) of logits [tokens, vocabulary] and labels [tokens, 1]. With `keep`, the logits are overwritten by its gradient."""
    rows = max(1, _WORKED_ON_BYTES[logits.device.type != "cpu"] // (4 * logits.shape[1]))
    loss = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), rows):
        part, targets = logits[start : start + rows], labels[start : start + rows]
        is_real = targets != IGNORED_LABEL
        targets = targets.clamp(min=0)
        probabilities = torch.softmax(part, 1, dtype=torch.float32)
        picked = probabilities.gather(1, targets)
        if part.device.type == "cpu" and float(picked.min()) >= torch.finfo(torch.float32).tiny:
            logs = picked.log()
        else:  # a GPU would have to wait to know: the largest probability, one over the sum of exponentials, never vanishes
            over_largest = part.gather(1, targets).float() - part.amax(1, keepdim=True).float()
            logs = over_largest.add_(probabilities.amax(1, keepdim=True).log_())
        loss -= logs.mul_(is_real).sum(dtype=torch.float64)
        if keep:
            probabilities.scatter_(1, targets, picked - 1)
            torch.mul(probabilities, is_real, out=part)
    return loss
