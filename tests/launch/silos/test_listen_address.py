"""Where the outer server listens when nobody says so."""

from __future__ import annotations

import pytest

from zerofleet.launch.config import load_job
from zerofleet.launch.silos.driver import listen_address
from zerofleet.trainer.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "address"),
    [
        ([], "127.0.0.1"),
        (["silos.listen=10.0.0.7", "cluster.address=127.0.0.2:6379"], "10.0.0.7"),
        (["cluster.address=127.0.0.2:6379"], "127.0.0.1"),
        (["silos.members.b.address=127.0.0.2:6379", "silos.listen=0.0.0.0"], "0.0.0.0"),
    ],
)
def test_loopback_unless_silos_run_elsewhere(recipe, overrides, address):
    assert listen_address(load_job(recipe, overrides)) == address


def test_a_cluster_that_this_host_has_no_way_to(recipe):
    job = load_job(recipe, ["silos.members.b.address=255.255.255.255:6379"])
    with pytest.raises(UserError, match="no way to the Ray cluster at 255.255.255.255:6379 .* set silos.listen"):
        listen_address(job)
