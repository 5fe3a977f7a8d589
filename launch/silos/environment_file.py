"""A silo's own environment: lines of NAME=value in a file that only its owner can read. It is read when the silo's driver is started, for that
process alone, and what it holds is written down nowhere."""

from __future__ import annotations

import os
import re
import stat

from zerofleet.launch.config import JobConfig
from zerofleet.trainer.credentials import VARIABLE
from zerofleet.trainer.errors import UserError

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


def check_environment_files(job: JobConfig) -> None:
    """Whether every silo's can be read, before anything is started. Raises UserError."""
    for name, member in (job.silos.members if job.silos is not None else {}).items():
        read_environment(name, member.environment_file)


def read_environment(silo: str, path: str | None) -> dict[str, str]:
    """By name, what the file says, and which of its names are not to be told; nothing without one. Raises UserError for a file that is missing, that
    others can read, or that has a line of another kind; no message holds what a line says."""
    if path is None:
        return {}
    where = f"silos.members.{silo}.environment_file: {path}"
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - its mode is asked of what was opened
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise UserError(
                    f"{where} can be read or written by others (mode {stat.S_IMODE(mode):03o}): chmod 600 it"
                )
            text = file.read()
    except OSError as error:
        raise UserError(
            f"{where} cannot be read ({error.strerror}): it has to be on the machine of the run's driver"
        ) from error
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8") from None
    found = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if (match := _LINE.fullmatch(line)) is None:
            raise UserError(f"{where}: line {number} is not NAME=value")
        found[match[1]] = _unquoted(match[2])
    return {**found, VARIABLE: " ".join(found)}


def _unquoted(value: str) -> str:
    """Without the quotes around the whole of it; nothing within is replaced."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
