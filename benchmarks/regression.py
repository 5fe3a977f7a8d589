"""What a build costs that no machine changes: counts, bytes and ratios, compared with the committed `regression.json`.

    zerofleet bench regression --output DATE-regression.json        # exit code 1: something costs more than was agreed
    zerofleet bench regression --write --output DATE-regression.json  # agrees to what is found: the tolerances stay

A figure below its agreed value by more than its tolerance misses too: an improvement is written down, so that it cannot be lost again.

- *step*: of rank 0 of two ranks, in the third step of a small Llama at each ZeRO stage: collectives and the bytes given to them, values that the
  host waits for (`aten::_local_scalar_dense`), and all operators that torch dispatches.
- *checkpoint*: bytes of the manifest per rank and per tensor, storage operations of a commit per rank.
- *silos*: bytes that travel per parameter, by codec.
- *plan*: what the planner says of a 1.1 B Llama on two ranks: bytes per parameter held and sent, by stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zerofleet.benchmarks.compare_power import job
from zerofleet.benchmarks.peers.systems import corpus
from zerofleet.benchmarks.plan_memory import no_saves
from zerofleet.benchmarks.rank_group import Group, run_group
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.checkpoint.commit import Draft, Written, assemble, commit, partial_digests
from zerofleet.trainer.checkpoint.format import RankFile, Scalars, write_rank_file
from zerofleet.trainer.checkpoint.fragments import FragmentKey, Tensor, equal_part
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.events import Control
from zerofleet.trainer.host_collectives import HostCollectives
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.silos.codecs import CODECS, load_codec
from zerofleet.trainer.sizing import sizes_of
from zerofleet.trainer.sizing.memory import rank_memory
from zerofleet.trainer.sizing.setup import Setup
from zerofleet.trainer.sizing.traffic import traffic_of
from zerofleet.trainer.storage import Storage

FILE = Path(__file__).with_name("regression.json")
STAGES = (0, 1, 2, 3)
ENGINES = {"ZeRO-1, bf16": (1, "bf16"), **{f"ZeRO-{stage}": (stage, "fp32") for stage in STAGES}}
"""Stage and precision by name; the first is the default's. After one of stage 3 no other can be built in a process."""
WARM_UP_STEPS = 2
NEW_TOLERANCE = 0.02
"""Of a figure that the file does not have yet, as a share."""
ONE_BILLION = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
Figures = dict[str, float]


# -- a step ---------------------------------------------------------------------------------------------------------------
class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch declares no types there
    """Counts operators by name, and the bytes of the tensors that collectives are called with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.collective_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func._schema.name)
        self.calls[name] += 1
        if name.startswith("c10d::"):
            self.collective_bytes += sum(tensor.nbytes for tensor in _tensors(args))
        return func(*args, **(kwargs or {}))

    def figures(self) -> Figures:
        return {
            "collectives": sum(count for name, count in self.calls.items() if name.startswith("c10d::")),
            "collective bytes": self.collective_bytes,
            "host waits": self.calls["aten::_local_scalar_dense"],
            "operators": self.calls.total(),
        }


@contextlib.contextmanager
def shared_memory_counted(counting: Counting) -> Iterator[None]:
    """Adds the collectives that are no operators of torch's."""
    plain = {name: getattr(HostCollectives, name) for name in ("all_reduce", "all_gather")}

    def counted(name: str) -> Callable[..., None]:
        def call(self: HostCollectives, *arguments: Any) -> None:
            counting.calls[f"c10d::shared_{name}"] += 1
            counting.collective_bytes += sum(tensor.nbytes for tensor in _tensors(arguments))
            plain[name](self, *arguments)

        return call

    for name in plain:
        setattr(HostCollectives, name, counted(name))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(HostCollectives, name, function)


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list | tuple) else []


def count_steps(group: Group, root: Path) -> Figures:
    """On every rank: one engine per stage, one after the other."""
    torch.set_num_threads(1)
    found: Figures = {}
    for name, (stage, precision) in ENGINES.items():
        config = group.config.model_copy(
            update={
                "run": group.config.run.model_copy(update={"name": _run_of(name)}),
                "train": group.config.train.model_copy(update={"zero_stage": stage, "precision": precision}),
            }
        )
        loop = Loop(config, group.world, group.cache, lambda event: None, Control)
        loop.build()
        loop.load()
        for _ in range(WARM_UP_STEPS):
            loop.train_step()
        with Counting() as counting, shared_memory_counted(counting):
            loop.train_step()
        found |= {f"step, {name}: {figure}": count for figure, count in counting.figures().items()}
    return found


def _run_of(name: str) -> str:
    return name.lower().replace(", ", "-")


def step_figures(root: Path) -> Figures:
    """Two ranks. Takes as long as starting them does."""
    (root / "corpus.jsonl").write_text(corpus())
    config = job(root, "steps")
    config = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": 1})})
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None).path
    for name, (stage, _) in ENGINES.items():
        run = RunFolder(config.run.storage, _run_of(name))
        run.create("{}")
        run.claim_attempt(1, None, 2, stage)
    return dict(run_group(config, cache, 2, 1, no_saves, count_steps, root))


# -- a checkpoint ---------------------------------------------------------------------------------------------------------
class CountingStorage(Storage):
    """Counts what is asked of it."""

    operations = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("exists", "size", "read", "read_pieces", "list", "create", "write_stream", "remove"):
            CountingStorage.operations += 1
        return super().__getattribute__(name)


