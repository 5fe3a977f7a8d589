"""Credentials that a process has in its environment, and that nothing which it writes may hold.

Whoever starts the process names their variables in `VARIABLE`. The values are masked, as they are spelt, in standard output and error and in events.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any, TextIO, cast

from zerofleet.trainer.events import Event

VARIABLE = "ZEROFLEET_CREDENTIALS"
"""Environment variable: names of those that hold credentials, with spaces between them."""
MASK = "***"
FEWEST_CHARACTERS = 8
"""Of a value that is masked. A shorter one, such as a port or a region, is part of many words that tell nothing."""


def masked(text: str) -> str:
    """A text without the credentials of this process."""
    for value in _values():
        text = text.replace(value, MASK)
    return text


def masked_event(event: Event) -> Event:
    """An event without the credentials of this process."""
    return replace(event, data=_masked_data(event.data)) if _values() else event


def mask_output() -> None:
    """From now on what Python writes to standard output and error is masked; where there are no credentials nothing changes."""
    if _values():
        sys.stdout, sys.stderr = cast(TextIO, _Masked(sys.stdout)), cast(TextIO, _Masked(sys.stderr))


def _values() -> list[str]:
    """Longest first: one that is part of another must not spoil that."""
    found = {os.environ.get(name, "") for name in os.environ.get(VARIABLE, "").split()}
    return sorted((value for value in found if len(value) >= FEWEST_CHARACTERS), key=len, reverse=True)


def _masked_data(data: Any) -> Any:
    if isinstance(data, str):
        return masked(data)
    if isinstance(data, dict):
        return {key: _masked_data(value) for key, value in data.items()}
    return [_masked_data(value) for value in data] if isinstance(data, list | tuple) else data


class _Masked:
    """A stream of text in front of another."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
