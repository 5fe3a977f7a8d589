"""Memory of one rank at the moments when a step takes most, by closed forms.

States follow Rajbhandari et al. 2020 (ZeRO, section 3 and figure 1); what DeepSpeed 0.19.8 takes besides was read off its
optimizers, and the whole is compared with measured ranks by `benchmarks/plan_memory.py`. Unlike the paper's 16 bits, gradients accumulate and
travel in fp32 (`trainer/engine.py`), and in fp32 the partitioned stages keep masters beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.sizing.setup import REDUCE_BUCKET_ELEMENTS, Setup

FP32_BYTES = 4
LOSS_BYTES_PER_LOGIT = 12
"""Where logits are whole: log-probabilities, their gradient and that of the logits, each in fp32."""
LOSS_CHUNK_BYTES = {False: 64 * 2**20, True: 512 * 2**20}
"""Elsewhere: of logits that there are at a time, on CPUs and GPUs (`trainer/token_loss.py`). Every chunk reads and writes the gradient of the whole
output embedding once, so there should be few."""
LOSS_WORKING_BYTES = {False: 2 * 2**20, True: 256 * 2**20}
"""What turning logits into gradients takes besides, in fp32."""


@dataclass(frozen=True)
class Moment:
    """What a rank's device holds at one point of a step, in bytes by what it is for."""

    name: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class RankMemory:
    """A rank's moments, and what it holds in host memory because it is offloaded."""

    moments: tuple[Moment, ...]
    states: dict[str, int]
    """Of the device, between steps."""
    offloaded: dict[str, int]

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def states_bytes(self) -> int:
        return sum(self.states.values())

    @property
    def offloaded_bytes(self) -> int:
        return sum(self.offloaded.values())


def rank_memory(model: ModelSizes, setup: Setup) -> RankMemory:
    """The step's three heights: the loss (all activations and the logits), the reduction of the gradients, the optimizer."""
    states, offloaded = states_of(model, setup)
    kept = gradients_kept(model, setup)
    loss = {**states, **_forward(model, setup)}
    if setup.zero_stage == 3:
        loss["buckets"] = setup.element_bytes * _held(model, setup)
    if setup.batch.gradient_accumulation_steps > 1 or setup.zero_stage == 3 or _sums_in_place(setup):
        loss["gradients"] = kept  # in the last two cases in buffers that are there from the start
    reduce = {**states, **_reduction(model, setup, kept)}
    step = {**states, **_optimizer_step(model, setup)}
    moments = (Moment("loss", loss), Moment("reduction", reduce), Moment("optimizer", step))
    return RankMemory(moments, states, offloaded)


def states_of(model: ModelSizes, setup: Setup) -> tuple[dict[str, int], dict[str, int]]:
    """What lies there between steps: on the device, and offloaded to host memory."""
    stage, parameters, element = setup.zero_stage, model.parameters, setup.element_bytes
    part = setup.partition(parameters) if stage else parameters
    device, host = {"weights": element * (setup.partition(parameters) if stage == 3 else parameters)}, dict[str, int]()
    masters = FP32_BYTES * part if stage or setup.precision != "fp32" else 0
    optimizer = {"masters": masters, "moments": setup.moments_bytes * part}
    if setup.offload_optimizer:
        host |= optimizer | _offloaded_gradients(model, setup, part)
    else:
        device |= optimizer
    if setup.offload_param:
        host["weights"] = device.pop("weights")
    return device, host


def _offloaded_gradients(model: ModelSizes, setup: Setup, part: int) -> dict[str, int]:
    """The optimizer's gradients. Besides, stage 3 adds up micro-steps in one more buffer, the others in fp32 with whole tensors of the partition; and
    they have room for the updated weights and for the largest tensor."""
    if setup.zero_stage == 3:
        return {"gradients": 2 * FP32_BYTES * part}
    adds_here = setup.precision == "fp32" and setup.batch.gradient_accumulation_steps > 1
    room = setup.element_bytes * (part + model.largest_parameter)
    return {"gradients": FP32_BYTES * part * (1 + adds_here), "buffers": room}


def _sums_in_place(setup: Setup) -> bool:
    """Whether gradients have buffers of their own in which they are summed over ranks, too (trainer/bf16_gradients.py)."""
    return setup.zero_stage == 1 and setup.precision == "bf16" and not setup.offload_optimizer


