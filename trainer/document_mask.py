"""Whether a model keeps the documents of a sequence apart, as `data.document_mask` promises.

transformers 5.23 makes the block-diagonal causal mask itself, from position ids that start again (`find_packed_sequence_indices`): for
sdpa and eager attention in every batch, for flash attention in batches of one sequence only. A model that mixes tokens in other ways
(linear attention, state spaces, ALiBi) does not heed it, and nothing would say so: the loss would only be a little off.
"""

from __future__ import annotations

from typing import Any

import torch

from zerofleet.trainer.errors import UserError

_DOCUMENT_TOKENS = 8
_ROUNDINGS = 16
"""Units in the last place of the largest logit. A masked token changes nothing at all in a dense model; experts may compute in another
order when other tokens are dealt to them."""
_LARGEST_LEAK = 0.1
"""Where rounding is coarse: the share of what the other document changes when attention reaches it."""


def check_document_mask(engine: Any, num_rows: int, sequence_length: int, device: torch.device) -> None:
    """Raises UserError when a document's logits follow from what stands before it in its sequence. `num_rows` are the sequences of
    a batch in training. Four forward passes of a few tokens; collective under ZeRO-3."""
    length = min(_DOCUMENT_TOKENS, sequence_length // 2)
    tokens = torch.arange(2 * length, device=device).expand(num_rows, -1)
    changed = tokens + torch.where(tokens < length, 2 * length, 0)
    position_ids = torch.arange(length, device=device).repeat(2).expand(num_rows, -1)

    def change(**inputs: torch.Tensor) -> tuple[float, torch.Tensor]:
        """How much the second document's logits change with the first document, and the logits."""
        logits, others = (engine(input_ids=ids, **inputs).logits[:, length:] for ids in (tokens, changed))
        return float((logits.float() - others.float()).abs().max()), logits

    engine.eval()
    with torch.no_grad():
        leak, logits = change(position_ids=position_ids)
        reach, _ = change()
    engine.train()
    rounding = _ROUNDINGS * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    if leak > min(rounding, _LARGEST_LEAK * reach):
        raise UserError(
            f"data.document_mask=true, but another document in the sequence changes the logits of {type(engine.module).__name__} by "
            f"{leak:.2g} ({reach:.2g} without a mask): it does not keep documents apart. Set data.document_mask=false, or "
            "choose another model; flash attention needs train.micro_batch_size=1 for it, sdpa does not"
        )
