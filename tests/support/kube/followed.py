"""A command line that is followed while it goes on."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable


class Followed:
    """A command line that goes on, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, said: Callable[[str], bool], timeout_s: float = 300) -> str:
        deadline = time.monotonic() + timeout_s
        while not (found := [line for line in self.lines if said(line)]):
            assert time.monotonic() < deadline and self.process.poll() is None, "\n".join(self.lines[-40:])
            time.sleep(0.1)
        return found[0]

    def end(self, timeout_s: float = 200) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]


def is_step(line: str) -> bool:
    return line.startswith('{"kind":"step"')


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
