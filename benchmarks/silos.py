"""DiLoCo over silos against data parallel on the same tokens: held-out loss, and bytes between silos.

    zerofleet bench silos --output benchmarks/results/DATE-silos.json [--seeds 3] [key=value ...]

For each seed two runs: the recipe of the silos as it is, and one run over the mixture of their data whose global batch is that of all
silos together: as many tokens in as many steps, from the same initial weights and with the same tokenizer. Both models are then asked for
their loss on the same held-out documents of every silo. The gap is the ratio of the losses less one; its upper bound is that of a
one-sided t interval over the seeds. Bytes are those that the silos wrote down, every message counted, by what a ring all-reduce of
bf16 gradients would have sent from each silo. Overrides change both runs: `train.steps=40` proves the path.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.report.charts import Line, chart
from zerofleet.launch.report.series import Point
from zerofleet.launch.report.style import STYLE
from zerofleet.launch.silos.arithmetic import all_reduce_bytes
from zerofleet.launch.silos.jobs import shared_tokenizer, silo_job, silo_runs
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.run_folder import RunFolder

RECIPE = Path(__file__).parents[1] / "launch/recipes/silos_diloco.yaml"
MOST_GAP, LEAST_RATIO = 0.005, 1000.0
"""The bars: upper bound of the gap, and how many times fewer bytes."""
T_95 = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895, 9: 1.860, 10: 1.833}
"""Student's t with one degree of freedom less than the number of seeds, one-sided 95 %."""
HELDOUT_SEQUENCES = 256
"""Of each silo."""


def silos_recipe(seed: int, tokenizer: str, overrides: Sequence[str]) -> JobConfig:
    """The silos' job. Packed by document, as a mixture has to be."""
    given = [f"data.tokenizer={tokenizer}"] if tokenizer else []
    return load_job(RECIPE, ["data.packing=best_fit", f"run.seed={seed}", *given, *overrides])


def parallel_sections(job: JobConfig) -> dict[str, Any]:
    """Data parallel over the same data: each silo's share of the samples is the same, as each has the same batch. On as many ranks as the
    machine has cores for, which changes no sample."""
    assert job.silos is not None
    sections = yaml.safe_load(job.to_yaml())
    members = sections.pop("silos")["members"]
    fields = ("files", "hub", "format", "text_field")
    sections["data"]["sources"] = {
        name: {"weight": 1.0, **{key: own[key] for key in fields}} for name, own in members.items()
    }
    sections["data"]["files"] = []
    sections["train"]["global_batch_size"] *= len(members)
    sections["run"]["name"] = None
    sections["cluster"]["ranks_per_node"] = min(len(members), len(os.sched_getaffinity(0)))
    sections["cluster"]["cpus_per_rank"] = 1.0
    return dict(sections)


