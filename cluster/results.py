"""What rank 0 has told, kept beside the snapshots: should the driver die, ranks train on for a while, and nobody else hears them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zerofleet.trainer.events import Event

MAX_LINES = 2048
"""Of one of the two files that take turns: a minute of steps (an agent's lease) of 30 ms, at least."""


class ResultLog:
    """The newest MAX_LINES to 2 x MAX_LINES results of a run, in a folder in memory. One writer."""

    def __init__(self, folder: Path, run: str) -> None:
        """`run` tells this run from another that had the folder before."""
        folder.mkdir(parents=True, exist_ok=True)
        self._newer, self._older = (folder / f"results-{run}.{age}.jsonl" for age in ("newer", "older"))
        lines = _read(self._newer)
        self._file, self._num_lines = self._newer.open("ab", buffering=0), len(lines)
        self._file.truncate(sum(len(line) + 1 for line in lines))  # without what a kill cut short

    def append(self, event: Event) -> None:
        """Raises OSError when there is no room; what is there stays whole."""
        if self._num_lines >= MAX_LINES:
            self._newer.replace(self._older)
            fresh = self._newer.open("ab", buffering=0)
            self._file.close()
            self._file, self._num_lines = fresh, 0
        line, before = event.to_json().encode() + b"\n", os.fstat(self._file.fileno()).st_size
        if self._file.write(line) < len(line):
            self._file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._newer))
        self._num_lines += 1

    def recall(self, tell: Callable[[Path, str], None] = lambda path, why: None) -> list[dict[str, Any]]:
        """What an agent before left, oldest first: events, as `recalled` carries them. A line that is none is left out, and
        `tell` hears of the first one of a file."""
        found = []
        for path in (self._older, self._newer):
            told = False
            for number, line in enumerate(_read(path), 1):
                try:
                    found.append(asdict(Event.from_json(line.decode())))
                except (ValueError, TypeError) as error:
                    if not told:
                        tell(path, f"line {number} is no result that this version knows ({error})")
                    told = True
        return found

    @staticmethod
    def remove_all(folder: Path) -> None:
        """Of whichever run."""
        for path in folder.glob("results-*.jsonl"):
            path.unlink(missing_ok=True)


def _read(path: Path) -> list[bytes]:
    """Whole lines; one that a kill cut short is left out."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()
