"""The zygote and its forked ranks, without Ray: forks, words, exits, kills, ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from zerofleet.cluster import ranks as ranks_module
from zerofleet.cluster.agent import NodeAgent
from zerofleet.cluster.binding import quota_cores
from zerofleet.cluster.ranks import Ranks
from zerofleet.cluster.spec import AttemptSpec, JobSpec, NodeSpec, RankSpec
from zerofleet.cluster.zygote_process import ZygoteSpec, adopt, spawn_early, zygote_environment
from zerofleet.trainer.config import ModelConfig, TrainConfig
from zerofleet.trainer.events import Control
from zerofleet.trainer.world import World

ROOT = Path(__file__).parents[2]
HERE = "tests.integration.test_cluster_ranks"
pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

CONFIG = TrainConfig(
    model=ModelConfig(config={"model_type": "llama"}),
    data={"files": ["python-stdlib"]},
    train={"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
).model_dump_json()


# -- what the ranks do ---------------------------------------------------------------------------------------------
def quiet(config, world, cache_path, report, control, fault, snapshots) -> None:
    print("said on stdout")


def wait_for_stop(config, world, cache_path, report, control, fault, snapshots) -> None:
    while control().action != "stop":
        time.sleep(0.01)


def freeze(config, world, cache_path, report, control, fault, snapshots) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def leave_a_child(config, world, cache_path, report, control, fault, snapshots) -> None:
    """Something that keeps the rank's end of the socket open after it."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)


def crash(config, world, cache_path, report, control, fault, snapshots) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exit_3(config, world, cache_path, report, control, fault, snapshots) -> None:
    sys.exit(3)


def tell_environment(config, world, cache_path, report, control, fault, snapshots) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "RAY_AUTH_TOKEN")
    for name in names:
        print(name, os.environ.get(name))


def tell_cores(config, world, cache_path, report, control, fault, snapshots) -> None:
    print(os.sched_getaffinity(0))


def broken_preload(model_type, note) -> None:
    raise ImportError("no torch here")


def with_a_note(model_type, note) -> None:
    note("noted before anyone listened")


def with_a_thread(model_type, note) -> None:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


# -- the harness ---------------------------------------------------------------------------------------------------
class Node:
    """One node's ranks, and what was heard of them."""

    def __init__(self, folder: Path, preload: str = "", early_zygote: str = "") -> None:
        self.folder, self.events = folder, []
        self._arrived = threading.Condition()
        self.zygote_log = folder / "agent.log"
        preload = preload and f"{HERE}:{preload}"
        spec = NodeSpec("r", 0, "cpu", str(folder), str(folder), preload=preload, early_zygote=early_zygote)
        self.ranks = Ranks(spec, self.zygote_log, self._hear)

    def _hear(self, event) -> None:
        with self._arrived:
            self.events.append(event)
            self._arrived.notify_all()

    def start(self, target: str, num_ranks: int = 2, attempt: int = 1, bind_cores: bool = False) -> None:
        specs = [self.spec(target, rank, num_ranks, attempt) for rank in range(num_ranks)]
        self.ranks.start([replace(each, job=replace(each.job, bind_cores=bind_cores)) for each in specs])

    def spec(self, target: str, rank: int, num_ranks: int, attempt: int) -> RankSpec:
        world = World(rank, rank, 0, num_ranks, "a", attempt)
        job = JobSpec("r", CONFIG, "/nowhere", f"{HERE}:{target}")
        log = str(self.folder / f"rank-{rank}.log")
        return RankSpec(job, world, world.env("127.0.0.1", 1234), log, ranks_of_node=num_ranks)

    def wait_for(self, kind: str, count: int = 1, timeout_s: float = 20) -> list:
        def found() -> list:
            return [event for event in self.events if event.kind == kind]

        with self._arrived:
            assert self._arrived.wait_for(lambda: len(found()) >= count, timeout_s), (kind, self.events)
        return found()

    def pids(self, count: int) -> list[int]:
        """Of the living ranks, when all have been forked."""

        def found() -> list[int]:
            return [rank.pid for rank in self.ranks.living() if rank.pid]

        wait_until(found, count)
        return found()

    def log(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}.log").read_text()

    @property
    def zygote(self) -> psutil.Process:
        return psutil.Process(self.ranks._zygote.pid)


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    nodes = []

    def make(preload: str = "", early_zygote: str = "") -> Node:
        nodes.append(Node(tmp_path, preload, early_zygote))
        return nodes[-1]

    yield make
    for made in nodes:
        made.ranks.close()


