"""What the agent asks of ranks whose zygote takes its time. A stand-in for the zygote: the other end of its socket."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from zerofleet.cluster import ranks as ranks_module
from zerofleet.cluster.ranks import Ranks
from zerofleet.cluster.spec import JobSpec, NodeSpec, RankSpec
from zerofleet.cluster.zygote import MESSAGE_BYTES
from zerofleet.cluster.zygote_process import ZygoteProcess
from zerofleet.trainer.events import Control
from zerofleet.trainer.world import World

pytestmark = pytest.mark.timeout(60)

SPEC = RankSpec(JobSpec("r", "{}", "/cache"), World(0, 0, 0, 1, "node", 1), {}, "/dev/null")
SLOW_S = 0.3


class Zygote:
    """Comes up slowly. Forks nothing; says that a rank was killed when it is asked to."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(10)
        self.is_up = threading.Event()

    def spawn(self, spec) -> ZygoteProcess:
        self.is_up.wait(SLOW_S)
        return ZygoteProcess(None, self.theirs, None)

    def receive(self) -> tuple[dict, list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self.ours, MESSAGE_BYTES, 1)
        return json.loads(data), descriptors

    def serve_a_kill(self) -> list[str]:
        heard = []
        while "kill" not in heard:
            message, descriptors = self.receive()
            heard.append(message["op"])
            for descriptor in descriptors:
                os.close(descriptor)
        self.ours.send(json.dumps({"op": "exit", "rank": 0, "code": None, "signal": 9}).encode())
        return heard


@pytest.fixture
def zygote(monkeypatch):
    stand_in = Zygote()
    monkeypatch.setattr(ranks_module, "spawn", stand_in.spawn)
    yield stand_in
    stand_in.ours.close()


@pytest.fixture
def ranks(zygote, tmp_path):
    (tmp_path / "zygote.log").touch()
    return Ranks(NodeSpec("r", 0, "cpu", None, str(tmp_path)), Path(tmp_path / "zygote.log"), lambda event: None)


def test_a_stop_right_after_the_start_reaches_the_rank(zygote, ranks):
    ranks.start([SPEC])
    ranks.control(0, Control("stop"))
    message, (descriptor,) = zygote.receive()
    assert message["op"] == "fork"
    with socket.socket(fileno=descriptor) as rank:
        rank.settimeout(10)
        assert json.loads(rank.recv(4096))["action"] == "stop"


def test_ranks_that_were_not_asked_for_when_the_zygote_died_get_another(zygote, ranks, monkeypatch):
    wait_for(lambda: ranks._zygote is not None)
    tasks, second = [], Zygote()
    with monkeypatch.context() as held:
        held.setattr(ranks, "_run_in_thread", tasks.append)
        ranks.start([SPEC])
    monkeypatch.setattr(ranks_module, "spawn", second.spawn)
    zygote.ours.close()
    wait_for(lambda: ranks._zygote is None)
    (fork,) = tasks
    ranks._run_in_thread(fork)
    assert second.receive()[0]["op"] == "fork"
    assert len(ranks.living()) == 1
    second.ours.close()


def wait_for(condition) -> None:
    while not condition():  # the test's own limit ends it
        time.sleep(0.01)


def test_a_kill_right_after_the_start_ends_the_rank(zygote, ranks):
    served: list[str] = []
    serving = threading.Thread(target=lambda: served.extend(zygote.serve_a_kill()), daemon=True)
    serving.start()
    ranks.start([SPEC])
    assert [rank.spec for rank in ranks.living()] == [SPEC]
    ranks.kill()
    assert ranks.living() == []
    serving.join(10)
    assert served == ["fork", "kill"]