def submit(recipe: Path, storage: str, name: str) -> RunFolder:
    """Runs it to its end. Raises RuntimeError."""
    command = [
        sys.executable,
        "-m",
        "zerofleet.launch",
        "submit",
        str(recipe),
        f"run.name={name}",
        f"run.storage={storage}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return RunFolder(storage, name)


def heldout_loss(model_folder: Path, job: JobConfig) -> dict[str, float]:
    """Mean loss per token of an exported model on each silo's held-out documents."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    assert job.silos is not None
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    losses = {}
    for name in job.silos.members:
        store = prepare(silo_job(job, name, None).data, job.run.seed, lambda stage, fraction, detail: None).heldout
        total, tokens = 0.0, 0
        for start in range(0, min(HELDOUT_SEQUENCES, store.num_sequences), 8):
            samples = np.arange(start, min(start + 8, store.num_sequences))
            input_ids, labels = map(torch.from_numpy, store.read(samples))
            with torch.no_grad():
                logits = model(input_ids=input_ids).logits.float()
            loss = torch.nn.functional.cross_entropy(
                logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-100, reduction="sum"
            )
            total, tokens = total + float(loss), tokens + int((labels != -100).sum())
        losses[name] = total / tokens
    return losses


def egress(run: RunFolder, job: JobConfig) -> dict[str, float]:
    """Bytes that the silo which sent most has sent, and that a ring all-reduce would have sent."""
    assert job.silos is not None
    sent = {
        silo.name: sum(sum(e.data["sent_bytes"].values()) for e in silo.events() if e.kind == "outer")
        for silo in silo_runs(run)
    }
    count = next(
        e.data["num_parameters"] for silo in silo_runs(run) for e in silo.events() if "num_parameters" in e.data
    )
    ring = all_reduce_bytes(count, len(job.silos.members)) * job.train.steps
    return {
        "parameters": count,
        "most_bytes": max(sent.values()),
        "ring_bytes": ring,
        "ratio": ring / max(sent.values()),
    }


def losses_of(run: RunFolder) -> list[tuple[int, float]]:
    return sorted(
        {line["step"]: line["data"]["loss"] for line in run.read("metrics") if line["kind"] == "step"}.items()
    )


def measure(seed: int, storage: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One seed: both runs."""
    tokenizer = shared_tokenizer(silos_recipe(seed, "", overrides))
    job = silos_recipe(seed, tokenizer, overrides)
    runs = {}
    for kind, sections in (("silos", yaml.safe_load(job.to_yaml())), ("parallel", parallel_sections(job))):
        recipe = Path(storage) / f"{kind}-{seed}.yaml"
        recipe.write_text(yaml.safe_dump(sections))
        runs[kind] = submit(recipe, storage, f"{kind}-{seed}")
    losses = {kind: heldout_loss(run.storage.local_path("export"), job) for kind, run in runs.items()}
    means = {kind: statistics.fmean(found.values()) for kind, found in losses.items()}
    return {
        "seed": seed,
        "heldout": losses,
        "gap": means["silos"] / means["parallel"] - 1,
        "egress": egress(runs["silos"], job),
        "curves": {kind: losses_of(run) for kind, run in runs.items()},
    }


def upper_bound(gaps: Sequence[float]) -> float:
    """One-sided 95 % of the mean; infinite for one seed."""
    if len(gaps) < 2:
        return math.inf
    return statistics.fmean(gaps) + T_95[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps))


def plot(rounds: Sequence[dict[str, Any]]) -> str:
    """Training loss of both, by step: the mean over seeds, and the band between the least and the most."""
    lines = []
    for kind, colour in (("silos", "c1"), ("parallel", "c2")):
        by_step: dict[int, list[float]] = {}
        for found in rounds:
            for step, loss in found["curves"][kind]:
                by_step.setdefault(step, []).append(loss)
        points = [
            Point(step, statistics.fmean(values), min(values), max(values)) for step, values in sorted(by_step.items())
        ]
        lines.append(Line(kind, points, colour))
    return (
        f"<!doctype html><meta charset=utf-8><title>silos</title><style>{STYLE}</style>{chart('training loss', lines)}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="zerofleet bench silos", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rounds = []
    with tempfile.TemporaryDirectory(prefix="zerofleet-silos-") as storage:
        for seed in range(options.seeds):
            rounds.append(measure(seed, storage, options.overrides))
            print(
                f"seed {seed}: gap {rounds[-1]['gap']:+.2%}, {rounds[-1]['egress']['ratio']:,.0f} times fewer bytes",
                flush=True,
            )
    gaps = [found["gap"] for found in rounds]
    summary = {
        "gap": statistics.fmean(gaps),
        "upper_bound": upper_bound(gaps),
        "ratio": min(found["egress"]["ratio"] for found in rounds),
        "bars": {"gap": MOST_GAP, "ratio": LEAST_RATIO},
    }
    result = {"environment": fingerprint(), "overrides": options.overrides, "summary": summary, "seeds": rounds}
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    options.output.with_suffix(".html").write_text(plot(rounds))
    print(json.dumps(summary))
    return 0 if summary["upper_bound"] <= MOST_GAP and summary["ratio"] >= LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