def gradients_kept(model: ModelSizes, setup: Setup) -> int:
    """Bytes of gradients on the device between two micro-steps."""
    if setup.zero_stage == 0:
        return setup.element_bytes * model.parameters
    if setup.zero_stage == 1:
        return FP32_BYTES * model.parameters
    # Stage 2 adds up 16-bit gradients in fp32 where they are, and hands the sum over.
    if setup.offload_optimizer and (setup.zero_stage == 3 or setup.precision == "fp32"):
        return 0
    return FP32_BYTES * setup.partition(model.parameters)


# -- forward and backward -------------------------------------------------------------------------------------------------
def activation_bytes(model: ModelSizes, setup: Setup) -> int:
    """What one micro-step keeps from its forward for its backward. With checkpointing each layer keeps its input only, and one layer
    at a time all of it (Chen et al. 2016)."""
    tokens, element = setup.tokens_per_micro_step, setup.element_bytes
    layer = tokens * (model.kept_elements * element + model.kept_fp32_elements * FP32_BYTES)
    layer += tokens * _scores_bytes(model, setup)
    around = 3 * tokens * model.hidden * element  # the embedding's output, the last norm and its output
    if setup.activation_checkpointing:
        return model.num_layers * tokens * model.hidden * element + layer + around
    return model.num_layers * layer + around


def _scores_bytes(model: ModelSizes, setup: Setup) -> int:
    """Of a layer's attention where it is not computed in one kernel, per token."""
    length, element = setup.sequence_length, setup.element_bytes
    if model.kept_elements_per_pair:  # for dropout: in fp32 where torch takes its kernel apart
        return length * model.kept_elements_per_pair * (element if setup.attention == "eager" else FP32_BYTES)
    if setup.attention != "eager":
        return 0
    # Probabilities in fp32, and once more as values are weighed with; keys and values repeated for every head of a group (a single one is a view).
    cast = element if element != FP32_BYTES else 0
    is_view = model.key_width * model.heads == model.attention_width
    repeated = 0 if is_view else 2 * (model.attention_width - model.key_width) * element
    return length * model.heads * (FP32_BYTES + cast) + repeated


def _gathered_bytes(model: ModelSizes, setup: Setup, is_forward: bool) -> int:
    """Stage 3: weights that are whole at a time. Each module that runs asks for more ahead until `max_live` elements are there, and what will be used
    again within `max_reuse` is not let go: for most models that is all of them by default. What comes ahead lies there twice, as it came and in its
    place. On CPUs that is over when gradients travel; at the start of a forward it lies in gloo as well, which gathers into memory of its own
    (torch's ProcessGroupGloo::allgather)."""
    if setup.zero_stage < 3:
        return 0
    least = model.layer_parameters + model.largest_parameter
    live = min(model.parameters, max(setup.max_live, setup.max_reuse, least))
    copies = 1 if setup.on_gpu else 2 * is_forward
    return setup.element_bytes * (live + copies * _gathered_ahead(model, setup))


def _gathered_ahead(model: ModelSizes, setup: Setup) -> int:
    """Elements, at least a whole tensor."""
    return min(model.parameters, max(setup.prefetch_bucket, model.largest_parameter))


def _forward(model: ModelSizes, setup: Setup) -> dict[str, int]:
    tokens = setup.tokens_per_micro_step
    working = tokens * model.working_elements * setup.element_bytes
    if setup.attention == "eager":  # gradients of one layer's scores: in fp32, as they are multiplied, and scaled
        working += tokens * setup.sequence_length * model.heads * (FP32_BYTES + 2 * setup.element_bytes)
    return {
        "activations": activation_bytes(model, setup),
        "logits and loss": max(_loss_bytes(model, setup), working),
        "gathered weights": _gathered_bytes(model, setup, is_forward=True),
    }


def _loss_bytes(model: ModelSizes, setup: Setup) -> int:
    """A chunk's logits, and the gradient of the embedding that they are multiplied from: in fp32 too where it is added up over chunks."""
    logits = setup.tokens_per_micro_step * model.vocabulary
    if not fuses_loss(model, setup):
        return LOSS_BYTES_PER_LOGIT * logits
    element, chunk = setup.element_bytes, LOSS_CHUNK_BYTES[setup.on_gpu]
    embedding = model.vocabulary * model.hidden
    if logits * element <= chunk:
        return element * (logits + embedding) + LOSS_WORKING_BYTES[setup.on_gpu]
    return chunk + (element + FP32_BYTES) * embedding + LOSS_WORKING_BYTES[setup.on_gpu]