def gone(pids, timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ranks_run_say_and_exit(node):
    n = node()
    n.start("quiet")
    exits = n.wait_for("exit", 2)
    assert sorted((e.rank, e.data["code"], e.data["signal"], e.data["killed"]) for e in exits) == [
        (0, 0, None, False),
        (1, 0, None, False),
    ]
    assert "said on stdout" in n.log(0)
    assert [e.phase for e in n.wait_for("phase", 2)] == ["import", "import"]


def test_the_environment_of_a_rank(node):
    n = node()
    n.start("tell_environment")
    n.wait_for("exit", 2)
    assert n.log(1).splitlines() == [
        *("RANK 1", "LOCAL_RANK 1", "WORLD_SIZE 2", "MASTER_ADDR 127.0.0.1", "MASTER_PORT 1234"),
        *("OMP_NUM_THREADS 1", "RAY_AUTH_TOKEN None"),
    ]


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or quota_cores() < len(os.sched_getaffinity(0)), reason="needs two whole cores"
)
def test_ranks_keep_to_cores_of_their_own(node):
    n = node()
    n.start("tell_cores", bind_cores=True)
    n.wait_for("exit", 2)
    said = [re.fullmatch(r"bound to cores (\d+)\n\{(\d+)\}\n", n.log(rank)) for rank in range(2)]
    bound, kept = zip(*(found.groups() for found in said), strict=True)
    assert bound == kept and bound[0] != bound[1]


def test_ranks_that_cannot_be_bound_say_so_once_and_go_on(node):
    n, count = node(), len(os.sched_getaffinity(0)) + 1
    n.start("tell_cores", count, bind_cores=True)
    n.wait_for("exit", count)
    (told,) = n.wait_for("incident")
    assert told.data["message"].startswith("all ranks on a are bound to no cores, as cluster.bind_cores asks for: ")
    assert [n.log(rank).splitlines()[-1] for rank in range(count)] == [str(os.sched_getaffinity(0))] * count


@pytest.mark.parametrize(("target", "code", "number"), [("crash", None, signal.SIGSEGV), ("exit_3", 1, None)])
def test_how_a_rank_ended(node, target, code, number):
    n = node()
    n.start(target, 1)
    (end,) = n.wait_for("exit")
    assert (end.data["code"], end.data["signal"]) == (code, number)


def test_the_last_words_come_before_the_exit(node):
    n = node()
    n.start("exit_3", 1)
    n.wait_for("exit")
    kinds = [event.kind for event in n.events]
    assert kinds.index("error") < kinds.index("exit")


def test_an_exit_is_known_although_a_child_lives_on(node):
    n = node()
    n.start("leave_a_child", 1)
    n.wait_for("exit")
    for child in psutil.process_iter(["cmdline"]):  # its cmdline is the zygote's: forked, not executed
        if child.info["cmdline"] == n.zygote.cmdline() and child.pid != n.zygote.pid:
            child.kill()


def test_kill_ends_frozen_ranks_and_says_that_they_were_frozen(node):
    n = node()
    n.start("freeze")
    wait_until(lambda: [pid for pid in n.pids(2) if psutil.Process(pid).status() == "stopped"], 2)
    started = time.monotonic()
    n.ranks.kill()
    assert time.monotonic() - started < 2
    exits = n.wait_for("exit", 2)
    assert all(e.data["killed"] and e.data["signal"] == 9 and e.data["state_before"] == "T" for e in exits)
    assert gone([e.data["pid"] for e in exits])


