"""Stands in for the kubelets of a few nodes: runs the pods that the scheduler has put on them, and serves their logs to the API server.

A pod that is deleted has its hook, SIGTERM, its grace period and SIGKILL; one that is evicted for pressure on its node has nothing of that. Left
out: soft evictions, restarts of containers, probes, what a node does that is not ready.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.kube.pods import RunningPod
from zerofleet.benchmarks.hosts.switch import Switch
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.list_watch import ListWatch
from zerofleet.k8s.paths import POD

_NODES = "/api/v1/nodes"


class Kubelet:
    """`with Kubelet(api, folder, claims={"zerofleet": mount}):` Pods may hold one container; it is not started again when it ends."""

    def __init__(self, api: Api, namespace: str, folder: Path, claims: dict[str, Path], num_nodes: int = 3) -> None:
        self._api, self._namespace, self._folder, self._claims = api, namespace, folder, claims
        self._subnet = f"10.{random.randrange(256)}.{random.randrange(256)}"
        self._switch, self._index = Switch(), 0
        self._server = _serve(self, folder)
        self._nodes = [f"node-{number}" for number in range(num_nodes)]
        self.running: dict[str, RunningPod] = {}
        """By uid."""
        self._ending: set[str] = set()
        self._lock, self._changed, self._closing = threading.RLock(), threading.Event(), threading.Event()
        self._watch = ListWatch(api, POD, namespace, {}, self._changed.set)
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def __enter__(self) -> Kubelet:
        for node in self._nodes:
            self._make_node(node)
        self._watch.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._changed.set()
        self._watch.close()
        self._thread.join(30)
        for pod in list(self.running.values()):
            pod.kill()
        for node in self._nodes:
            self._api.delete(f"{_NODES}/{node}")
        self._server.shutdown()
        self._switch.close()

    def pod(self, namespace: str, name: str) -> RunningPod | None:
        with self._lock:
            found = [
                pod
                for pod in self.running.values()
                if pod.name == name and pod.pod["metadata"]["namespace"] == namespace
            ]
        return found[0] if found else None

    def _make_node(self, name: str) -> None:
        capacity = {"cpu": "8", "memory": "64Gi", "pods": "20"}
        self._api.create(
            _NODES,
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            },
        )
        status = {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
        }
        self._api.patch(f"{_NODES}/{name}/status", {"status": status})
        self._api.patch(f"{_NODES}/{name}", {"spec": {"taints": None}})

    # -- pods ------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._closing.is_set():
            self._changed.wait(1.0)
            self._changed.clear()
            for pod in self._watch.objects():
                if pod["spec"].get("nodeName") in self._nodes:
                    self._look_at(pod)

    def _look_at(self, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        with self._lock:
            running = self.running.get(uid)
        if pod["metadata"].get("deletionTimestamp"):
            if uid not in self._ending:
                self._ending.add(uid)
                threading.Thread(target=self._end, args=(pod, running), daemon=True).start()
        elif running is None and pod.get("status", {}).get("phase") == "Pending":
            with self._lock:
                running = RunningPod(
                    self._api, pod, self._index, self._subnet, self._switch, self._folder, self._claims
                )
                self.running[uid], self._index = running, self._index + 1
            threading.Thread(target=self._keep, args=(running,), daemon=True).start()
        elif running is not None and running.pod["metadata"].get("annotations") != pod["metadata"].get("annotations"):
            running.refresh(pod)

    def _keep(self, pod: RunningPod) -> None:
        while not self._closing.is_set():
            try:
                pod.start()
                break
            except ApiError as error:  # such as a ConfigMap that is not there yet
                if error.status != 404:
                    raise
                time.sleep(0.5)
        self._say(pod, "Running", {"running": {"startedAt": _now()}})
        code = pod.wait(None)
        if not self._closing.is_set():
            ended = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
            evicted = {"reason": "Evicted", "message": pod.evicted} if pod.evicted else {}
            self._say(pod, "Failed" if code else "Succeeded", ended, **evicted)

    def evict(self, name: str, message: str) -> None:
        """As a kubelet whose node has less of something left than its hard threshold: at once, without a hook, whatever budgets say."""
        pod = self.pod(self._namespace, name)
        assert pod is not None, name
        pod.evicted = message
        pod.kill()

    def _say(self, pod: RunningPod, phase: str, state: dict[str, Any], **more: str) -> None:
        ready = phase == "Running"
        container = {
            "name": pod.container["name"],
            "image": pod.container["image"],
            "imageID": "",
            "ready": ready,
            "restartCount": 0,
            "state": state,
        }
        path = POD.path(self._namespace, pod.name, "status")
        try:
            there = self._api.get(path)["status"].get("conditions", [])
            conditions = [condition for condition in there if condition["type"] != "Ready"]
            status = {
                "phase": phase,
                "podIP": pod.address,
                "hostIP": "127.0.0.1",
                "containerStatuses": [container],
                "conditions": [*conditions, {"type": "Ready", "status": str(ready)}],
                **more,
            }
            self._api.patch(path, {"status": status})
        except ApiError as error:
            if error.status not in (404, 409, 422):  # it was deleted meanwhile
                raise

    def _end(self, pod: dict[str, Any], running: RunningPod | None) -> None:
        metadata = pod["metadata"]
        if running is not None:
            running.end(float(metadata.get("deletionGracePeriodSeconds") or 0))
        self._api.delete(
            POD.path(self._namespace, metadata["name"]),
            {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}},
        )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _serve(kubelet: Kubelet, folder: Path) -> ThreadingHTTPServer:
    """HTTPS, as the API server wants it; it does not check the certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    key, certificate = folder / "kubelet.key", folder / "kubelet.crt"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=kubelet",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run(make, check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            _, what, namespace, name, *_ = url.path.split("/")
            pod = kubelet.pod(namespace, name)
            if what == "exec" and pod is not None:
                self._execute(pod, parse_qs(url.query)["command"])
                return
            if what != "containerLogs" or pod is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            tail = int(query["tailLines"]) if "tailLines" in query else None
            for stamp, line in pod.log.read(query.get("follow") == "true", query.get("sinceTime", ""), tail):
                text = f"{stamp} {line}\n" if query.get("timestamps") == "true" else f"{line}\n"
                self._chunk(text.encode())
            self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _execute(self, pod: RunningPod, command: list[str]) -> None:
            """Output only, over a WebSocket (RFC 6455) with Kubernetes' v4 channels: 1 stdout, 2 stderr, 3 how it ended."""
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
            self.end_headers()
            process = pod.enter(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            while data := process.stdout.read1(4096):
                self._frame(0x82, b"\x01" + data)
            code = process.wait()
            causes = {
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
            }
            ended = {"status": "Failure", **causes} if code else {"status": "Success"}
            self._frame(0x82, b"\x03" + json.dumps(ended).encode())
            self._frame(0x88, b"\x03\xe8")
            self.close_connection = True

        def _frame(self, head: int, payload: bytes) -> None:
            size = len(payload)
            length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
            self.wfile.write(bytes([head]) + length + payload)
            self.wfile.flush()

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # whoever read has gone
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, name="kubelet server", daemon=True).start()
    return server