def fuses_loss(model: ModelSizes, setup: Setup) -> bool:
    """Whether logits never exist whole (`trainer/token_loss.py`)."""
    return model.returns_plain_logits and setup.precision != "fp16"


def _held(model: ModelSizes, setup: Setup) -> int:
    """Elements that a bucket takes: on a GPU it is there in full, on a CPU only what is written to takes memory."""
    return setup.reduce_bucket if setup.on_gpu else min(model.parameters, setup.reduce_bucket)


# -- gradients ------------------------------------------------------------------------------------------------------------
def _reduction(model: ModelSizes, setup: Setup, kept: int) -> dict[str, int]:
    """While gradients travel."""
    parameters, element = model.parameters, setup.element_bytes
    bucket = min(parameters, max(setup.reduce_bucket, model.largest_parameter))  # one that is larger travels alone
    held = _held(model, setup)
    if setup.zero_stage == 0:  # its bucket is no setting
        copied = min(parameters, REDUCE_BUCKET_ELEMENTS)
        return {"gradients": kept, "buckets": (element if element == FP32_BYTES else element + FP32_BYTES) * copied}
    if setup.zero_stage == 1:
        if _sums_in_place(setup):
            return {"gradients": kept, "buckets": 0}
        # Of 16 bits, the partition's sum is made in memory of its own.
        own = 0 if setup.precision == "fp32" else FP32_BYTES * setup.partition(parameters)
        return {"gradients": kept + own, "buckets": FP32_BYTES * (held + bucket)}
    staged = (2 if setup.overlap_comm and setup.on_gpu else 1) * element * held
    still = activation_bytes(model, setup) * (parameters - bucket) // parameters
    if setup.zero_stage == 3:
        return _reduction_of_stage_3(model, setup, kept, staged, still)
    copies = FP32_BYTES * bucket if element == FP32_BYTES else (element + FP32_BYTES) * bucket
    if (fresh := _fresh_gradients(model, setup)) > still:
        kept, still = kept + fresh, 0
    return {"gradients": kept, "buckets": staged + copies, "activations": still}


def _fresh_gradients(model: ModelSizes, setup: Setup) -> int:
    """Stage 2 in fp32: what a micro-step adds to the partition's gradients lies beside them until its end, when all activations are gone."""
    if setup.precision != "fp32" or setup.offload_optimizer or setup.batch.gradient_accumulation_steps == 1:
        return 0
    return FP32_BYTES * setup.partition(model.parameters)


def _reduction_of_stage_3(model: ModelSizes, setup: Setup, kept: int, staged: int, still: int) -> dict[str, int]:
    """A reduce-scatter: a bucket is widened to fp32 and sorted by rank, what is larger than one travels alone as it lies there, and gloo
    computes on a copy (torch's ProcessGroupGloo::reduce_scatter_tensor_coalesced). The gradient of an embedding that is the head, too, is whole
    at the end of the backward only, when nothing else is gathered any more."""
    widened = 0 if setup.element_bytes == FP32_BYTES else FP32_BYTES
    copied = 0 if setup.on_gpu else FP32_BYTES
    gathered, largest = _gathered_bytes(model, setup, is_forward=False), model.largest_parameter
    together = min(model.parameters, setup.reduce_bucket) * (widened + FP32_BYTES + copied)
    parts = {"gradients": kept, "buckets": staged + together, "activations": still, "gathered weights": gathered}
    if largest <= setup.reduce_bucket:
        return parts
    alone = {**parts, "buckets": staged + largest * (setup.element_bytes + widened + copied)}
    if model.ties_embeddings:
        alone |= {"activations": 0, "gathered weights": setup.element_bytes * largest}
    return max(parts, alone, key=lambda each: sum(each.values()))


# -- the optimizer --------------------------------------------------------------------------------------------------------
def _optimizer_step(model: ModelSizes, setup: Setup) -> dict[str, int]:
    """None of the optimizers makes temporaries of the size of what it updates."""
    parameters, part = model.parameters, setup.partition(model.parameters)
    if setup.offload_optimizer or _sums_in_place(setup):
        return {"gradients": gradients_kept(model, setup)}
    if setup.zero_stage == 0:
        flat = 0 if setup.precision == "fp32" else FP32_BYTES * parameters
        return {"gradients": setup.element_bytes * parameters + flat}
    if setup.zero_stage == 3:
        at_once = min(part, setup.sub_group)
        return {
            "gradients": FP32_BYTES * (part + at_once),
            "buckets": setup.element_bytes * _held(model, setup),
        }
    return {"gradients": FP32_BYTES * 2 * part}
