"""Where each of DeepSpeed's optimizer classes keeps master weights and moments. Only this module and gradients.py touch its private attributes.

One adapter per class of DeepSpeed 0.19 (tests/trainer/checkpoint/test_adapters.py fails when an upgrade changes one):

| adapter | class | when |
|---|---|---|
| `PlainAdapter` | torch.optim.AdamW itself | stage 0, fp32 |
| `UnfusedAdapter` | FP16_UnfusedOptimizer | stage 0, bf16 and fp16 |
| `FlatAdapter` | DeepSpeedZeroOptimizer, BF16_Optimizer | stages 1 and 2 |
| `Stage3Adapter` | DeepSpeedZeroOptimizer_Stage3 | stage 3 |

Slots are views into the owning buffers, never a getter's result, which may be a temporary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from zerofleet.trainer.adamw import Bf16MomentsAdamW
from zerofleet.trainer.checkpoint.format import Scalars
from zerofleet.trainer.checkpoint.fragments import MASTER, VALUE, Tensor, equal_part
from zerofleet.trainer.errors import WrongFragment

MOMENTS = ("exp_avg", "exp_avg_sq")
DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """Elements [start, start + view.numel()) of a logical tensor, in the buffer of this rank that owns them.

    `save_start` and `save_end` (elements of the logical tensor) bound what this rank saves: all of a partition, its
    equal part of what every rank holds whole.
    """

    name: str
    kind: str
    start: int
    view: torch.Tensor
    save_start: int
    save_end: int

    def saved_view(self) -> torch.Tensor:
        return self.view[self.save_start - self.start : self.save_end - self.start]


@dataclass(frozen=True)
class _Home:
    """Where one rank keeps its elements of a trainable parameter: `buffer[offset : offset + length]` are elements from `start` on."""

    start: int
    length: int
    buffer: torch.Tensor
    offset: int
    group: int


class Adapter(ABC):
    """Fragments of one engine: where they are, how to refresh the 16-bit weights after a write, scalar state."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._model: torch.nn.Module = engine.module
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._names = dict(self._model.named_parameters())
        self.counters: dict[str, int] = {}
        """Whole numbers of others that belong to the state: saved and restored with DeepSpeed's."""
        self.extras: dict[str, dict[str, torch.Tensor]] = {}
        """Tensors of others that belong to the state: by kind and parameter, fp32, one element for each that this rank holds."""
        self._materialise()

    # -- what a subclass says --------------------------------------------------------------------------------------
    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer  # type: ignore[no-any-return]

    @property
    def _moments_dtype(self) -> torch.dtype:
        return torch.bfloat16 if isinstance(self._torch_optimizer, Bf16MomentsAdamW) else torch.float32

    @abstractmethod
    def _buffers(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """Every tensor that the torch optimizer steps on, with its param group."""

    @abstractmethod
    def _home(self, name: str, parameter: torch.nn.Parameter) -> _Home | None:
        """Where this rank keeps its part of a trainable parameter; None when it has none."""

    @abstractmethod
    def refresh(self) -> None:
        """Brings the weights that forward uses in line with the masters. Collective."""

    def _loss_scaler(self) -> Any:
        return getattr(self._engine.optimizer, "loss_scaler", None)

    def missing_loss_scale(self) -> float:
        """What the loss must still be multiplied by because DeepSpeed divides the gradient by it without having done so."""
        return 1.0

    @property
    def _partitioned(self) -> bool:
        return True

    # -- tensors ---------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, Tensor]:
        """All logical tensors of the model: parameters and persistent buffers."""
        aliases: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        found, moments = {}, DTYPE_NAMES[self._moments_dtype]
        for name, parameter in self._names.items():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            kinds = (
                {MASTER: "F32", **dict.fromkeys(MOMENTS, moments), **dict.fromkeys(self.extras, "F32")}
                if parameter.requires_grad
                else {VALUE: DTYPE_NAMES[parameter.dtype]}
            )
            found[name] = Tensor(shape, kinds, tuple(n for n in aliases[id(parameter)] if n != name))
        for name, buffer in self._persistent_buffers().items():
            found[name] = Tensor(tuple(buffer.shape), {VALUE: DTYPE_NAMES[buffer.dtype]})
        return found

    def slots(self) -> Iterator[Slot]:
        """All of this rank's slots. No communication."""
        for name, parameter in self._names.items():
            if parameter.requires_grad:
                yield from self._trainable_slots(name, parameter)
            elif hasattr(parameter, "ds_tensor"):
                partition = parameter.ds_tensor
                start = min(self._rank * partition.numel(), parameter.ds_numel)
                length = min(partition.numel(), parameter.ds_numel - start)
                if length:
                    yield Slot(name, VALUE, start, partition.data.view(-1)[:length], start, start + length)
            else:
                yield self._replicated(name, VALUE, parameter.data)
        for name, buffer in self._persistent_buffers().items():
            yield self._replicated(name, VALUE, buffer)

    def _trainable_slots(self, name: str, parameter: torch.nn.Parameter) -> Iterator[Slot]:
        home = self._home(name, parameter)
        if home is None or not home.length:
            return
        state = self._torch_optimizer.state[home.buffer]
        flat = {MASTER: home.buffer.data, **{kind: state[kind] for kind in MOMENTS}}
        part = slice(home.offset, home.offset + home.length)
        views = {kind: buffer.view(-1)[part] for kind, buffer in flat.items()}
        for kind, view in (views | {kind: tensors[name] for kind, tensors in self.extras.items()}).items():
            if self._partitioned:
                yield Slot(name, kind, home.start, view, home.start, home.start + home.length)
            else:
                yield self._replicated(name, kind, view)

    def _replicated(self, name: str, kind: str, tensor: torch.Tensor) -> Slot:
        view = tensor.view(-1)
        return Slot(name, kind, 0, view, *equal_part(view.numel(), self._rank, self._world_size))

    def _persistent_buffers(self) -> dict[str, torch.Tensor]:
        state = self._model.state_dict(keep_vars=True)
        return {name: value for name, value in state.items() if not isinstance(value, torch.nn.Parameter)}

    def _materialise(self) -> None:
        """Creates AdamW's state before the first step, as its own first step would, so that it can be saved and loaded."""
        state = self._torch_optimizer.state
        for buffer, group in self._buffers():
            if not state[buffer]:
                on_device = group.get("fused") or group.get("capturable")
                step: Any = torch.zeros((), dtype=torch.float32, device=buffer.device if on_device else "cpu")
                state[buffer] = {
                    "step": step if isinstance(self._torch_optimizer, torch.optim.AdamW | Bf16MomentsAdamW) else 0,
                    **{kind: torch.zeros_like(buffer.data, dtype=self._moments_dtype) for kind in MOMENTS},
                }

    def check_fragments(self) -> None:
        """Compares every master with the weights that forward uses.

        Raises WrongFragment when an element differs: then `name` points at another parameter's data.
        """
        for slot in self.slots():
            if slot.kind != MASTER:
                continue
            parameter = self._names[slot.name]
            if hasattr(parameter, "ds_tensor"):
                weights = parameter.ds_tensor.data.view(-1)[: slot.view.numel()]
            else:
                weights = parameter.data.view(-1)[slot.start : slot.start + slot.view.numel()]
            expected = slot.view.to(device=weights.device, dtype=weights.dtype)
            if not torch.equal(expected, weights):
                differing = int((expected != weights).sum())
                raise WrongFragment(
                    f"{differing} of {weights.numel()} master weights of {slot.name} (elements {slot.start} to "
                    f"{slot.start + weights.numel()}) are not the module's weights: DeepSpeed's mapping points at other data. "
                    "Remove what changes DeepSpeed's partitioning from the `deepspeed` section (round_robin_gradients does this)"
                )

    # -- scalars ---------------------------------------------------------------------------------------------------
    def scalars(self) -> Scalars:
        """Steps per parameter group, loss scaler, counters."""
        steps = {
            self._group_index(group): int(self._torch_optimizer.state[buffer]["step"])
            for buffer, group in self._buffers()
        }
        scaler = self._loss_scaler()
        return Scalars(
            optimizer_steps=[steps[index] for index in sorted(steps)],
            loss_scaler={
                name: float(getattr(scaler, attribute))
                for name, attribute in _SCALER_FIELDS.items()
                if getattr(scaler, attribute, None) is not None
            }
            if self._engine.fp16_enabled()
            else {},
            engine={
                "global_steps": self._engine.global_steps,
                "skipped_steps": self._engine.skipped_steps,
                **self.counters,
            },
        )

    def set_scalars(self, scalars: Scalars) -> None:
        """Writes them back, as this world size needs them."""
        for buffer, group in self._buffers():
            state = self._torch_optimizer.state[buffer]
            value = scalars.optimizer_steps[self._group_index(group)]
            if torch.is_tensor(state["step"]):
                state["step"].fill_(value)
            else:
                state["step"] = value
        scaler = self._loss_scaler()
        for name, attribute in _SCALER_FIELDS.items():
            if name in scalars.loss_scaler and hasattr(scaler, attribute):
                number = scalars.loss_scaler[name]
                setattr(scaler, attribute, number if attribute == "cur_scale" else int(number))
        self._engine.global_steps = scalars.engine["global_steps"]
        self._engine.skipped_steps = scalars.engine["skipped_steps"]
        self.counters = {name: count for name, count in scalars.engine.items() if name not in _ENGINE_COUNTERS}
        # The boundary of accumulation is counted in micro-steps: always whole steps of this world size.
        self._engine.micro_steps = self._engine.global_steps * self._engine.gradient_accumulation_steps()

    def _group_index(self, group: dict[str, Any]) -> int:
        return next(index for index, other in enumerate(self._torch_optimizer.param_groups) if other is group)


_ENGINE_COUNTERS = ("global_steps", "skipped_steps")
_SCALER_FIELDS = {
    "scale": "cur_scale",
    "iteration": "cur_iter",
    "last_overflow_iteration": "last_overflow_iter",
    "hysteresis": "cur_hysteresis",
}


class PlainAdapter(Adapter):
    """Stage 0 in fp32: the parameters are the masters."""

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer  # type: ignore[no-any-return]

    @property
    def _partitioned(self) -> bool:
        return False

    def _buffers(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        for group in self._torch_optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter, group

    def _home(self, name: str, parameter: torch.nn.Parameter) -> _Home:
        return _Home(0, parameter.numel(), parameter, 0, 0)

    def refresh(self) -> None:
        """Nothing to do: the masters are the weights."""


class UnfusedAdapter(PlainAdapter):
    """Stage 0 in 16 bits: an fp32 copy per parameter, on every rank."""

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer  # type: ignore[no-any-return]

    def _materialise(self) -> None:
        """Undoes what DeepSpeed's constructor did to create the state: a step with zero gradients, which counts as a step
        and moves every master by its weight decay."""
        super()._materialise()
        for low, high in self._pairs():
            high.data.copy_(low.data)
            state = self._torch_optimizer.state[high]
            state["step"] = torch.zeros_like(state["step"])
            for kind in MOMENTS:
                state[kind].zero_()

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        optimizer = self._engine.optimizer
        for low_group, high_group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from zip(low_group, high_group, strict=True)

    def _home(self, name: str, parameter: torch.nn.Parameter) -> _Home:
        master = next(high for low, high in self._pairs() if low is parameter)
        return _Home(0, master.numel(), master, 0, 0)

    def refresh(self) -> None:
        for low, high in self._pairs():
            low.data.copy_(high.data)

    def _loss_scaler(self) -> Any:
        return self._engine.optimizer.loss_scale_config

    def missing_loss_scale(self) -> float:
        """`engine.backward` of 0.19.8 scales the loss for ZeRO's optimizers only; this one unscales all the same, so that in
        fp16 gradients would shrink to AdamW's epsilon, and none would ever be clipped."""
        return float(self._loss_scaler().cur_scale)


class FlatAdapter(Adapter):
    """Stages 1 and 2: one flat fp32 partition per parameter group; `_hp_mapping` says which elements of a parameter it holds."""

    def _partitions(self) -> list[torch.Tensor]:
        optimizer = self._engine.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            return optimizer.fp32_groups_flat_partition  # type: ignore[no-any-return]
        return optimizer.single_partition_of_fp32_groups  # type: ignore[no-any-return]

    def _buffers(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        yield from zip(self._partitions(), self._torch_optimizer.param_groups, strict=True)

    def _home(self, name: str, parameter: torch.nn.Parameter) -> _Home | None:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        high, low = mapping.hp_fragment_address, mapping.lp_fragment_address
        buffer = self._partitions()[mapping.param_group_index]
        return _Home(low.start, high.numel, buffer, high.start, mapping.param_group_index)

    def refresh(self) -> None:
        self._engine.optimizer.update_lp_params()


class Stage3Adapter(Adapter):
    """Stage 3: rank r owns elements [r x partition, (r + 1) x partition) of every parameter, in flat sub-groups."""

    def _buffers(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        optimizer = self._engine.optimizer
        for index, buffer in enumerate(optimizer.fp32_partitioned_groups_flat):
            yield buffer, self._torch_optimizer.param_groups[optimizer.sub_group_to_group_id[index]]

    def _home(self, name: str, parameter: torch.nn.Parameter) -> _Home | None:
        optimizer = self._engine.optimizer
        sub_group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        total = parameter.ds_numel  # type: ignore[attr-defined]
        start = self._rank * padded
        length = min(padded, total - start)
        if length <= 0:
            return None
        return _Home(start, length, optimizer.fp32_partitioned_groups_flat[sub_group], offset, sub_group)

    def refresh(self) -> None:
        optimizer = self._engine.optimizer
        for sub_group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        # Parameters that stay whole on every rank keep their old values until gathered anew.
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def adapter_for(engine: Any) -> Adapter:
    """The adapter of an engine's optimizer class. Raises NotImplementedError for a class that has none."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return Stage3Adapter(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
        return FlatAdapter(engine)
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        return UnfusedAdapter(engine)
    if isinstance(optimizer, torch.optim.Optimizer):
        return PlainAdapter(engine)
    raise NotImplementedError(
        f"no checkpoint adapter for {type(optimizer).__name__}: this DeepSpeed configuration cannot be saved"
    )
