"""Loss of a finished model on held-out or other data: one process, no ZeRO, the arithmetic of the run's own evaluations.

Blocks, labels and the sum over real tokens are those of `Loop.evaluate`: a test compares the two on a run's own held-out part.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.sequences import SequenceStore
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.model import DTYPES
from zerofleet.trainer.sizing.setup import attention_of
from zerofleet.trainer.token_loss import TokenLoss, on_device

_TELL_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Evaluation:
    """Of one model on one corpus."""

    loss: float
    """Nats per token."""
    tokens: int
    sequences: int

    @property
    def perplexity(self) -> float:
        """Infinite where it is too large for a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def load_model(folder: Path, config: TrainConfig) -> PreTrainedModel:
    """An export, on the GPU if there is one. UserError when it cannot be loaded, or this machine has not the memory for it."""
    needed = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"the weights in {folder} take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on this {device.type}: evaluate "
            "on a machine with more, or within a run (train.eval_interval_steps), where ZeRO partitions them"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[config.train.precision],
            attn_implementation=attention_of(config, on_gpu=device.type == "cuda"),
        )
    except (OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder} cannot be loaded as a causal language model: {first_line}") from error
    return model.eval().to(device)


def check_vocabulary(model: PreTrainedModel, tokenizer_size: int) -> None:
    """UserError when the data has tokens that the model does not know."""
    vocabulary = model.config.get_text_config().vocab_size
    if tokenizer_size > vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer_size} entries and the model's vocabulary {vocabulary}: they do not belong together"
        )


def check_positions(model: PreTrainedModel, sequence_length: int) -> None:
    """UserError when the sequences are longer than the model has positions: some fail then, others guess."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise UserError(
            f"sequences of {sequence_length} tokens, and the model has {positions} positions: lower --sequence-length"
        )


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    config: TrainConfig,
    store: SequenceStore,
    num_sequences: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Mean loss per token over the first `num_sequences` of a store (all when 0), a mixture's sources in turns. `say`s how far it is every
    10 s. UserError when there is nothing to evaluate on."""
    micro = config.train.micro_batch_size
    feed = Feed.of(config, store, BatchPlan.of(micro, micro, 1), config.order_key, ())
    loss, call = TokenLoss(model), functools.partial(model, use_cache=False)
    loss_sum, tokens, sequences, told_at = 0.0, 0, 0, time.monotonic()
    wanted = min(num_sequences or store.num_sequences, store.num_sequences)
    for batch in feed.heldout_blocks(store, num_sequences, 0) if wanted else ():
        loss_sum += float(loss(call, *on_device(batch, model.device)))
        tokens, sequences = tokens + batch.num_tokens, sequences + batch.num_sequences
        if time.monotonic() - told_at > _TELL_INTERVAL_S:
            told_at = time.monotonic()
            say(f"{sequences:,} of {wanted:,} sequences, loss {loss_sum / max(1, tokens):.4f}")
    if not tokens:
        raise UserError("there is no token to evaluate on: the corpus is empty, or its held-out part is")
    return Evaluation(loss_sum / tokens, tokens, sequences)
