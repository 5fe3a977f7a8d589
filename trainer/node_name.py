"""What the node that this process runs on is called."""

from __future__ import annotations

import os
import socket

NODE_NAME = "ZEROFLEET_NODE"
"""The variable that gives a node another name than its hostname: a container's hostname says nothing of the machine that may be broken."""


def node_name() -> str:
    """As events, findings and verdicts name this node."""
    return os.environ.get(NODE_NAME) or socket.gethostname()
