"""`python -m zerofleet.benchmarks.hosts.slow_link NEAR FAR DELAY_MS RATE_MBIT`: carries frames between two network devices, late and slowly.

What `tc netem` does, on kernels without it. Ends when its stdin closes. Says "up" when it carries frames.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

_ALL_PROTOCOLS = 3
_SOL_PACKET, _IGNORE_OUTGOING, _OFFLOAD_HEADER = 263, 23, 15
_MOST_FRAME_BYTES = 80_000
"""Frames are as large as the kernel's segmentation offload makes them; they pass with its header, so that it can go on."""
_MOST_QUEUE_S = 0.2
"""A frame that would wait longer for its turn is dropped, as by a router."""


class Direction:
    """Frames from one device to the other: each leaves when those before it have, and arrives `delay_s` later."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay_s: float, bytes_per_s: float) -> None:
        self.source, self._sink = source, sink
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s
        self._idle_at = 0.0
        self._frames: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        frame = self.source.recv(_MOST_FRAME_BYTES)
        begins = max(now, self._idle_at)
        if begins - now <= _MOST_QUEUE_S:
            self._idle_at = begins + len(frame) / self._bytes_per_s
            self._frames.append((self._idle_at + self._delay_s, frame))

    def deliver(self, now: float) -> None:
        while self._frames and self._frames[0][0] <= now:
            self._sink.send(self._frames.popleft()[1])

    @property
    def due(self) -> float:
        return self._frames[0][0] if self._frames else float("inf")


def main() -> None:
    near, far = _open(sys.argv[1]), _open(sys.argv[2])
    delay_s, bytes_per_s = float(sys.argv[3]) / 1e3, float(sys.argv[4]) * 1e6 / 8
    directions = [Direction(near, far, delay_s, bytes_per_s), Direction(far, near, delay_s, bytes_per_s)]
    print("up", flush=True)
    while True:
        wait_s = min(direction.due for direction in directions) - time.monotonic()
        readable, _, _ = select.select([sys.stdin, near, far], [], [], min(max(wait_s, 0.0), 60.0))
        if sys.stdin in readable:
            return
        now = time.monotonic()
        for direction in directions:
            if direction.source in readable:
                direction.take(now)
            direction.deliver(now)


def _open(device: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(_SOL_PACKET, _OFFLOAD_HEADER, 1)
    opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    opened.bind((device, _ALL_PROTOCOLS))
    return opened


if __name__ == "__main__":
    main()
