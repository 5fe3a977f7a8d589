import fcntl
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zerofleet.trainer import ops
from zerofleet.trainer.config import TrainConfig


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of one op, under a root of its own."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "some_op").mkdir()
    return tmp_path / "some_op"


def holder(script: str, *arguments: Path, cwd: Path | None = None) -> subprocess.Popen:
    """A process that runs `script`, says so, and waits to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os, sys\n{script}\nprint('ready', flush=True)\nsys.stdin.read()", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=cwd,
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_lock_is_held_while_its_process_lives_and_stale_after(folder):
    lock = folder / "lock"
    process = holder("os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)", lock)  # as torch's FileBaton takes it
    assert ops.stale_locks() == []
    process.kill()
    process.communicate()
    (stale,) = ops.stale_locks()
    assert (stale.path, stale.op) == (lock, "some_op")
    assert [cleared.path for cleared in ops.clear_stale_locks()] == [lock]
    assert not lock.exists() and ops.stale_locks() == []


def test_a_compiler_that_outlived_its_parent_holds_the_lock(folder):
    (folder / "lock").touch()
    process = holder("", cwd=folder)
    assert ops.stale_locks() == []
    process.kill()
    process.communicate()
    assert len(ops.stale_locks()) == 1


def test_on_a_network_file_system_a_young_lock_may_be_another_hosts(folder, monkeypatch):
    (folder / "lock").touch()
    monkeypatch.setattr(ops, "_is_on_network", lambda path: True)
    assert ops.stale_locks() == []
    monkeypatch.setattr(ops, "_NETWORK_GRACE_S", 0.0)
    assert len(ops.stale_locks()) == 1


def test_the_roots_in_their_order(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert ops.extensions_root().parent == tmp_path / "torch_extensions"
    by_one_path = ops.extensions_root()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "link"))
    assert ops.extensions_root().resolve() != by_one_path.resolve(), "what is built holds the path of the headers"
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert ops.extensions_root() == tmp_path / "cache/torch_extensions"
    (tmp_path / "cache/torch_extensions/py311_cpu/some_op").mkdir(parents=True)
    (tmp_path / "cache/torch_extensions/py311_cpu/some_op/lock").touch()
    assert len(ops.stale_locks()) == 1


def test_built_means_that_the_library_is_there(folder):
    (folder / "some_op.o").touch()
    assert not ops.is_built("some_op")
    (folder / "some_op.so").touch()
    assert ops.is_built("some_op")


@pytest.mark.parametrize(("section", "needed"), [({}, []), ({"device": "none"}, []), ({"device": "cpu"}, ["cpu_adam"])])
def test_an_offloaded_optimizer_needs_its_op(folder, section, needed):
    config = TrainConfig.model_validate(
        {
            "model": {"pretrained": "x"},
            "data": {"files": ["x"]},
            "train": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
            "deepspeed": {"zero_optimization": {"offload_optimizer": section}},
        }
    )
    assert ops.needed_by(config) == needed
    (folder.parent / "cpu_adam").mkdir()
    (folder.parent / "cpu_adam/cpu_adam.so").touch()
    assert ops.needed_by(config) == []


def test_a_build_clears_a_stale_lock_that_it_would_wait_for(folder, monkeypatch):
    """The child waits for the lock to vanish, as torch does; only a clearing parent lets it end."""
    (folder / "lock").touch()
    script = f"import os, time\nwhile os.path.exists({str(folder / 'lock')!r}): time.sleep(0.05)"
    monkeypatch.setattr(ops, "_BUILD_SCRIPT", script)
    ops.build()


def test_a_builder_that_waited_for_a_stale_lock_is_tried_again(folder, monkeypatch):
    """A killed build's compiler holds the lock at first, so the child waits for it; torch then builds nothing itself."""
    lock, tried = folder / "lock", folder / "tried"
    lock.touch()
    compiler = holder("", cwd=folder)
    script = f"""
import os, signal, sys, time
if not os.path.exists({str(tried)!r}):
    open({str(tried)!r}, "w").close()
    os.kill({compiler.pid}, signal.SIGKILL)
    while os.path.exists({str(lock)!r}): time.sleep(0.05)
    sys.exit("nothing was built")
"""
    monkeypatch.setattr(ops, "_BUILD_SCRIPT", script)
    ops.build()
    compiler.communicate()
    assert tried.exists() and not lock.exists()


def test_a_failed_build_shows_the_end_of_its_output(folder, monkeypatch):
    monkeypatch.setattr(ops, "_BUILD_SCRIPT", "print('no such header'); raise SystemExit(3)")
    with pytest.raises(ops.OpBuildError, match=r"(?s)exit code 3.*no such header"):
        ops.build()


def test_a_second_builder_waits_for_the_first_and_says_so(folder, monkeypatch):
    monkeypatch.setattr(ops, "_BUILD_SCRIPT", "")
    waited: list[float] = []
    first_is_done = threading.Event()

    def progress(op: str, seconds: float) -> None:
        waited.append(seconds)
        first_is_done.set()

    with (folder.parent / ".zerofleet-build.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=ops.build, kwargs={"progress": progress})
        second.start()
        assert first_is_done.wait(10)
        assert second.is_alive()
    second.join(30)
    assert not second.is_alive() and waited


def test_a_killed_builder_leaves_nothing_that_the_next_one_waits_for(folder):
    process = holder(
        f"import fcntl\nf = open({str(folder.parent / '.zerofleet-build.lock')!r}, 'w')\nfcntl.flock(f, 2)"
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()
    started = time.monotonic()
    with ops._exclusive(folder.parent / ".zerofleet-build.lock", "some_op", lambda op, seconds: None):
        assert time.monotonic() - started < 5


def test_without_a_compiler_the_installation_goes_on(folder, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    (folder / "lock").touch()
    assert ops.main() == 0
    said = capsys.readouterr().out
    assert "removed the stale build lock of some_op" in said
    assert "missing a C++ compiler (/nowhere/c++; package g++)" in said


@pytest.mark.parametrize(("script", "code"), [("", 0), ("raise SystemExit(1)", 1)])
def test_the_exit_code_says_whether_it_was_built(folder, monkeypatch, script, code):
    monkeypatch.setattr(ops, "_BUILD_SCRIPT", script)
    monkeypatch.setattr(ops, "missing_tools", list)
    assert ops.main() == code


def test_ninja_of_the_environment_is_found_without_activating_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert ops._path_with_ninja().split(":") == [str(Path(sys.executable).parent), "/nowhere"]


_BUILDER = """
import sys
from torch.utils.cpp_extension import load
print("building", flush=True)
load("tiny", [sys.argv[1]], is_python_module=False)
"""


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_torchs_own_builder_waits_for_a_stale_lock_and_then_has_nothing(tmp_path, monkeypatch):
    """What this module is there for, with the real thing: kill -9 during a build, and the next build."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", ops._path_with_ninja())
    source, lock = tmp_path / "tiny.cpp", tmp_path / "tiny/lock"
    source.write_text('extern "C" int one() { return 1; }\n')
    command = [sys.executable, "-c", _BUILDER, str(source)]

    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not lock.exists():
        assert first.poll() is None
    first.kill()
    first.communicate()
    assert lock.exists()

    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert second.stdout.readline() == b"building\n"
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(3)
    while not ops.clear_stale_locks():  # the killed one's compiler may still be at it
        time.sleep(0.1)
    second.communicate(timeout=60)
    assert second.returncode != 0 and not ops.is_built("tiny")  # why `build` tries again

    subprocess.run(command, check=True, timeout=60)
    assert ops.is_built("tiny")
