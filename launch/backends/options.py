"""Options of the verbs that say where a run is."""

from __future__ import annotations

import argparse
import math

BACKENDS = ("local", "kuberay")
MOST_PARAMETERS = 10**18
"""Far above any model, and low enough that every size that follows from it can be computed."""


def add_backend(parser: argparse.ArgumentParser, *, namespace: bool = False) -> None:
    """`namespace`: where no profile names it."""
    parser.add_argument("--backend", choices=BACKENDS, default="local", help="where it runs (default: this machine)")
    parser.add_argument(
        "--context", metavar="NAME", help="kuberay: context of the kubeconfig (default: the current one)"
    )
    if namespace:
        parser.add_argument(
            "--namespace", metavar="NAME", help="kuberay: namespace of the run (default: the context's)"
        )


def add_profile(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--profile", required=required, metavar="PROFILE", help="YAML file of the platform: docs/profile.md"
    )
    parser.add_argument(
        "--num-parameters",
        type=num_parameters,
        metavar="N",
        help="parameters of the model, where the recipe does not tell (model.pretrained, or an unknown model_type)",
    )


def num_parameters(text: str) -> int:
    """`7.2e9` as well as `7200000000`. argparse's error, which ends with exit code 2, for what no model has."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number <= MOST_PARAMETERS:  # not a number is neither
        raise argparse.ArgumentTypeError(
            f"{text} is not a number from 1 to {MOST_PARAMETERS:g}: give the model's parameters, such as 7.2e9"
        )
    return int(number)
