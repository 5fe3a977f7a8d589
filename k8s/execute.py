"""Runs a command in a container, as `kubectl exec` does, and passes its output on."""

from __future__ import annotations

import sys

from zerofleet.cluster.config import UserError
from zerofleet.k8s.api import load_client

_LOOK_S = 1.0


def execute(context: str | None, namespace: str, pod: str, container: str, command: list[str]) -> int:
    """Returns the command's exit code. Raises UserError when it may not be run there, or the pod is gone."""
    from kubernetes.client import CoreV1Api
    from kubernetes.client.exceptions import ApiException
    from kubernetes.stream import stream

    client, _ = load_client(context)  # of its own: `stream` changes a client while it begins
    try:
        session = stream(
            CoreV1Api(client).connect_get_namespaced_pod_exec,
            pod,
            namespace,
            container=container,
            command=command,
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
    except ApiException as error:
        raise UserError(
            f"nothing can be run in pod {pod} ({' '.join(str(error.reason).split())[:200]}): it needs the right to create pods/exec in namespace "
            f"{namespace}, and a pod that runs"
        ) from error
    try:
        while session.is_open():
            session.update(timeout=_LOOK_S)
            if text := session.read_stdout():
                sys.stdout.write(text)
                sys.stdout.flush()
            if text := session.read_stderr():
                sys.stderr.write(text)
        return int(session.returncode or 0)
    finally:
        session.close()
