"""`zerofleet simulate [RECIPE] --gpus N ...`: days of a run on any number of GPUs, with published failure rates; the controller is real, the rest is not."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.launch.config import load_job
from zerofleet.launch.exit_codes import OK
from zerofleet.trainer.errors import UserError

if TYPE_CHECKING:
    from zerofleet.cluster.simulation.scenario import Scenario
    from zerofleet.launch.commands.types import Verbs

EXAMPLE = Path(__file__).parents[1] / "recipes/llama_8b.yaml"
_NODES_PER_SPARE = 100


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "simulate", help="goodput of a job on any number of GPUs, with published failure rates (simulated)"
    )
    parser.add_argument(
        "recipe", nargs="?", default=str(EXAMPLE), help="YAML file (default: a Llama of 8 B parameters, ZeRO-3)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to change, such as train.zero_stage=1"
    )
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[1024], metavar="N", help="multiples of cluster.ranks_per_node"
    )
    parser.add_argument("--days", type=float, default=7.0, help="of wall time (default: 7)")
    parser.add_argument("--seed", type=int, default=0, help="of failures (default: 0)")
    parser.add_argument(
        "--rates",
        default="llama3",
        metavar="NAME",
        help="whose failures: llama3, rsc1, rsc2, opt175b (default: llama3)",
    )
    parser.add_argument(
        "--spares", type=int, metavar="N", help="nodes in reserve (default: one for each hundred, at least one)"
    )
    parser.add_argument(
        "--micro-steps", type=int, default=4, metavar="N", help="per step and rank with all nodes (default: 4)"
    )
    parser.add_argument("--racks-known", action="store_true", help="as if buddies were chosen by racks")
    parser.add_argument(
        "--cost", action="append", default=[], metavar="NAME=NUMBER", help="what something takes, such as step_s=5"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object with everything, and where each number is from"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    if "=" in arguments.recipe and not Path(arguments.recipe).exists():
        arguments.recipe, arguments.overrides = str(EXAMPLE), [arguments.recipe, *arguments.overrides]
    from zerofleet.cluster.simulation.costs import SOURCES
    from zerofleet.cluster.simulation.findings import simulate
    from zerofleet.launch.planning.scale_text import text_of

    records = []
    for scenario in scenarios(arguments):
        sys.stderr.write(f"simulating {scenario.days:g} days of {scenario.gpus:,} GPUs\n")
        records.append(simulate(scenario))
    if arguments.json:
        sys.stdout.write(json.dumps({"is_simulated": True, "sources": SOURCES, "runs": records}, indent=1) + "\n")
    else:
        sys.stdout.write(text_of(records))
    return OK


def scenarios(arguments: argparse.Namespace) -> list[Scenario]:
    """One for each number of GPUs. Raises UserError."""
    from zerofleet.cluster.simulation.failures import RATES
    from zerofleet.cluster.simulation.scenario import Scenario
    from zerofleet.launch.planning.model_shape import model_of

    job = load_job(arguments.recipe, arguments.overrides)
    if arguments.rates not in RATES:
        raise UserError(f"--rates {arguments.rates} is not known: choose one of {', '.join(RATES)}")
    if min(arguments.micro_steps, arguments.days) <= 0:
        raise UserError("--days and --micro-steps must be above 0")
    per_node = job.cluster.ranks_per_node
    if wrong := [n for n in arguments.gpus if n < per_node or n % per_node]:
        raise UserError(f"--gpus {wrong[0]}: give a multiple of cluster.ranks_per_node={per_node}")
    base = Scenario(
        model=model_of(job).sizes,
        zero_stage=job.train.zero_stage,
        gpus=per_node,
        ranks_per_node=per_node,
        micro_steps=arguments.micro_steps,
        days=arguments.days,
        seed=arguments.seed,
        knows_racks=arguments.racks_known,
        rates=RATES[arguments.rates],
        checkpoint=job.checkpoint,
        cluster=job.cluster,
    )
    return [_sized(base, gpus, arguments) for gpus in arguments.gpus]


def _sized(base: Scenario, gpus: int, arguments: argparse.Namespace) -> Scenario:
    nodes = gpus // base.ranks_per_node
    spares = max(1, nodes // _NODES_PER_SPARE) if arguments.spares is None else arguments.spares
    known = {field.name for field in fields(base.costs)}
    costs = {}
    for text in arguments.cost:
        name, _, number = text.partition("=")
        try:
            costs[name] = float(number)
        except ValueError:
            costs[name] = -1.0
        if name not in known or costs[name] < 0:
            raise UserError(f"--cost {text}: give NAME=NUMBER, at least 0, with one of {', '.join(sorted(known))}")
    return replace(base, gpus=gpus, spares=spares, costs=replace(base.costs, **costs))
