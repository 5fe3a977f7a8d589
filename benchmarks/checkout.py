"""What code it is that is measured."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

from zerofleet.benchmarks.record import Build
from zerofleet.launch.environment import fingerprint

ROOT = Path(__file__).parents[1]
"""This very code."""


def build_of(root: Path = ROOT) -> Build:
    """Version and commit of the code in a folder."""
    git = shutil.which("git") if (root / ".git").exists() else None
    commit = None
    if git is not None:
        told = subprocess.run(
            [git, "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
        commit = told.stdout.strip() or None
    return Build(version=_version(root), commit=commit)


def _version(root: Path) -> str:
    if root == ROOT:
        return str(fingerprint()["packages"]["zerofleet"])
    file = root / "pyproject.toml"
    return str(tomllib.loads(file.read_text())["project"]["version"]) if file.exists() else "unknown"
