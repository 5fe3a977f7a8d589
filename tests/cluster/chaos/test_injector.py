"""What a plan may hold, by where the run is to be: the rest is refused before anything is taken."""

from __future__ import annotations

import pytest

from zerofleet.cluster.chaos.injector import Injector
from zerofleet.cluster.faults import Fault
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

pytestmark = pytest.mark.timeout(20)

CLUSTER = "127.0.0.1:6379"
"""Nobody need be there: an injector sends nothing to it."""


@pytest.mark.parametrize("kind", ["kill_node", "cut_node", "slow_node"])
def test_a_node_is_struck_where_there_are_several(tmp_path, kind):
    run, faults = RunFolder(str(tmp_path), "a"), [Fault(kind, 1, 3)]
    with pytest.raises(
        UserError, match=f"{kind} strikes a node of a Ray cluster that the run joins: give cluster.address"
    ):
        Injector(run, faults)
    with Injector(run, faults, CLUSTER) as injector:
        assert injector.faults[0].gate.startswith("127.0.0.1:")


@pytest.mark.parametrize("kind", ["kill_agent", "kill_head", "disk_full", "storage_outage", "flip_byte", "zombie"])
def test_what_reaches_one_host_only_is_refused_where_there_are_several(tmp_path, kind):
    with pytest.raises(UserError, match=f"{kind} reaches what runs on this host only"):
        Injector(RunFolder(str(tmp_path), "a"), [Fault(kind, 0, 3, for_s=3.0)], CLUSTER)


def test_an_outage_that_is_no_mount_needs_no_local_disk():
    class Outage:
        def begin(self) -> None: ...
        def end(self) -> None: ...

    run, faults = RunFolder("memory://runs", "a"), [Fault("storage_outage", 0, 3, for_s=3.0)]
    with pytest.raises(UserError, match="is not on a local disk"):
        Injector(run, faults)
    with Injector(run, faults, outage=Outage()) as injector:
        assert injector.strikes == []
