"""All of it together: a namespace with a kubelet and an operator, a proxy in front of the API server, and the command line as on a laptop."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube.control_plane import ControlPlane
from tests.support.kube.kubelet import Kubelet
from tests.support.kube.operator import Operator
from tests.support.kube.proxy import Proxy
from tests.support.ranks import job
from zerofleet.k8s.api import Api
from zerofleet.k8s.paths import CLAIM, POD
from zerofleet.k8s.permissions import needed, role_rules
from zerofleet.launch.workload import load_profile

ROOT = Path(__file__).parents[3]


class Cluster:
    """`with Cluster(control_plane, folder) as cluster: cluster("submit", ...)`"""

    def __init__(self, control_plane: ControlPlane, folder: Path, num_nodes: int = 3) -> None:
        self.folder, self.mount = folder, folder / "claim"
        self.mount.mkdir(parents=True)
        self.namespace = f"training-{secrets.token_hex(3)}"
        control_plane.kubectl("create", "namespace", self.namespace)
        self.control_plane = control_plane
        os.environ["KUBECONFIG"] = str(control_plane.kubeconfig)
        self.api = Api("admin")
        self.proxy = Proxy(control_plane.port)
        self.kubelet = Kubelet(self.api, self.namespace, folder / "kubelet", {"zerofleet": self.mount}, num_nodes)
        self.operator = Operator(self.api, self.namespace, self.kubelet)
        self.kubeconfig = folder / "kubeconfig"
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Cluster:
        self.proxy.__enter__()
        self._allow_alice()
        self.log_in("alice")
        self._bind_claim()
        self.kubelet.__enter__()
        self.operator.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        self.operator.__exit__()
        self.kubelet.__exit__()
        # Nobody is left to say that they have ended, and nodes of another test have the same names.
        self.control_plane.kubectl(
            "delete", "pods", "--all", f"--namespace={self.namespace}", "--force", "--grace-period=0"
        )
        self.proxy.__exit__()

    def _bind_claim(self) -> None:
        """As a volume controller would have left it; the scheduler wants to see it."""
        volume, size = f"volume-{self.namespace}", {"storage": "1Gi"}
        spec = {
            "accessModes": ["ReadWriteMany"],
            "capacity": size,
            "hostPath": {"path": str(self.mount)},
            "storageClassName": "",
        }
        self.api.create(
            "/api/v1/persistentvolumes",
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec},
        )
        metadata = {"name": "zerofleet", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}}
        asked = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": size},
            "volumeName": volume,
            "storageClassName": "",
        }
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": asked}
        self.api.create(CLAIM.path(self.namespace), claim)
        self.api.patch(CLAIM.path(self.namespace, "zerofleet", "status"), {"status": {"phase": "Bound"}})

    def _allow_alice(self) -> None:
        """What the documentation asks the platform team for, and no more."""
        profile = load_profile(self.profile())
        rules = role_rules(needed(profile))
        rules.append({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]})  # for `logs --rank`
        group, metadata = "rbac.authorization.k8s.io", {"name": "submitter", "namespace": self.namespace}
        role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
        subjects = [{"kind": "User", "name": "alice", "apiGroup": group}]
        reference = {"kind": "Role", "name": "submitter", "apiGroup": group}
        binding = {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "subjects": subjects,
            "roleRef": reference,
        }
        self.control_plane.kubectl("create", "-f", "-", text=yaml.safe_dump_all([role, binding]))

    def log_in(self, user: str) -> str:
        """From now on the laptop's kubeconfig holds this user's token, which it returns."""
        return self.proxy.kubeconfig(self.kubeconfig, self.control_plane.kubeconfig, self.namespace, user)

    def recipe(self, corpus: Path, nodes: int = 2, **changes: Any) -> Path:
        """A tiny job with one rank on each of so many pods; the corpus lies on the claim."""
        there = self.mount / "corpus"
        if not there.exists():
            shutil.copytree(corpus, there)
        sections = job(self.mount, corpus, **changes).model_dump(mode="json", exclude_unset=True)
        sections["model"]["config"]["vocab_size"] = 512
        sections["run"] = {}
        sections["checkpoint"] = {"interval_steps": 0, "export": False}
        sections["data"] |= {"files": [str(there / "*.txt")], "cache": None}
        sections["cluster"] = {"nodes": nodes, "ranks_per_node": 1, "cpus_per_rank": 0.5, "stop_timeout_s": 60}
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    def profile(self, **changes: Any) -> Path:
        """A platform whose claim is a folder of this machine."""
        mapping = yaml.safe_load((ROOT / "k8s/profiles/cpu.yaml").read_text())
        mapping |= {"namespace": self.namespace, "security": {}}
        mapping["storage"] |= {"mount_path": str(self.mount)}
        mapping["limits"] = {"object_store_gib": 0.1}
        mapping["lifecycle"] = {"ttl_s": 20, "retries": 0}
        for section, values in changes.items():
            mapping[section] = {**mapping.get(section, {}), **values}
        path = self.folder / "platform.yaml"
        path.write_text(yaml.safe_dump(mapping))
        return path

    @property
    def environment(self) -> dict[str, str]:
        hidden = {"RAY_ADDRESS", "ZEROFLEET_STORAGE"}
        return {**{k: v for k, v in os.environ.items() if k not in hidden}, "KUBECONFIG": str(self.kubeconfig)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command line, its output to a pipe, stdout and stderr together."""
        command = [sys.executable, "-u", "-m", "zerofleet.launch", *arguments]
        started = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._started.append(started)
        return started

    def __call__(
        self, *arguments: str, timeout_s: float = 60, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zerofleet.launch", *arguments]
        environment = {**self.environment, **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout_s
        )

    def drain(self, node: str) -> None:
        """`kubectl drain`, and before it the condition that the API server sets itself with an eviction, since 1.26. Returns when the pods are gone."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        for pod in self.api.get(POD.path(self.namespace), {"fieldSelector": f"spec.nodeName={node}"})["items"]:
            conditions = [*pod["status"]["conditions"], condition]
            path = POD.path(self.namespace, pod["metadata"]["name"], "status")
            self.api.patch(path, {"status": {"conditions": conditions}})
        self.control_plane.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")

    def objects(self) -> dict[str, list[str]]:
        """Names of what is left of runs in the namespace, by kind."""
        kinds = (
            "rayjobs.ray.io",
            "rayclusters.ray.io",
            "pods",
            "jobs",
            "configmaps",
            "secrets",
            "poddisruptionbudgets",
        )
        found = {
            kind: self.control_plane.kubectl("-n", self.namespace, "get", kind, "-o", "name").split() for kind in kinds
        }
        own = ("configmap/kube-root-ca.crt", "secret/default-token")
        return {
            kind: left
            for kind, names in found.items()
            if (left := [name for name in names if not name.startswith(own)])
        }