def manifest_bytes(num_ranks: int, num_tensors: int) -> int:
    """Of a state whose rank files have one block each."""
    rank_file = RankFile("rank-00000-of-00000.safetensors", 16 * 2**20, 8192, "0" * 32, ["0" * 32])
    names = [f"model.layers.{number:03d}.self_attn.q_proj.weight" for number in range(num_tensors)]
    draft = replace(_draft(1), tensors={name: Tensor((2048, 2048), {"master": "F32"}, ()) for name in names})
    digests = {f"master/{name}": 0 for name in names}
    parts = [
        Written(CheckpointId(1, 1), rank, num_ranks, rank_file, digests, None if rank else draft)
        for rank in range(num_ranks)
    ]
    return len(assemble(parts).to_bytes())


def _draft(step: int) -> Draft:
    tensors = {"w": Tensor((10, 10), {"master": "F32"}, ())}
    return Draft(1, "fp32", 8 * step, [], Scalars([step], engine={"global_steps": step}), tensors, {}, {})


def commit_operations(root: Path, num_ranks: int) -> int:
    """Of storage, from the last rank's file to the manifest that has been read back; nothing is deleted."""
    run = RunFolder(str(root / "commits"), f"ranks-{num_ranks}")
    run.create("{}")
    run.claim_attempt(1, None, num_ranks, 1)
    checkpoint, parts = CheckpointId(1, 1), []
    for rank in range(num_ranks):
        start, end = equal_part(100, rank, num_ranks)
        fragments = [(FragmentKey("w", "master", start, end - start, "F32"), np.zeros(end - start, np.float32))]
        rank_file = write_rank_file(run.storage, checkpoint, rank, num_ranks, fragments)
        digests = partial_digests(fragments)
        parts.append(Written(checkpoint, rank, num_ranks, rank_file, digests, None if rank else _draft(1)))
    run.storage = CountingStorage(run.storage.url)
    CountingStorage.operations = 0
    commit(CheckpointConfig(keep_last=1), run, assemble(parts), lambda: None)
    return CountingStorage.operations


def checkpoint_figures(root: Path) -> Figures:
    base = manifest_bytes(64, 100)
    return {
        "checkpoint: manifest bytes per rank": (manifest_bytes(128, 100) - base) / 64,
        "checkpoint: manifest bytes per tensor": (manifest_bytes(64, 200) - base) / 100,
        "checkpoint: storage operations of a commit of 4 ranks": commit_operations(root, 4),
        "checkpoint: storage operations of a commit, per rank": (
            commit_operations(root, 16) - commit_operations(root, 8)
        )
        / 8,
    }


# -- silos and plans ------------------------------------------------------------------------------------------------------
def silo_figures() -> Figures:
    values = np.random.default_rng(0).standard_normal(2**16, np.float32)
    return {
        f"silos: bytes per parameter, {name}": len(load_codec(name).encode(values)) / len(values) for name in CODECS
    }


def plan_figures() -> Figures:
    """Bytes per parameter, without what DeepSpeed's fixed buckets take."""
    sizes = sizes_of(ONE_BILLION, 32_000)
    assert sizes is not None
    found: Figures = {"plan: parameters": sizes.parameters}
    for stage in STAGES:
        setup = Setup(stage, "bf16", 1, 1024, 8, 1, 2, on_gpu=True)
        memory = rank_memory(sizes, setup)
        found[f"plan, ZeRO-{stage}: bytes held per parameter"] = memory.states_bytes / sizes.parameters
        found[f"plan, ZeRO-{stage}: bytes at the peak per parameter"] = memory.peak.total_bytes / sizes.parameters
        found[f"plan, ZeRO-{stage}: bytes sent per parameter"] = traffic_of(sizes, setup).total_bytes / sizes.parameters
    return found


def light_figures(root: Path) -> Figures:
    """All that need no ranks: well under a second."""
    return {**checkpoint_figures(root), **silo_figures(), **plan_figures()}


# -- against what was agreed ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Agreed:
    """A figure of the file. `tolerance` is a share of `value`; 0 for what is exact."""

    value: float
    tolerance: float


def read_agreed(path: Path = FILE) -> dict[str, Agreed]:
    return {name: Agreed(**fields) for name, fields in json.loads(path.read_text()).items()}


def misses(found: Mapping[str, float], agreed: Mapping[str, Agreed]) -> list[str]:
    """A sentence for each figure of `found` that is not what was agreed."""
    told = []
    for name, value in found.items():
        if name not in agreed:
            told.append(f"{name}: {value:.6g} is not in {FILE.name}")
            continue
        wanted, tolerance = agreed[name].value, agreed[name].tolerance
        if abs(value - wanted) > tolerance * abs(wanted) + 1e-9:
            told.append(f"{name}: {value:.6g}, and {wanted:.6g} was agreed (+- {tolerance:.0%})")
    return told


def write_agreed(found: Mapping[str, float], path: Path = FILE) -> None:
    """New values, old tolerances."""
    before = read_agreed(path) if path.exists() else {}
    tolerances = {name: before[name].tolerance if name in before else NEW_TOLERANCE for name in found}
    agreed = {name: asdict(Agreed(value, tolerances[name])) for name, value in sorted(found.items())}
    path.write_text(json.dumps(agreed, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"agree to what is found: rewrites {FILE.name}")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="zerofleet-regression-", dir="/var/tmp"))
    try:
        found = {**light_figures(root), **step_figures(root)}
    finally:
        shutil.rmtree(root)
    if arguments.write:
        write_agreed(found)
    agreed = read_agreed()
    missed = misses(found, agreed) + [f"{name}: no longer measured" for name in agreed if name not in found]
    for sentence in missed:
        print(sentence)
    print(f"{len(found) - len(missed)} of {len(found)} figures as agreed")
    record = {"benchmark": "regression", "figures": found, "missed": missed, "environment": fingerprint()}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
