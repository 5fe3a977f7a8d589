"""Starting a zygote: by its agent, or before there is an agent, so that its imports are done while Ray starts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ZygoteSpec:
    """What a zygote is to import, for which device, and where its output goes."""

    preload: str
    model_type: str
    accelerator: str
    log: str


@dataclass(frozen=True)
class ZygoteProcess:
    """A running zygote and the agent's end of its socket."""

    pid: int | None
    """None while one that was started early has not said it: then it has forked nothing."""
    link: socket.socket
    child: subprocess.Popen[bytes] | None
    """None when another process is its parent."""

    def kill(self) -> None:
        """To be called only while `link` is open: then the number is still its own."""
        if self.pid is None:
            self.link.shutdown(socket.SHUT_RDWR)  # when it comes to serve, it ends
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int | None:
        """Its exit code (negative: a signal), or None when only its parent knows."""
        return None if self.child is None else self.child.wait()


def spawn(spec: ZygoteSpec) -> ZygoteProcess:
    """A zygote of this process; it dies with the thread that calls this."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = _popen(spec, str(theirs.fileno()), [theirs.fileno()])
    return ZygoteProcess(child.pid, ours, child)


def spawn_early(spec: ZygoteSpec, path: str) -> None:
    """A zygote of which agents will adopt forks by `path`. It dies with the thread that calls this, and the forks with it."""
    _popen(spec, path, [])


def adopt(path: str) -> ZygoteProcess | None:
    """A fork of the zygote that waits there for agents, or will when its imports are done; None when there is none (any more)."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect(path)
    except OSError:
        link.close()
        return None
    return ZygoteProcess(None, link, None)


def _popen(spec: ZygoteSpec, address: str, descriptors: list[int]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "zerofleet.cluster.zygote"]
    Path(spec.log).parent.mkdir(parents=True, exist_ok=True)
    with Path(spec.log).open("ab") as log:
        return subprocess.Popen(
            [*command, address, spec.preload, spec.model_type, str(os.getpid())],
            env=zygote_environment(spec.accelerator),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=descriptors,
        )


def zygote_environment(accelerator: str) -> dict[str, str]:
    """One thread, CUDA untouched, and none of Ray's variables (its token among them)."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {
        **inherited,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": accelerator,
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
