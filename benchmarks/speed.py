"""What each decision of docs/speed.md is worth: zerofleet's own step with the defaults, and with one thing changed at a time, in turns.

    zerofleet bench speed --output DATE-speed.json [--model small] [--precision bf16] [--starts 8]
    zerofleet bench speed --output DATE-speed.json --model medium --arms "without fused AdamW"    # all at once do not fit into memory

Each arm trains in two ranks of its own on the same samples; a round gives each one turn, in an order that is drawn anew. All are started anew several times, since where a
process's memory happens to lie changes its steps for as long as it lives: **one start is one pair**, the medians of its rounds. Told are the changed arm's seconds over those of the
defaults: above 1 the default is faster. What has no setting is changed in the arm's own process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.peer_throughput import COMPARED_STEPS, OURS, ratio, start_medians, turn
from zerofleet.benchmarks.peers.training.prepare import MODELS, Model, make_task
from zerofleet.benchmarks.peers.training.session import Session, session
from zerofleet.benchmarks.peers.training.task import Task
from zerofleet.benchmarks.peers.training.zerofleet_loop import CHANGES
from zerofleet.benchmarks.ratio_intervals import least_pairs
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.benchmarks.statistics import CONFIDENCE
from zerofleet.launch.environment import fingerprint

DEFAULTS = "defaults"


@dataclass(frozen=True)
class Arm:
    """The defaults with one change."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """`section.field`: value."""
    change: str = ""
    """A name of `zerofleet_loop.CHANGES`."""


ARMS = (
    Arm(DEFAULTS),
    Arm("attention: sdpa", {"model.attn_implementation": "sdpa"}),
    Arm("attention: eager", {"model.attn_implementation": "eager"}),
    Arm("torch.compile", {"train.compile": True}),
    Arm("freed memory given back", {"train.keep_freed_memory": False}),
    *(Arm(name, change=name) for name in CHANGES),
)


def measure(
    model: Model, precision: str, arms: list[Arm], starts: int, rounds: int, draw: random.Random, root: Path
) -> list[list[tuple[float, float, float]]]:
    """Per arm, (seconds, processor seconds, loss) of a step, by start: medians over its rounds, and the last loss. Raises SystemFailed."""
    steps = COMPARED_STEPS + rounds * model.steps_per_turn + 1
    tasks = []
    for number, arm in enumerate(arms):
        settings = {"train.precision": precision, **arm.settings}
        tasks.append(make_task(model, root / str(number), steps, settings, change=arm.change))
    by_arm: list[list[tuple[float, float, float]]] = [[] for _ in arms]
    for start in range(starts):
        for each, turns in zip(by_arm, _start(model, tasks, rounds, draw, root / f"logs-{start}"), strict=True):
            each.append((*start_medians(turns), turns[-1][2][-1]))
    return by_arm


def _start(
    model: Model, tasks: Sequence[Task], rounds: int, draw: random.Random, logs: Path
) -> list[list[tuple[float, float, list[float]]]]:
    """The turns of each arm."""
    with contextlib.ExitStack() as stack:
        found: dict[int, Session] = {}
        for number in draw.sample(
            range(len(tasks)), len(tasks)
        ):  # who is built first has other memory than who is built last
            found[number] = stack.enter_context(session(tasks[number], [OURS], logs / str(number)))
            if found[number].failed:
                raise SystemExit(found[number].failed[OURS])
            turn(found[number], OURS, COMPARED_STEPS)
        taken: list[list[tuple[float, float, list[float]]]] = [[] for _ in tasks]
        for _ in range(rounds):
            for number in draw.sample(range(len(tasks)), len(tasks)):
                taken[number].append(turn(found[number], OURS, model.steps_per_turn))
    return taken


def line(arm: Arm, starts: Sequence[tuple[float, float, float]], defaults: Sequence[tuple[float, float, float]]) -> str:
    """Of the markdown table."""
    found = ratio([(ours[0], each[0]) for ours, each in zip(defaults, starts, strict=True)])
    processor = ratio([(ours[1], each[1]) for ours, each in zip(defaults, starts, strict=True)])
    assert found is not None and processor is not None, "main() refuses fewer starts"
    step_s = statistics.median(each[0] for each in starts)
    return f"| {arm.name} | {step_s:.3f} | **{found.ratio:.3f}** [{found.low:.3f}, {found.high:.3f}] | {processor.ratio:.3f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="small")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        choices=(names := [arm.name for arm in ARMS[1:]]),
        default=names,
        help=f"beside the defaults (default: all): {', '.join(names)}",
    )
    parser.add_argument("--starts", type=int, default=8, help="of all arms, each one a pair (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="of each start (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in each round")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.starts < (least := least_pairs(CONFIDENCE)) or arguments.rounds < 1:
        parser.error(
            f"--starts {arguments.starts} --rounds {arguments.rounds}: fewer than {least} starts have no interval of {CONFIDENCE:.0%}"
        )
    prepare_environment()
    root = Path(tempfile.mkdtemp(prefix="zf-speed-", dir="/var/tmp"))
    arms = [arm for arm in ARMS if arm.name in (DEFAULTS, *arguments.arms)]
    try:
        by_arm = measure(
            MODELS[arguments.model],
            arguments.precision,
            arms,
            arguments.starts,
            arguments.rounds,
            random.Random(arguments.seed),
            root,
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    record = {
        "benchmark": "speed",
        "config": {"model": asdict(MODELS[arguments.model]), "precision": arguments.precision},
        "arms": [{"arm": arm.name, "starts": each} for arm, each in zip(arms, by_arm, strict=True)],
        "environment": fingerprint(),
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        f"Medians of {arguments.starts} starts, whose rounds were taken in turns; {arguments.model} model in {arguments.precision}. Above 1: the defaults are faster.",
        "",
        "| changed | step, s | over the defaults [95 %] | by processor time |",
        "|---|---|---|---|",
        *(line(arm, each, by_arm[0]) for arm, each in zip(arms, by_arm, strict=True)),
        "",
    ]
    arguments.output.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
