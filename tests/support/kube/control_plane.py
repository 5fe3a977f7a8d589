"""The real control plane in ../shared/kube, started for a test session."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

SHARED = Path(__file__).parents[4] / "shared"
SCRIPT = SHARED / "kube/control-plane"
CRDS = (
    "kuberay/ray.io_rayjobs.yaml",
    "kuberay/ray.io_rayclusters.yaml",
    "kueue/kueue.x-k8s.io_workloads.yaml",
    "volcano/scheduling.volcano.sh_podgroups.yaml",
)
_NEEDED = ("etcd", "kubectl", "openssl", "xz")


def why_not() -> str:
    """Why there can be no control plane here; empty when there can."""
    if not SCRIPT.exists():
        return f"no control plane in {SHARED}/kube"
    missing = [tool for tool in _NEEDED if shutil.which(tool) is None]
    return (
        f"the control plane needs {', '.join(missing)} (Debian: etcd-server, kubernetes-client, openssl, xz-utils)"
        if missing
        else ""
    )


class ControlPlane:
    """`kubeconfig` is that of its administrator."""

    def __init__(self, folder: Path, more_crds: Sequence[str] = ()) -> None:
        """Skips the test when there is none. `folder` must not exist. `more_crds`: besides CRDS, paths in ../shared/crds."""
        if reason := why_not():
            pytest.skip(reason)
        self.folder = folder
        self.port = 20000 + 10 * random.randrange(1000)
        self.kubeconfig = folder / "kubeconfig"
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            done = subprocess.run(
                [SCRIPT, "start", folder, str(self.port)], capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            self._load_crds((*CRDS, *more_crds))
            undo.pop_all()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _load_crds(self, names: Sequence[str]) -> None:
        adapt = [sys.executable, SHARED / "kube/crd_for_120.py", *(SHARED / "crds" / name for name in names)]
        adapted = subprocess.run(adapt, capture_output=True, text=True, check=True, timeout=120).stdout
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", "create", "--validate=false", "-f", "-"]
        # What it creates it cannot always read back at once: whether all is there is asked below.
        subprocess.run(command, input=adapted, capture_output=True, text=True, timeout=60)
        deadline = time.monotonic() + 60
        for crd in yaml.safe_load_all(adapted):
            (version,) = [each["name"] for each in crd["spec"]["versions"] if each["storage"]]
            path = f"{crd['spec']['group']}/{version}/{crd['spec']['names']['plural']}"
            while subprocess.run([*command[:2], "get", "--raw", f"/apis/{path}"], capture_output=True).returncode:
                assert time.monotonic() < deadline, f"{path} is not served"
                time.sleep(0.3)

    def restart_api_server(self, down_s: float) -> None:
        """Kills it, and starts it anew with the same command after `down_s` seconds. etcd keeps everything."""
        file = self.folder / "apiserver.pid"
        pid = int(file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.05)
        time.sleep(down_s)
        log = self.folder / "apiserver-again.log"
        again = subprocess.run(
            f"setsid {shlex.join(command)} >{shlex.quote(str(log))} 2>&1 </dev/null & echo $!",
            shell=True,
            capture_output=True,
            text=True,
        )
        file.write_text(again.stdout.strip())

    def stop(self) -> None:
        subprocess.run([SCRIPT, "stop", self.folder], timeout=30)
