"""Step time of zerofleet against other systems: same weights, sequences, batch and hyperparameters, in turns.

    zerofleet bench peer_throughput --output DATE-peers.json
    zerofleet bench peer_throughput --models small --peers hf_trainer ddp --starts 12

Every system trains in two ranks of its own (`peers/training/`), each by its documented settings. All take their first steps, which touch memory,
and whose losses are compared: a peer whose losses are not zerofleet's is not measured. Then come rounds, in each of which every system has one turn,
in an order that is drawn anew. All systems are started anew several times, since where a process's memory happens to lie changes its steps for as long as it lives:
**one start is one pair** of zerofleet and each peer, the medians of its rounds. What is said of a pair is the peer's seconds over zerofleet's: how many times as fast
zerofleet is. Interval: Wilcoxon's, of 95 % (`ratio_intervals.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.peers.training import task as settings
from zerofleet.benchmarks.peers.training.prepare import MODELS, Model, make_task
from zerofleet.benchmarks.peers.training.session import LOOPS, Session, SystemFailed, session
from zerofleet.benchmarks.peers.training.task import Task
from zerofleet.benchmarks.peers.training.turns import Turn
from zerofleet.benchmarks.ratio_intervals import RatioInterval, least_pairs, paired_ratio
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.benchmarks.statistics import CONFIDENCE
from zerofleet.launch.environment import fingerprint

OURS = "zerofleet"
PEERS = tuple(name for name in LOOPS if name != OURS)
FORMS = ("eager", "compiled")
COMPARED_STEPS = 8
"""First steps of every system: their losses are compared, their seconds do not count."""
LOSS_TOLERANCE = 5e-3
"""Of a step's loss, relative: what bf16 leaves open between systems that round at different places."""
LEAST_RATIO = 1.0
LEAST_RATIO_TO_TRAINER = 1.3
"""Of the small model against Hugging Face's Trainer."""


@dataclass(frozen=True)
class Pairing:
    """zerofleet and one peer on one model."""

    model: str
    is_compiled: bool
    peer: str
    seconds: list[tuple[float, float]]
    """Of a step, by start: zerofleet's and the peer's, medians over the rounds."""
    processor_seconds: list[tuple[float, float]]
    """The same of both ranks' processors together, which other work on the machine lengthens less."""
    loss_difference: float
    """The largest, relative, of a step."""
    error: str = ""

    @property
    def bar(self) -> float:
        return LEAST_RATIO_TO_TRAINER if (self.model, self.peer) == ("small", "hf_trainer") else LEAST_RATIO

    def figures(self) -> dict[str, Any]:
        """The peer's seconds over zerofleet's with its interval, and whether the bar is met."""
        if not self.seconds:
            return {"ratio": None, "bar": self.bar, "is_met": False}
        found, processor = ratio(self.seconds), ratio(self.processor_seconds)
        assert found is not None and processor is not None, "main() refuses fewer starts"
        return {
            "ratio": asdict(found),
            "processor_ratio": asdict(processor),
            "bar": self.bar,
            "is_met": found.ratio >= self.bar,
            "median_step_s": [statistics.median(values) for values in zip(*self.seconds, strict=True)],
        }


def ratio(pairs: Sequence[tuple[float, float]]) -> RatioInterval | None:
    """Of the second figures over the first."""
    return paired_ratio([first for first, _ in pairs], [second for _, second in pairs], CONFIDENCE)


def turn(found: Session, system: str, steps: int) -> tuple[float, float, list[float]]:
    """Seconds and processor seconds of a step, and every step's loss, the mean over ranks."""
    turns: list[Turn] = found.turn(system, steps)
    losses = [statistics.fmean(each) for each in zip(*(turn.losses for turn in turns), strict=True)]
    return turns[0].seconds / steps, sum(turn.processor_seconds for turn in turns) / steps, losses


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Relative to the first, of values of the same index."""
    return max(abs(b - a) / abs(a) for a, b in zip(first, second, strict=True))


def measure(
    task: Task, model: Model, peers: Sequence[str], starts: int, rounds: int, draw: random.Random, logs: Path
) -> list[Pairing]:
    """A pairing per peer, all side by side. Raises SystemFailed when zerofleet does not come up, or a system ends."""
    medians: list[dict[str, tuple[float, float]]] = []
    apart, errors = dict.fromkeys(peers, 0.0), dict.fromkeys(peers, "")
    for start in range(starts):
        if not (fit := [peer for peer in peers if not errors[peer]]):
            break
        # Who is built first has other memory than who is built last.
        with session(task, draw.sample([OURS, *fit], len(fit) + 1), logs / str(start)) as found:
            if OURS in found.failed:
                raise SystemFailed(found.failed[OURS])
            errors |= found.failed
            first = {name: turn(found, name, COMPARED_STEPS)[2] for name in (OURS, *fit) if name not in found.failed}
            for peer in set(fit) & set(first):
                apart[peer] = max(apart[peer], largest_difference(first[OURS], first[peer]))
                if apart[peer] > LOSS_TOLERANCE:
                    errors[peer] = f"its losses are not zerofleet's: {first[peer]}, and {first[OURS]}"
            taken: dict[str, list[tuple[float, float, list[float]]]] = {
                name: [] for name in first if not errors.get(name)
            }
            for _ in range(rounds):
                for name in draw.sample(sorted(taken), len(taken)):
                    taken[name].append(turn(found, name, model.steps_per_turn))
        for name, turns in taken.items():
            ours = taken[OURS]
            apart[name] = max(
                apart.get(name, 0.0), *(largest_difference(a[2], b[2]) for a, b in zip(ours, turns, strict=True))
            )
        medians.append({name: start_medians(turns) for name, turns in taken.items()})
    return [_pairing(model, task, peer, medians, apart[peer], errors[peer]) for peer in peers]


def start_medians(turns: Sequence[tuple[float, float, list[float]]]) -> tuple[float, float]:
    """Seconds and processor seconds of a step of one start."""
    return statistics.median(each[0] for each in turns), statistics.median(each[1] for each in turns)


def _pairing(
    model: Model, task: Task, peer: str, medians: Sequence[dict[str, tuple[float, float]]], apart: float, error: str
) -> Pairing:
    of_both = [] if error else [(each[OURS], each[peer]) for each in medians]
    seconds = [(ours[0], theirs[0]) for ours, theirs in of_both]
    processor_seconds = [(ours[1], theirs[1]) for ours, theirs in of_both]
    return Pairing(model.name, task.is_compiled, peer, seconds, processor_seconds, apart, error)


def sessions(model: Model, peers: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many peers at a time as the machine has memory for."""
    for first in range(0, len(peers), model.peers_at_a_time):
        yield peers[first : first + model.peers_at_a_time]


