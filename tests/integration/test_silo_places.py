"""Two silos on one Ray cluster of two hosts: the labels of its nodes say which silo runs where."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.test_silos import SilosCli
from tests.support.cli import assert_audited
from zerofleet.benchmarks.hosts.harness import Hosts, why_not

pytestmark = [
    pytest.mark.integration,
    pytest.mark.further,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

LABELS = {"host-0": {"party": "b", "site": "x"}, "host-1": {"party": "a", "site": "x"}}
"""Without labels both silos would be on host-0: it comes first, and has room for both."""
STEPS = 8


@pytest.fixture(scope="module")
def cli(tmp_path_factory, tiny_corpus):
    return SilosCli(tmp_path_factory.mktemp("places"), tiny_corpus)


@pytest.fixture(scope="module")
def hosts(cli, tmp_path_factory):
    with Hosts(2, shared=[tmp_path_factory.getbasetemp()], labels=list(LABELS.values())) as made:
        yield made


def submit(hosts: Hosts, cli: SilosCli, name: str, *more: str, **parties: str) -> subprocess.CompletedProcess[str]:
    """From the cluster's head, where the outer server then is."""
    labels = [f"silos.members.{silo}.labels={{party: {party}}}" for silo, party in parties.items()]
    command = [sys.executable, "-m", "zerofleet.launch", "submit", str(cli.recipe), f"run.name={name}"]
    options = [f"train.steps={STEPS}", f"cluster.address={hosts.ray_address}", *more]
    return hosts[0].run([*command, *options, *labels], timeout_s=300)


def test_each_silo_runs_on_the_nodes_with_its_labels(hosts, cli):
    done = submit(hosts, cli, "apart", a="a", b="b")
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = [event.data for event in cli.run("apart").events() if event.kind == "round"]
    assert [sorted(found["tokens"]) for found in rounds] == [["a", "b"]] * 2, "they reach the server over the network"
    for member, num_ranks, host in (("a", 2, "host-1"), ("b", 1, "host-0")):
        silo = cli.silo("apart", member)
        began = [e for e in silo.events() if e.kind == "phase" and e.phase == "init"]
        assert sorted((event.rank, event.data["node"]) for event in began) == [(n, host) for n in range(num_ranks)]
        assert_audited(silo, STEPS)


def test_a_label_that_no_node_has_is_told_with_those_that_there_are(hosts, cli):
    done = submit(hosts, cli, "nowhere", "cluster.placement_timeout_s=5", a="c", b="c")
    assert done.returncode == 1, done.stdout + done.stderr
    ends = [e.data for silo in "ab" for e in cli.silo("nowhere", silo).events() if e.kind == "state"]
    failed = [data for data in ends if data["to"] == "FAILED"]
    assert failed, "one of them, or both: the first stops the other"
    for data in failed:
        assert "no node carries party=c" in data["why"] and data["exit_code"] == 3
        assert "host-0 (2 CPUs, free 2 CPUs, party=b, site=x)" in data["why"]
    assert "no node carries party=c" in done.stdout + done.stderr
