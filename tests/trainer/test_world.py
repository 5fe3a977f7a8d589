"""Where a rank stands, and where ranks meet."""

from __future__ import annotations

import socket
from pathlib import Path

from zerofleet.trainer import world


def test_a_free_port_is_one_that_no_outgoing_connection_takes(monkeypatch):
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    monkeypatch.setattr(world, "_PORTS", world._PORTS[:2])
    with socket.socket() as taken:
        taken.bind(("", world._PORTS[0]))
        assert {world.free_port() for _ in range(20)} == {world._PORTS[1]}
    assert not set(world._PORTS) & set(range(first, last + 1))
