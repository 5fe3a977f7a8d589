"""Faults of a whole node, brought about by a rank that runs on it: it is killed, cut off from the others, or its network is made slow.

The network by the token bucket filter of Linux (tc-tbf(8)) on every device but the loopback: what the node sends is dropped, or
let through slowly. So connections hang, as behind a broken switch, and nobody is told. Traffic that passes the kernel by (InfiniBand)
is not reached.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

import psutil

SLOW_MBIT = 8
"""What a slow node sends per second: a hundredth of an ordinary network."""
_CUT = "rate 8bit burst 1b limit 1b"
_SLOW = f"rate {SLOW_MBIT}mbit burst 32k latency 400ms"


def strike_node(kind: str, for_s: float | None) -> None:
    """Strikes the node that this process runs on; does not return from `kill_node`. What lasts is over after `for_s` seconds, whatever has
    become of this process by then. Raises LookupError where there is no Ray node, CalledProcessError where the network cannot
    be touched."""
    if kind == "kill_node":
        _kill_node()
    filters = _CUT if kind == "cut_node" else _SLOW
    devices = [name for _, name in socket.if_nameindex() if name != "lo"]
    for device in devices:
        command = ["tc", "qdisc", "replace", "dev", device, "root", "tbf", *filters.split()]
        subprocess.run(command, check=True, capture_output=True)
    if for_s is not None:
        lift = "; ".join(f"tc qdisc del dev {device} root" for device in devices)
        subprocess.Popen(
            ["sh", "-c", f"sleep {for_s:g}; {lift}"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _kill_node() -> None:
    """SIGKILL of the raylet above this process and of all that hangs on it, this process last."""
    raylets = [process for process in psutil.Process().parents() if process.name() == "raylet"]
    if not raylets:
        raise LookupError("kill_node: no raylet is above this rank, so there is no node to kill")
    for process in [raylets[0], *raylets[0].children(recursive=True)]:
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with another
                process.kill()
    os.kill(os.getpid(), signal.SIGKILL)
