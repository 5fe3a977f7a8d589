"""`python -m zerofleet.launch.image_check [--train]`: does this image hold what pods need? The last step of its build, and its smoke test.

Exit codes: 0 yes, 1 no. Every line is a check of `doctor`'s form. `--train` also trains three steps on a Ray of its own, on CPUs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from zerofleet.cluster.config import Check
from zerofleet.launch.commands.doctor import packages
from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.trainer import ops

COMMANDS = ("python", "ray", "bash", "wget", "c++")
"""What KubeRay's containers and probes call, and what builds ops."""
_RECIPE = Path(__file__).parent / "recipes/quickstart.yaml"
_SMALL = (
    "run.name=image-check",
    "train.steps=3",
    "train.warmup_steps=0",
    "data.files=[python-stdlib/email/*.py]",
    "cluster.ranks_per_node=1",
    "cluster.cpus_per_rank=0.5",
    "checkpoint.export=false",
)
TRAIN_TIMEOUT_S = 900.0


def examine() -> Iterator[Check]:
    """Everything that needs no training."""
    yield _user()
    yield from _commands()
    yield packages()
    yield _ray()
    yield _op()
    yield from _folders()


def _user() -> Check:
    """The rendered pods run as another than root."""
    if os.getuid() == 0:
        return Check("fail", "user", "it runs as root, which a restricted namespace refuses: USER 1000")
    return Check("ok", "user", f"{os.getuid()}, group {os.getgid()}")


def _commands() -> Iterator[Check]:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        yield Check(
            "fail",
            "commands",
            f"missing on the PATH: {', '.join(missing)}. KubeRay's containers and probes call them; install them",
        )
    else:
        yield Check("ok", "commands", f"{', '.join(COMMANDS)} are on the PATH")
    found = shutil.which("python")
    if found and Path(found).parent != Path(sys.executable).parent:
        yield Check(
            "fail",
            "commands",
            f"`python` is {found} and not {sys.executable}, which has zerofleet: put that one first on the PATH",
        )


def _ray() -> Check:
    """KubeRay is told this version by the profile."""
    needed = next(
        (pin for text in metadata.requires("zerofleet") or () if (pin := Requirement(text)).name == "ray"), None
    )
    try:
        there = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Check("fail", "ray", "Ray is not installed: pip install 'zerofleet[train]'")
    if needed is not None and there not in needed.specifier:
        return Check(
            "fail",
            "ray",
            f"Ray {there} is installed and zerofleet needs {needed.specifier}: install with -c constraints.txt",
        )
    return Check("ok", "ray", f"{there}: images.ray_version of the profile")


def _op() -> Check:
    if ops.is_built(ops.COMMUNICATION_OP):
        return Check("ok", "ops", f"{ops.COMMUNICATION_OP} is built in {ops.extensions_root()}")
    return Check(
        "fail",
        "ops",
        f"{ops.COMMUNICATION_OP} is not built in {ops.extensions_root()}: python -m zerofleet.trainer.ops while the image is built",
    )


def _folders() -> Iterator[Check]:
    """What must be writable: Ray's sessions, caches of libraries, and ops that are compiled when a job asks for one."""
    for name, path in (
        ("home", Path.home()),
        ("temporary", Path(tempfile.gettempdir())),
        ("extensions", ops.extensions_root()),
    ):
        if os.access(path, os.W_OK | os.X_OK):
            yield Check("ok", "folders", f"{name} {path} is writable")
        else:
            yield Check(
                "fail",
                "folders",
                f"{name} {path} cannot be written by user {os.getuid()}: chown it while the image is built",
            )


def train() -> Check:
    """The quickstart's model for three steps, from data to a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="image-check-") as folder:
        command = [
            sys.executable,
            "-m",
            "zerofleet.launch",
            "submit",
            str(_RECIPE),
            *_SMALL,
            f"run.storage={folder}/runs",
            f"data.cache={folder}/cache",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TRAIN_TIMEOUT_S, cwd=folder)
        except subprocess.TimeoutExpired:
            return Check(
                "fail",
                "training",
                f"three steps were not done after {TRAIN_TIMEOUT_S:g} s: run it by hand, {' '.join(command)}",
            )
    if done.returncode == OK:
        return Check("ok", "training", "three steps and a checkpoint")
    tail = " / ".join((done.stdout + done.stderr).strip().splitlines()[-5:])
    return Check("fail", "training", f"exit code {done.returncode}: {tail}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zerofleet.launch.image_check", description=__doc__)
    parser.add_argument("--train", action="store_true", help="train three steps too")
    wants_training = parser.parse_args(arguments).train
    failed = False
    for check in (*examine(), *([train()] if wants_training else [])):
        failed |= check.level == "fail"
        sys.stdout.write(f"{check.level:<5} {check.name:<12} {check.text}\n")
        sys.stdout.flush()
    return RUN_FAILED if failed else OK


if __name__ == "__main__":
    sys.exit(main())
