"""The hosts of benchmarks/hosts/harness.py: that they are apart as machines are, can be killed, cut off and slowed, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zerofleet.benchmarks.hosts.harness import Hosts, why_not
from zerofleet.benchmarks.hosts.switch import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(170),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

MOST_TO_NOTICE_S = 12.0
"""Four failed checks of at most 1.5 s, with room for a busy machine."""
PROGRAMS = "tests.integration.host_programs"


def program(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", PROGRAMS, name, *map(str, arguments)]


def answer(done: subprocess.CompletedProcess[str]):
    """The JSON of the last line that a program printed."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def last_number(process: subprocess.Popen[str]) -> float:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err[-3000:]
    return float(out.splitlines()[-1])  # Ray prints what it thinks of the node before


def processes_in(namespaces: set[int]) -> list[str]:
    """The processes whose network namespace is one of these."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "ns/net").stat().st_ino in namespaces:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended meanwhile
            continue
    return found


def namespaces_of(hosts: Hosts) -> set[int]:
    return {os.stat(f"/proc/{hosts[i].pid}/ns/net").st_ino for i in range(len(hosts))}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    began = time.monotonic()
    with Hosts(3, shared=[tmp_path_factory.getbasetemp()]) as made:
        print(f"three hosts came up in {time.monotonic() - began:.1f} s")
        namespaces = namespaces_of(made)
        assert len(namespaces) == 3 and processes_in(namespaces)
        yield made
    assert processes_in(namespaces) == []


def test_each_host_is_a_machine_of_its_own(hosts):
    for host in (hosts[0], hosts[1]):
        host.run(["touch", f"/dev/shm/of-{host.name}", f"/tmp/of-{host.name}"])
    seen = answer(hosts[0].run(program("look_around", hosts.ray_address)))
    assert [(node["name"], node["address"]) for node in seen] == [(h.name, h.address) for h in hosts]
    assert [node["own"] for node in seen] == [["of-host-0", "of-host-0"], ["of-host-1", "of-host-1"], []]
    assert [node["ray_name"] for node in seen] == ["host-0", "host-1", "host-2"]


def test_what_is_shared_is_seen_and_what_is_not_is_not(hosts, tmp_path):
    (tmp_path / "word").write_text("shared")
    assert hosts[1].run(["cat", str(tmp_path / "word")]).stdout == "shared"
    hosts[1].run(["sh", "-c", f"mkdir /tmp/own && echo own > /tmp/own/word && echo back > {tmp_path}/word"])
    assert (tmp_path / "word").read_text() == "back\n"
    assert not Path("/tmp/own").exists()
    assert hosts[2].run(["cat", "/tmp/own/word"]).returncode == 1


def test_a_command_that_takes_too_long_is_ended(hosts):
    with pytest.raises(subprocess.TimeoutExpired):
        hosts[1].run(["sleep", "31.7"], timeout_s=0.5)
    assert "sleep 31.7" not in hosts[1].run(["ps", "-eo", "args"]).stdout


def test_without_root_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in why_not.__wrapped__()


def test_a_collective_runs_over_two_hosts(hosts):
    ranks = [
        host.start(
            program("all_reduce", rank),
            {"MASTER_ADDR": hosts[1].address, "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": host.device},
        )
        for rank, host in enumerate((hosts[1], hosts[2]))
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=60)
        assert out == "sum 3\n", err[-2000:]


def test_through_a_cut_a_connection_hangs_and_then_goes_on(hosts):
    ticks = hosts[1].start(program("receive_ticks", hosts[1].address))
    assert ticks.stdout.readline() == "listening\n"
    sender = hosts[2].start(program("send_ticks", hosts[1].address))
    assert float(ticks.stdout.readline()) < 5
    hosts[1].cut()
    time.sleep(1)  # the length of the cut, not a wait for something
    assert hosts[2].run(program("connect", hosts[1].address, 1)).stdout == "timed out\n"
    hosts[1].heal()
    out, err = ticks.communicate(timeout=30)
    gaps_s = [float(line) for line in out.splitlines()]
    print(f"the longest silence of a connection through a cut of about 2 s: {max(gaps_s):.1f} s")
    assert max(gaps_s) > 1.5 and gaps_s[-1] < 5, err[-2000:]
    assert sender.wait(10) == 0


def test_a_node_that_cuts_itself_off_is_silent_for_its_time(hosts):
    """The fault `cut_node`, as a rank brings it about: nothing that its node sends arrives, and no connection breaks."""
    ticks = hosts[2].start(program("receive_ticks", hosts[2].address))
    assert ticks.stdout.readline() == "listening\n"
    sender = hosts[1].start(program("send_ticks", hosts[2].address))
    assert float(ticks.stdout.readline()) < 5
    strike = "from zerofleet.cluster.chaos.node import strike_node; strike_node('cut_node', 1.0)"
    done = hosts[1].run([sys.executable, "-P", "-c", strike])
    assert done.returncode == 0, done.stderr
    out, err = ticks.communicate(timeout=30)
    assert 0.9 < max(map(float, out.splitlines())) < 10, err[-2000:]
    assert sender.wait(10) == 0
    assert "tbf" not in hosts[1].run(["tc", "qdisc", "show"]).stdout, "it is as it was"


def test_a_slow_host_is_slow_until_it_is_not(hosts):
    listener = hosts[2].start(program("echo", hosts[2].address))
    assert listener.stdout.readline() == "listening\n"
    measure = program("measure", hosts[2].address)
    before = answer(hosts[0].run(measure))
    hosts[2].slow(delay_ms=30, rate_mbit=20)
    slow = answer(hosts[0].run(measure))
    hosts[2].full_speed()
    after = answer(hosts[0].run(measure))
    print(f"round trip and rate: {before}, slowed {slow}, afterwards {after}")
    for fast in (before, after):
        assert fast["round_trip_ms"] < 20 and fast["mbit_per_s"] > 100
    assert 60 <= slow["round_trip_ms"] < 400
    assert 2 < slow["mbit_per_s"] < 22


def test_a_host_that_joins_and_dies_is_noticed(hosts):
    fourth = hosts.add()
    watch = hosts[0].start(program("watch", hosts.ray_address, fourth.node_id))
    assert watch.stdout.readline() == "alive\n"
    namespace = {os.stat(f"/proc/{fourth.pid}/ns/net").st_ino}
    assert processes_in(namespace)
    killed_at = time.time()
    fourth.kill()
    assert processes_in(namespace) == []
    noticed_s = last_number(watch) - killed_at
    print(f"a killed host was noticed after {noticed_s:.1f} s")
    assert noticed_s < MOST_TO_NOTICE_S


def test_a_host_that_is_cut_off_is_noticed(hosts):
    """The last test on these hosts: Ray ends the raylet of a node that it has given up."""
    watch = hosts[0].start(program("watch", hosts.ray_address, hosts[2].node_id))
    assert watch.stdout.readline() == "alive\n"
    cut_at = time.time()
    hosts[2].cut()
    noticed_s = last_number(watch) - cut_at
    print(f"a host that was cut off was noticed after {noticed_s:.1f} s")
    assert noticed_s < MOST_TO_NOTICE_S


def test_hosts_end_with_the_process_that_made_them():
    script = (
        "import sys; from zerofleet.benchmarks.hosts.harness import Hosts; from tests.integration.test_hosts import namespaces_of\n"
        "with Hosts(1) as hosts: print(*namespaces_of(hosts), flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    namespaces = {int(number) for number in owner.stdout.readline().split()}
    assert len(processes_in(namespaces)) > 3
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 10
    while left := processes_in(namespaces):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
