"""Whether and where a driver answers Prometheus. Light: a part of every job's configuration."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

from zerofleet.trainer.config import Section
from zerofleet.trainer.errors import UserError

VARIABLE = "ZEROFLEET_METRICS"
"""Environment variable: `ADDRESS:PORT`, stronger than the job's own `metrics`: the place where a run runs says it, as a pod does."""

Port = Annotated[int, Field(ge=0, le=65535)]


class MetricsConfig(Section):
    port: Port | None = None
    """TCP port at which the run's driver answers Prometheus (`GET /metrics`). none: it does not. 0: any that is free, which the run's events name."""
    address: str = "127.0.0.1"
    """Address that it listens at; `0.0.0.0` lets other machines scrape it. There is no password."""


def listening(config: MetricsConfig) -> tuple[str, int] | None:
    """Address and port, the environment's first; None: nobody is to be answered. UserError for a variable that is neither."""
    said = os.environ.get(VARIABLE, "")
    if not said:
        return None if config.port is None else (config.address, config.port)
    address, colon, port = said.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"{VARIABLE}={said} is no ADDRESS:PORT, such as 0.0.0.0:8090")
    return address.strip("[]") or "0.0.0.0", int(port)
