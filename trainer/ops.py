"""DeepSpeed's C++ ops: built during installation, so that no run has to wait for a compiler.

torch builds an extension under a lock *file*. A kill during the build leaves it behind, and every later start waits for
it silently, for ever. A lock is stale when no process has it open and none works in its folder; such locks are cleared.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from zerofleet.trainer.config import TrainConfig

COMMUNICATION_OP = "deepspeed_shm_comm"
"""All-reduce through shared memory, used between the ranks of one CPU host."""

_OFFLOAD_OP = "cpu_adam"
"""The optimizer on the CPU, where zero_optimization.offload_optimizer asks for it."""

_BUILDERS = {COMMUNICATION_OP: "ShareMemCommBuilder", _OFFLOAD_OP: "CPUAdamBuilder"}
"""DeepSpeed's builder class of each op that zerofleet uses."""

_NETWORK_FILE_SYSTEMS = ("nfs", "lustre", "gpfs", "ceph", "beegfs", "cifs", "smb", "fuse.", "9p", "virtiofs")
_NETWORK_GRACE_S = 1800.0
"""On a network file system the builder may live on another host: a lock is stale only when it is older than this."""

_LINE_INTERVAL_S = 15.0
"""Seconds between two lines of progress where the output is no terminal."""

_BUILD_SCRIPT = """
import sys
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder(sys.argv[1])
if builder is not None and builder.is_compatible():
    builder.load()
"""

Progress = Callable[[str, float], None]
"""Called about once a second while an op is built: (op, seconds so far)."""


class OpBuildError(Exception):
    """The compiler failed; the message ends with its last lines."""


@dataclass(frozen=True)
class StaleLock:
    """A lock file that nobody holds."""

    path: Path
    age_s: float

    @property
    def op(self) -> str:
        return self.path.parent.name


def extensions_root() -> Path:
    """Where extensions lie: `TORCH_EXTENSIONS_DIR`, else the virtual environment that they were built for, by the path that it is
    called by, else torch's own folder in the user's cache.

    What is built holds the paths of the environment's headers. Two environments that share a folder, and two paths to one
    environment (a link, a second mount), would find each other's ops outdated: ranks would compile, in turn.
    """
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    if _in_own_venv():
        return Path(sys.prefix) / "torch_extensions" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch_extensions"


def missing_tools() -> list[str]:
    """What a build needs and this machine lacks, with its Debian package; empty when ops can be built."""
    compiler, header = os.environ.get("CXX") or "c++", Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = []
    if shutil.which(compiler) is None:
        missing.append(f"a C++ compiler ({compiler}; package g++)")
    if not header.exists():
        missing.append(f"Python's headers ({header}; package python3-dev)")
    if shutil.which("ninja", path=_path_with_ninja()) is None:
        missing.append("ninja (package ninja-build)")
    return missing


def make_loadable() -> None:
    """To be called before `deepspeed.init_distributed`: lets torch find ninja and the built ops.

    A rank goes without an op that is not built. DeepSpeed would compile it there, silently, for minutes, and raise where
    that is not possible.
    """
    os.environ.update(_build_environment())
    if not is_built(COMMUNICATION_OP):
        import deepspeed

        deepspeed.ops.__compatible_ops__[COMMUNICATION_OP] = False


def _in_own_venv() -> bool:
    return sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK)


def _build_environment() -> dict[str, str]:
    """What torch's builder reads: the folder of the ops, and a PATH that has ninja."""
    own = {"TORCH_EXTENSIONS_DIR": str(extensions_root())} if _in_own_venv() else {}
    return {"PATH": _path_with_ninja(), **own}


def _path_with_ninja() -> str:
    """PATH with the interpreter's own folder first, where pip puts ninja: it is not there when the venv was not activated, and a ninja of the
    system that took turns with it would find that nothing is built, whenever its turn comes: each version drops the other's log."""
    own, known = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([own, *(folder for folder in known if folder != own)])


def is_built(op: str) -> bool:
    """Whether a finished library of the op lies in the extension folder."""
    return any(path.exists() for folder in _op_folders(op) for path in folder.glob(f"{op}*.so"))


def needed_by(config: TrainConfig) -> list[str]:
    """Ops that this job cannot do without and that are not built yet."""
    section = config.deepspeed.get("zero_optimization") or {}
    device = (section.get("offload_optimizer") or {}).get("device", "none")
    return [_OFFLOAD_OP] if device != "none" and not is_built(_OFFLOAD_OP) else []


def stale_locks() -> list[StaleLock]:
    """Lock files of torch extensions that no process holds any more."""
    stale = []
    for folder in _op_folders("*"):
        lock = folder / "lock"
        with contextlib.suppress(FileNotFoundError):  # released while we look
            age_s = time.time() - lock.stat().st_mtime
            if not _is_held(lock):
                stale.append(StaleLock(lock, age_s))
    return stale


