"""Options of the verbs that say where a run is."""

from __future__ import annotations

import argparse
import math

BACKENDS = ("local", "ray", "kuberay")
MOST_PARAMETERS = 10**18
"""Far above any model, and low enough that every size that follows from it can be computed."""


def add_place(parser: argparse.ArgumentParser, default: str, *, namespace: bool = False) -> None:
    """For verbs that start a driver; `default` says where it goes without an option."""
    parser.add_argument("--backend", choices=BACKENDS, help=f"where to run (default: {default})")
    parser.add_argument("--address", metavar="URL", help="ray: the cluster's job API, http(s)://HOST:8265")
    _add_cluster(parser, "the profile's, and no other" if namespace else "")


def add_backend(parser: argparse.ArgumentParser, *, namespace: bool = False) -> None:
    """For verbs that look at a run: what runs here or on a Ray cluster its folder tells."""
    parser.add_argument(
        "--backend", choices=BACKENDS, default="local", help="where it runs (default: its folder is read, which tells)"
    )
    _add_cluster(parser, "the context's" if namespace else "")


def _add_cluster(parser: argparse.ArgumentParser, namespace: str) -> None:
    """`namespace`: which one is meant without the option; empty where there is no such option, since the profile names it."""
    parser.add_argument(
        "--context", metavar="NAME", help="kuberay: context of the kubeconfig (default: the current one)"
    )
    if namespace:
        parser.add_argument("--namespace", metavar="NAME", help=f"kuberay: namespace of the run (default: {namespace})")


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