def line(found: Pairing) -> str:
    """Of the markdown table."""
    figures = found.figures()
    start = f"| {found.model} | {'compiled' if found.is_compiled else 'eager'} | {found.peer} |"
    if found.error:
        return f"{start} - | - | - | - | {found.bar:g} | not measured | - |"
    ours, theirs = figures["median_step_s"]
    ratio, processor = figures["ratio"], figures["processor_ratio"]
    verdict = "met" if figures["is_met"] else "**missed**"
    return (
        f"{start} {theirs:.3f} | {ours:.3f} | **{ratio['ratio']:.3f}** [{ratio['low']:.3f}, {ratio['high']:.3f}] | {processor['ratio']:.3f} | {found.bar:g} | "
        f"{verdict} | {found.loss_difference:.1e} |"
    )


def page(pairings: Sequence[Pairing], starts: int) -> str:
    """The table as markdown."""
    heads = [
        "model",
        "torch.compile",
        "peer",
        "its step, s",
        "zerofleet's step, s",
        "times as fast [95 %]",
        "by processor time",
        "bar",
        "",
        "losses apart",
    ]
    failed = [
        f"- {each.model}, {'compiled' if each.is_compiled else 'eager'}, {each.peer}: {each.error}"
        for each in pairings
        if each.error
    ]
    return "\n".join(
        [
            f"Medians of {starts} starts, whose rounds were taken in turns. Above 1: zerofleet is faster.",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *map(line, pairings),
            "",
            *failed,
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--attention",
        choices=("eager", "sdpa"),
        default="eager",
        help="of all systems (default: eager, the faster one on CPUs in bf16)",
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS,
        default=list(FORMS),
        help="all systems as they are, or all compiled (default: one after the other)",
    )
    parser.add_argument("--starts", type=int, default=8, help="of all systems, each one a pair (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="of each start (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in each round")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.starts < (least := least_pairs(CONFIDENCE)) or arguments.rounds < 1:
        parser.error(
            f"--starts {arguments.starts} --rounds {arguments.rounds}: fewer than {least} starts have no interval of {CONFIDENCE:.0%}"
        )
    prepare_environment()
    draw = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="zf-peers-", dir="/var/tmp"))
    pairings: list[Pairing] = []
    try:
        for model, form in itertools.product((MODELS[name] for name in arguments.models), arguments.forms):
            steps = COMPARED_STEPS + arguments.rounds * model.steps_per_turn + 1
            for number, peers in enumerate(sessions(model, arguments.peers)):
                place = root / f"{model.name}-{form}-{number}"
                settings_of_form = {
                    "model.attn_implementation": arguments.attention,
                    "train.compile": form == "compiled",
                }
                task = make_task(model, place, steps, settings_of_form)
                pairings += _measured(task, model, peers, arguments.starts, arguments.rounds, draw, place / "logs")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    record = {
        "benchmark": "peer_throughput",
        "config": {
            "models": {name: asdict(MODELS[name]) for name in arguments.models},
            "world_size": settings.WORLD_SIZE,
            "zero_stage": settings.ZERO_STAGE,
            "precision": "bf16",
            "attention": arguments.attention,
            "loss_tolerance": LOSS_TOLERANCE,
        },
        "pairings": [asdict(each) | each.figures() for each in pairings],
        "environment": fingerprint(),
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(page(pairings, arguments.starts))
    return 0 if all(each.figures()["is_met"] for each in pairings) else 1


def _measured(task: Task, model: Model, peers: Sequence[str], *rest: Any) -> list[Pairing]:
    """A system that fails in the middle ends the session, and is told with what it said."""
    try:
        found = measure(task, model, peers, *rest)
    except SystemFailed as error:
        found = [Pairing(model.name, task.is_compiled, peer, [], [], 0.0, str(error)) for peer in peers]
    for each in found:
        print(line(each), *([each.error] if each.error else []), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
