"""A pod as processes of this machine: the kubelet's stand-in runs it in namespaces of its own, and keeps its log."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.support.kube.sandbox import PodSpec
from zerofleet.benchmarks.hosts.raylet import host_address
from zerofleet.benchmarks.hosts.switch import PYTHON_PATH, ROOT, Switch
from zerofleet.k8s.api import Api
from zerofleet.k8s.paths import CONFIG_MAP, Kind

SECRET = Kind("", "v1", "secrets", "Secret")
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class Log:
    """Lines with the times at which they came."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._changed, self._is_over = threading.Condition(), False

    def write(self, line: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
        with self._changed:
            self._lines.append((stamp, line))
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def read(self, follow: bool, since: str = "", tail: int | None = None) -> Iterator[tuple[str, str]]:
        position = 0 if tail is None else max(0, len(self._lines) - tail)
        while True:
            with self._changed:
                while follow and not self._is_over and position >= len(self._lines):
                    self._changed.wait()
                new = self._lines[position:]
            yield from (entry for entry in new if entry[0][:19] >= since[:19])
            position += len(new)
            if not new and (self._is_over or not follow):
                return

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self._lines)


class RunningPod:
    """One container of one pod."""

    def __init__(
        self,
        api: Api,
        pod: dict[str, Any],
        index: int,
        subnet: str,
        switch: Switch,
        folder: Path,
        claims: dict[str, Path],
    ) -> None:
        """`claims`: the folder that each PersistentVolumeClaim stands for."""
        self.pod, self.index, self.log = pod, index, Log()
        self.address = host_address(subnet, index)
        self._api, self._folder, self._claims, self._subnet, self._switch = api, folder, claims, subnet, switch
        self.container = pod["spec"]["containers"][0]
        self._environment = self._resolved()
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.evicted = ""
        """Why its kubelet has evicted it."""

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    def start(self) -> None:
        """Raises ApiError when something that it needs is not there."""
        volumes = {volume["name"]: volume for volume in self.pod["spec"].get("volumes", [])}
        mounts, shm_bytes = [], 64 << 20
        for mount in self.container.get("volumeMounts", []):
            volume = volumes[mount["name"]]
            if "emptyDir" in volume:
                size = volume["emptyDir"]["sizeLimit"]
                shm_bytes = int(size[:-2]) * _UNITS[size[-2:]]
            else:
                mounts.append((str(self._source(volume)), mount["mountPath"]))
        spec = PodSpec(
            self.name,
            self.index,
            self._subnet,
            self._shared(),
            tuple(mounts),
            shm_bytes,
            tuple(self._command()),
            self._environment,
        )
        self._process = subprocess.Popen(
            [
                "unshare",
                *NAMESPACES,
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
                sys.executable,
                "-P",
                "-m",
                "tests.support.kube.sandbox",
                spec.to_json(),
            ],
            env={**os.environ, "PYTHONPATH": PYTHON_PATH},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=self._keep_log, daemon=True).start()
        assert self._process.stdout.readline() == b"ready\n", self.log.text
        (first,) = psutil.Process(self._process.pid).children()
        self.pid = first.pid
        self._switch.plug_in(self.index, first.pid)
        self._tell("plugged in")

    def _shared(self) -> tuple[str, ...]:
        modules = [Path(folder).absolute() for folder in PYTHON_PATH.split(os.pathsep)]
        folders = {
            str(folder.resolve()) for folder in (self._folder, ROOT, *modules, Path(sys.prefix), *self._claims.values())
        }
        folders |= {str(folder) for folder in modules}
        return tuple(sorted(folder for folder in folders if folder.startswith("/tmp/")))

    def _command(self) -> list[str]:
        return [*self.container["command"], *self.container.get("args", [])]

    def _resolved(self) -> dict[str, str]:
        """What a container has of its image's environment here, and the rendered variables."""
        found = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(Path.home()),
        }
        found |= {
            key: os.environ[key]
            for key in ("OMP_NUM_THREADS", "DS_ACCELERATOR", "TOKENIZERS_PARALLELISM")
            if key in os.environ
        }
        found |= {"PYTHONPATH": PYTHON_PATH, "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
        for entry in self.container.get("env", []):
            if "value" in entry:
                found[entry["name"]] = entry["value"]
            elif reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                secret = self._api.get(SECRET.path(self.pod["metadata"]["namespace"], reference["name"]))
                found[entry["name"]] = base64.b64decode(secret["data"][reference["key"]]).decode()
            elif field := entry.get("valueFrom", {}).get("fieldRef"):
                section, name = field["fieldPath"].split(".")
                found[entry["name"]] = self.pod[section][name]
        return found

    def _source(self, volume: dict[str, Any]) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            return self._claims[claim["claimName"]]
        folder = self._folder / self.pod["metadata"]["uid"] / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        self._fill(folder, volume["configMap"]["name"])
        return folder

    def refresh(self, pod: dict[str, Any]) -> None:
        """The pod has changed: its ConfigMaps are looked at again."""
        self.pod = pod
        for volume in pod["spec"].get("volumes", []):
            if "configMap" in volume:
                self._source(volume)

    def _fill(self, folder: Path, name: str) -> None:
        data = self._api.get(CONFIG_MAP.path(self.pod["metadata"]["namespace"], name)).get("data") or {}
        for key, value in data.items():
            new = folder / f"..{key}"
            new.write_text(value)
            new.rename(folder / key)

    def _keep_log(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        for line in self._process.stderr:
            self.log.write(line.decode(errors="replace").rstrip("\n"))
        self.log.close()

    def _tell(self, word: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended

    def wait(self, timeout_s: float | None) -> int | None:
        """The container's exit code; none when it still runs."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def enter(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Runs something in the pod, as its container would."""
        inside = ["nsenter", f"--target={self.pid}", *NAMESPACES, "--", *command]
        return subprocess.Popen(inside, env=self._environment, stdin=subprocess.DEVNULL, **options)

    def end(self, grace_s: float) -> None:
        """As the kubelet: the hook, SIGTERM, and SIGKILL when the grace period is over."""
        ends = time.monotonic() + grace_s
        hook = self.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook and self.wait(0) is None:
            process = self.enter(hook)
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
        self._tell("term")
        # A hook that took all of it leaves two seconds, as a kubelet does.
        if self.wait(max(2.0, ends - time.monotonic())) is None:
            self.kill()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            for inner in psutil.Process(self._process.pid).children():
                inner.kill()
            self._process.wait()
