"""Where one rank stands among all ranks."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.node_name import node_name

_PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral ports: no outgoing connection takes one between the choice and the bind."""


def free_port() -> int:
    """A port of this host that nobody listens on, for MASTER_PORT."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


@dataclass(frozen=True)
class World:
    """A rank's coordinates. `attempt` counts from 1; `silo` keys the sample order, ledger and checkpoints."""

    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    node_name: str
    attempt: int
    silo: str = DEFAULT_SILO

    def env(self, master_addr: str, master_port: int) -> dict[str, str]:
        """The environment that torch.distributed's `env://` and DeepSpeed read (torchrun's names)."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "GROUP_RANK": str(self.node_rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": master_addr,
            "MASTER_PORT": str(master_port),
        }

    @staticmethod
    def from_env(attempt: int, environ: Mapping[str, str] = os.environ) -> World:
        """Reads torchrun's variables; a plain process is a world of one."""
        return World(
            rank=int(environ.get("RANK", "0")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            node_rank=int(environ.get("GROUP_RANK", "0")),
            world_size=int(environ.get("WORLD_SIZE", "1")),
            node_name=node_name(),
            attempt=attempt,
        )
