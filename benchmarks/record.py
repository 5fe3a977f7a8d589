"""The one form of a benchmark's result: what was measured, on what, how often, every value. Read, checked and written here.

`zerofleet bench NAME` writes it, `zerofleet bench compare` reads it. What a benchmark itself says lies in `measured`, whole.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from zerofleet.benchmarks.statistics import CONFIDENCE, order_interval
from zerofleet.trainer.errors import NotFoundError, UserError

SCHEMA: Final = 1

Better = Literal["lower", "higher"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Series(_Strict):
    """One figure, as often as it was measured."""

    name: str
    """Unique in its result."""
    unit: str
    """`s`, `tokens/s`, `bytes`, or `` for a ratio."""
    better: Better | None
    """None: it is told, and never judged."""
    values: list[float] = Field(min_length=1)
    """In the order in which they were measured."""
    median: float
    interval: tuple[float, float] | None
    """Of the median, with at least 95 % confidence, between two of the values; None of fewer than six."""

    @staticmethod
    def of(name: str, unit: str, better: Better | None, values: list[float]) -> Series:
        median, interval = statistics.median(values), order_interval(values)
        return Series(name=name, unit=unit, better=better, values=values, median=median, interval=interval)

    @model_validator(mode="after")
    def _adds_up(self) -> Series:
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"series {self.name!r} has values that are no numbers")
        if not math.isclose(self.median, statistics.median(self.values), rel_tol=1e-9):
            raise ValueError(f"the median of series {self.name!r} is not that of its values")
        return self


class LoadAverage(_Strict):
    """Of the machine, over 1, 5 and 15 minutes."""

    before: tuple[float, float, float]
    after: tuple[float, float, float]


class Alternation(_Strict):
    """Two results with the same session were measured in turns: what has the same index is a pair, whose order was drawn by a coin."""

    session: str
    arm: str


class Build(_Strict):
    """What was measured."""

    version: str
    commit: str | None
    """As `git describe` says it; None outside of a checkout."""


class Result(_Strict):
    """A benchmark's result."""

    schema_version: Literal[1] = SCHEMA
    benchmark: str
    command: list[str]
    """What `zerofleet bench` was given: results of unlike options are not compared."""
    build: Build
    environment: dict[str, Any]
    """The fingerprint (`launch/environment.py`), without the load."""
    load_average: LoadAverage
    started_at: str
    """UTC, ISO 8601."""
    duration_s: float
    exit_code: int
    """Of the benchmark: not 0 where a bar was missed."""
    confidence: float = CONFIDENCE
    """Of all intervals."""
    alternation: Alternation | None = None
    series: list[Series]
    measured: dict[str, Any]
    """The benchmark's own record."""

    @field_validator("series")
    @classmethod
    def _names_are_unique(cls, series: list[Series]) -> list[Series]:
        names = [each.name for each in series]
        if len(set(names)) < len(names):
            raise ValueError("two series have the same name")
        return series

    def write(self, path: Path) -> None:
        """The one file that is read again."""
        path.write_text(json.dumps(self.model_dump(), indent=1) + "\n")


def read_result(path: Path) -> Result:
    """UserError for what is no result, NotFoundError for what is not there."""
    try:
        return Result.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist: name a file that `zerofleet bench NAME` has written") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path} is no result of `zerofleet bench`: {place}: {first['msg']} ({error.error_count()} in all). "
            "Measure again with `zerofleet bench NAME --output FILE`"
        ) from error
