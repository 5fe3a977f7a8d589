"""What a node is called."""

from __future__ import annotations

import socket

from zerofleet.trainer.node_name import NODE_NAME, node_name
from zerofleet.trainer.world import World


def test_a_node_is_called_by_its_hostname_unless_it_has_another_name(monkeypatch):
    monkeypatch.delenv(NODE_NAME, raising=False)
    assert node_name() == socket.gethostname()
    monkeypatch.setenv(NODE_NAME, "")
    assert node_name() == socket.gethostname()
    monkeypatch.setenv(NODE_NAME, "gke-pool-7")
    assert node_name() == World.from_env(1).node_name == "gke-pool-7"