def wait_until(found, count: int, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while len(found()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_attempts_follow_each_other_from_one_zygote(node):
    n = node()
    zygote = None
    for attempt in range(1, 6):
        n.start("freeze", attempt=attempt)
        n.wait_for("phase", 2 * attempt)
        n.ranks.kill()
        zygote = zygote or n.zygote.pid
        assert n.zygote.pid == zygote
    assert [e.attempt for e in n.wait_for("exit", 10)] == [a for a in range(1, 6) for _ in range(2)]


def test_control_reaches_the_rank(node):
    n = node()
    n.start("wait_for_stop")
    n.wait_for("phase", 2)
    n.ranks.control(1, Control("stop"))
    assert n.wait_for("exit")[0].rank == 1
    n.ranks.control(1, Control("stop"))  # it has ended: nobody hears, nothing breaks
    n.ranks.control(0, Control("stop"))
    n.wait_for("exit", 2)


def test_ranks_die_with_their_zygote_and_the_next_attempt_has_another(node):
    n = node()
    n.start("wait_for_stop")
    pids = n.pids(2)
    n.zygote.kill()
    exits = n.wait_for("exit", 2)
    assert all(e.data["zygote_code"] == -9 and not e.data["killed"] for e in exits)
    assert gone(pids)
    n.start("quiet", attempt=2)
    assert [e.data["code"] for e in n.wait_for("exit", 4)[2:]] == [0, 0]


def early(folder: Path) -> str:
    path = str(folder / "z.sock")
    spawn_early(ZygoteSpec(f"{HERE}:with_a_note", "", "cpu", str(folder / "z.log")), path)
    wait_until(lambda: [path] if Path(path).exists() else [], 1)
    return path


def test_a_zygote_that_is_older_than_its_agents(node, tmp_path):
    """Each agent, and each new start of one, has a fork of it, and nobody imports anything again."""
    n = node(early_zygote=early(tmp_path))
    n.start("quiet")
    assert [e.data["code"] for e in n.wait_for("exit", 2)] == [0, 0]
    notes = [e.data["message"] for e in n.wait_for("info", 2)]
    assert notes[0] == "noted before anyone listened" and notes[1].startswith("node 0: imports took")
    stem = n.zygote.parent()
    assert stem.ppid() == os.getpid() and "z.sock" in " ".join(stem.cmdline())
    n.start("wait_for_stop", attempt=2)
    pids = n.pids(2)
    n.zygote.kill()
    assert [e.data["zygote_code"] for e in n.wait_for("exit", 4)[2:]] == [None, None]
    assert gone(pids)
    n.start("quiet", attempt=3)
    assert [e.data["code"] for e in n.wait_for("exit", 6)[4:]] == [0, 0]
    assert n.zygote.parent() == stem
    assert n.wait_for("info", 3)[2].data["message"] == "node 0: imports took 0.0 s"
    other = node(early_zygote=str(tmp_path / "z.sock"))
    other.start("quiet")
    assert [e.data["code"] for e in other.wait_for("exit", 2)] == [0, 0]
    assert other.zygote.parent() == stem and other.zygote != n.zygote


def test_when_it_has_ended_there_is_another(node, tmp_path):
    n = node(early_zygote=early(tmp_path))
    n.start("wait_for_stop")
    pids = n.pids(2)
    n.zygote.parent().kill()
    assert n.wait_for("exit", 2) and gone(pids)
    n.start("quiet", attempt=2)
    assert [e.data["code"] for e in n.wait_for("exit", 4)[2:]] == [0, 0]
    assert n.zygote.ppid() == os.getpid()


def test_a_fork_of_an_early_zygote_ends_with_its_agent(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    zygote = adopt(early(tmp_path))
    pid = next(m["pid"] for _ in range(2) if (m := json.loads(zygote.link.recv(4096)))["op"] == "ready")
    assert alive(pid)
    zygote.link.close()
    assert gone([pid])


def test_ranks_can_be_ended_while_an_early_zygote_still_imports(node, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "KILL_TIMEOUT_S", 0.5)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "z.sock"))
    listener.listen()  # and does not answer
    (tmp_path / "z.log").touch()
    n = node(early_zygote=str(tmp_path / "z.sock"))
    n.start("quiet")
    wait_until(lambda: n.ranks.living(), 2)
    n.ranks.kill()
    assert len(n.wait_for("exit", 2)) == 2 and not n.ranks.living()
    listener.close()


def test_nobody_waits_to_be_adopted(tmp_path):
    assert adopt(str(tmp_path / "absent")) is None


def test_a_zygote_that_cannot_import_says_why(node):
    n = node("broken_preload")
    n.start("quiet")
    (end, _) = n.wait_for("exit", 2)
    assert "ImportError: no torch here" in end.data["zygote_log"]


def test_a_zygote_with_a_second_thread_refuses_to_fork(node):
    n = node("with_a_thread")
    n.start("quiet", 1)
    (end,) = n.wait_for("exit")
    assert "the zygote has more than one thread" in end.data["zygote_log"]


def test_ranks_die_with_their_agent(tmp_path):
    """kill -9 of the agent's process: by PDEATHSIG the zygote ends, and with it the ranks."""
    script = (
        "import sys, time; from pathlib import Path; from tests.integration.test_cluster_ranks import Node\n"
        f"n = Node(Path({str(tmp_path)!r})); n.start('wait_for_stop')\n"
        "pids = n.pids(2); print(n.zygote.pid, *pids, flush=True); time.sleep(60)"
    )
    agent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pids = [int(pid) for pid in agent.stdout.readline().split()]
    assert len(pids) == 3
    assert all(map(alive, pids))
    agent.kill()
    agent.wait()
    assert gone(pids)


def test_a_zygote_that_does_not_kill_is_killed(node, monkeypatch):
    monkeypatch.setattr(ranks_module, "KILL_TIMEOUT_S", 0.5)
    n = node()
    n.start("wait_for_stop")
    pids = n.pids(2)
    n.zygote.suspend()
    n.ranks.kill()
    assert gone(pids)
    assert n.ranks.living() == []


def test_an_agent_ends_its_ranks_when_the_driver_no_longer_polls(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    agent = NodeAgent(NodeSpec("r", 0, "cpu", str(tmp_path), str(tmp_path), preload="", lease_s=1.0))
    job = JobSpec("r", CONFIG, "/nowhere", f"{HERE}:wait_for_stop")
    worlds = tuple(World(rank, rank, 0, 2, "a", 1) for rank in range(2))
    agent.start(AttemptSpec(job, 1, worlds, "rank", "127.0.0.1", agent.free_port()))
    try:
        for _ in range(15):  # polled for longer than the lease: they live
            agent.poll(0.1)
        assert len(agent._ranks.living()) == 2
        time.sleep(1.5)
        events = agent.poll(1.0)
        assert agent._ranks.living() == []
        assert any("did not poll" in e.data["message"] for e in events if e.kind == "incident")
        assert (tmp_path / "attempt-0001" / "rank-00001.log").exists()
    finally:
        agent.close()


def test_logs_go_to_storage_when_the_run_folder_is_remote(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    agent = NodeAgent(NodeSpec("r", 0, "cpu", None, f"file://{tmp_path}", preload=""))
    world = World(0, 0, 0, 1, "a", 1)
    agent.start(AttemptSpec(JobSpec("r", CONFIG, "/nowhere", f"{HERE}:quiet"), 1, (world,), "rank", "127.0.0.1", 1))
    while not any(event.kind == "exit" for event in agent.poll(20)):
        pass
    assert not (tmp_path / "logs").exists()
    agent.close()
    assert not agent._logs.exists(), "nothing stays on the node"
    assert "said on stdout" in (tmp_path / "logs" / "attempt-0001" / "rank-00000.log").read_text()


def test_zygotes_touch_no_gpu_and_have_one_thread():
    environment = zygote_environment("cuda")
    assert environment["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert environment["DS_ACCELERATOR"] == "cuda"
    assert {environment[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")} == {"1"}


def test_the_real_preload_starts_no_thread_and_no_cuda(tmp_path):
    script = (
        "import os\nfrom zerofleet.cluster.preload import preload\npreload('llama', print)\nimport sys, torch\n"
        "assert len(os.listdir('/proc/self/task')) == 1, os.listdir('/proc/self/task')\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'transformers.models.llama.modeling_llama' in sys.modules and 'torch._inductor' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=zygote_environment("cpu"), timeout=50)