def clear_stale_locks() -> list[StaleLock]:
    """Removes them, so that the next start does not wait for ever. Returns what was removed."""
    cleared = stale_locks()
    for lock in cleared:
        lock.path.unlink(missing_ok=True)
    return cleared


def build(ops: Sequence[str] = (COMMUNICATION_OP,), progress: Progress = lambda op, seconds: None) -> None:
    """Builds what is missing of `ops`; an op that this machine does not need is skipped. One builder at a time.

    Raises OpBuildError when the compiler fails. Call it only where nothing is `missing_tools()`.
    """
    root = extensions_root()
    root.mkdir(parents=True, exist_ok=True)
    for op in ops:
        with _exclusive(root / ".zerofleet-build.lock", op, progress):
            _build_one(op, progress)


def _build_one(op: str, progress: Progress) -> None:
    """Builds, and once more after each stale lock that was in the way: whoever waited for it takes the op for built."""
    while True:
        clear_stale_locks()
        with tempfile.TemporaryFile() as output:
            returncode, num_cleared = _run_builder(op, output, progress)
            if returncode == 0:
                return
            if num_cleared == 0:
                output.seek(0)
                tail = "\n".join(output.read().decode(errors="replace").splitlines()[-15:])
                raise OpBuildError(f"building {op} failed with exit code {returncode}. The end of its output:\n{tail}")


def _run_builder(op: str, output: IO[bytes], progress: Progress) -> tuple[int, int]:
    """DeepSpeed's builder in a child process, since loading an op has side effects.

    Returns its exit code and the number of stale locks that were cleared meanwhile (a compiler that had outlived a
    killed build may have held one at first).
    """
    started, num_cleared = time.monotonic(), 0
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _BUILD_SCRIPT, _BUILDERS[op]],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **_build_environment()},
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(1.0), num_cleared
            num_cleared += len(clear_stale_locks())
            progress(op, time.monotonic() - started)
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def _op_folders(op: str) -> Iterator[Path]:
    """Folders of an op (a glob). In the user's cache torch adds one level, such as py311_cpu."""
    is_flat = "TORCH_EXTENSIONS_DIR" in os.environ or _in_own_venv()
    pattern = op if is_flat else f"*/{op}"
    return (folder for folder in extensions_root().glob(pattern) if folder.is_dir())


def _is_held(lock: Path) -> bool:
    """Whether a process has the lock open, or works in its folder (a compiler that outlived its parent)."""
    if _is_on_network(lock) and time.time() - lock.stat().st_mtime < _NETWORK_GRACE_S:
        return True
    return any(_process_holds(pid, lock) for pid in psutil.pids())


def _process_holds(pid: int, lock: Path) -> bool:
    process, links = Path(f"/proc/{pid}"), []
    with contextlib.suppress(OSError):  # the process ended, or is another user's
        links = [process / "cwd", *(process / "fd").iterdir()]
    return any(_is_same(link, lock) or _is_same(link, lock.parent) for link in links)


def _is_same(link: Path, target: Path) -> bool:
    try:
        return link.samefile(target)
    except OSError:  # closed meanwhile
        return False


def _is_on_network(path: Path) -> bool:
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: -len(mount.mountpoint))
    real = path.resolve()
    kind = next((mount.fstype for mount in mounts if real.is_relative_to(mount.mountpoint)), "")
    return kind.startswith(_NETWORK_FILE_SYSTEMS)


@contextlib.contextmanager
def _exclusive(path: Path, op: str, progress: Progress) -> Iterator[None]:
    """Our own lock around a build: the kernel drops it when its process dies, however it dies."""
    started = time.monotonic()
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(op, time.monotonic() - started)
                time.sleep(1.0)
        yield


def main() -> int:
    """`python -m zerofleet.trainer.ops`: builds the ops of this machine and says how long it takes.

    Exit codes: 0 built or not needed, 1 the compiler failed.
    """
    on_terminal = sys.stdout.isatty()
    said = [0.0]

    def show(op: str, seconds: float) -> None:
        line = f"building {op}: {seconds:.0f} s (once, about 100 s)"
        if on_terminal:
            sys.stdout.write(f"\r{line}")
        elif seconds - said[0] >= _LINE_INTERVAL_S:
            said[0] = seconds
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    for lock in clear_stale_locks():
        sys.stdout.write(
            f"removed the stale build lock of {lock.op}, {lock.age_s:.0f} s old: a build was killed there\n"
        )
    if missing := missing_tools():
        sys.stdout.write(f"DeepSpeed's ops are not built, ranks use gloo alone: missing {' and '.join(missing)}\n")
        return 0
    started = time.monotonic()
    try:
        build(progress=show)
    except OpBuildError as error:
        sys.stderr.write(f"\n{error}\nranks use gloo alone until it is built: python -m zerofleet.trainer.ops\n")
        return 1
    sys.stdout.write(
        f"{chr(10) if on_terminal else ''}DeepSpeed's ops are ready ({time.monotonic() - started:.0f} s)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
