"""The unit of a checkpoint: a run of elements of one logical tensor. Knows neither torch nor DeepSpeed.

A fragment is (canonical parameter name, kind, start element) of the flattened logical tensor. Kinds: `master` (fp32
weights), `exp_avg`, `exp_avg_sq` (AdamW's moments), and `value` (frozen parameters and buffers, in their own dtype).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MASTER, VALUE = "master", "value"
DTYPES: dict[str, np.dtype] = {
    # bf16 has no numpy dtype: its bits travel as uint16.
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
"""safetensors' dtype names and the numpy dtype that carries their bytes."""


@dataclass(frozen=True)
class FragmentKey:
    """Elements [start, start + length) of the flattened tensor `name` of kind `kind`; dtype as safetensors names it."""

    name: str
    kind: str
    start: int
    length: int
    dtype: str

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def num_bytes(self) -> int:
        return self.length * DTYPES[self.dtype].itemsize

    def label(self) -> str:
        """The tensor name in a rank file. Kind and start stand first, so that any parameter name fits behind them."""
        return f"{self.kind}/{self.start}/{self.name}"

    @staticmethod
    def parse(label: str, length: int, dtype: str) -> FragmentKey:
        kind, start, name = label.split("/", 2)
        return FragmentKey(name, kind, int(start), length, dtype)


@dataclass(frozen=True)
class Tensor:
    """A logical tensor of the model: its shape, its dtype as safetensors names it, and the kinds that it is saved as."""

    shape: tuple[int, ...]
    kinds: dict[str, str]
    """Kind to dtype."""
    aliases: tuple[str, ...] = ()
    """Other names of the same tensor (tied weights)."""

    @property
    def num_elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def equal_part(num_elements: int, rank: int, world_size: int) -> tuple[int, int]:
    """The [start, end) that rank saves of a tensor which every rank holds whole: parts differ by at most one element."""
    return num_elements * rank // world_size, num_elements * (rank + 1) // world_size


def digest(values: npt.NDArray[np.generic], start: int) -> int:
    """Additive digest, mod 2^64, of elements [start, start + n): the sum of mix(bits + (index + 1) x golden).

    `mix` is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    Digests of disjoint runs add up to the digest of the whole, so it does not depend on how a tensor was partitioned.
    Compiled: about 5 GB/s on a core, where numpy's passes reach 1.
    """
    from zerofleet.trainer.checkpoint.kernel import sum_of_mixes  # numba takes a quarter of a second to import

    bits = values.reshape(-1).view(f"<u{values.dtype.itemsize}")
    bits.flags.writeable = False  # of this view alone: numba would compile once more for what may be written to
    return int(sum_of_mixes(bits, np.uint64(start)))


def add_digests(*digests: int) -> int:
    """The digest of the union of disjoint runs."""
    return sum(digests) % 2**64
