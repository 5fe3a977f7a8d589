"""A cluster that is not there is said at once."""

from __future__ import annotations

import socket

import pytest

from zerofleet.cluster.joined_ray import check_reachable
from zerofleet.trainer.errors import UserError


def test_somebody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check_reachable(f"127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize("address", ["127.0.0.1", "nowhere", "127.0.0.1:http", "127.0.0.1:99999", ":6379"])
def test_it_is_no_address(address):
    with pytest.raises(UserError, match=f"cluster.address={address} .it is not host:port.: give host:port of its head"):
        check_reachable(address)


def test_nobody_listens():
    with pytest.raises(UserError, match=r"no Ray cluster can be joined at cluster.address=127.0.0.1:1 .*refused"):
        check_reachable("127.0.0.1:1")
