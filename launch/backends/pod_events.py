"""Reads a run's events out of its driver's log, as the submitter's pod repeats it: in a thread, over restarts of that pod."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque

import xxhash

from zerofleet.k8s.api import Api, ApiError, Pauses
from zerofleet.k8s.pod_log import PodLog
from zerofleet.k8s.pods import SUBMITTER_CONTAINER
from zerofleet.trainer.events import Event

_SIGN = '{"kind":"'
_TAIL_LINES = 20


def parse_event(line: str) -> Event | None:
    """None for a line that is no event."""
    if not line.startswith(_SIGN):
        return None
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None


class PodEvents:
    """`follow` names the pod whose log is the newest; `take` gives what was read since."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._found: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._seen: set[int] = set()
        """Digests: another submitter's pod repeats the job's log from its beginning."""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._pod, self._closing = "", threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, pod: str) -> None:
        """Begins to read that pod's log; of no other any more."""
        if not pod or pod == self._pod:
            return
        self.close()
        self._pod, self._closing = pod, threading.Event()
        self._thread = threading.Thread(target=self._read, args=(pod, self._closing), name="pod log", daemon=True)
        self._thread.start()

    def take(self) -> list[Event]:
        """Events since the last call, in the log's order."""
        events = []
        while not self._found.empty():
            events.append(self._found.get())
        return events

    @property
    def tail(self) -> str:
        """The last lines of the log that are no events."""
        return "\n".join(self._tail)

    def wait_for_end(self, timeout_s: float) -> None:
        """Returns when all of a log that has ended was read."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def read_again(self, timeout_s: float) -> None:
        """All of the log as it is now, once, for whoever misses its end: following it may have failed. Tried for `timeout_s` seconds."""
        self.close()
        pauses, deadline = Pauses(), time.monotonic() + timeout_s
        while self._pod:
            try:
                lines = PodLog(self._api, self._namespace, self._pod, SUBMITTER_CONTAINER).read(follow=False)
                for number, line in enumerate(lines):
                    if number == 0:
                        self._tail.clear()
                    self._keep(line)
                return
            except ApiError as error:
                pause_s = pauses.next(error)
                if not error.may_pass or time.monotonic() + pause_s > deadline:
                    self._tail.append(f"the log of pod {self._pod} cannot be read: {error}")
                    return
                time.sleep(pause_s)

    def close(self) -> None:
        self._closing.set()

    def _read(self, pod: str, closing: threading.Event) -> None:
        try:
            for line in PodLog(self._api, self._namespace, pod, SUBMITTER_CONTAINER).follow(closing):
                self._keep(line)
        except ApiError as error:
            self._tail.append(f"the log of pod {pod} cannot be read: {error}")

    def _keep(self, line: str) -> None:
        event = parse_event(line)
        if event is None:
            if line.strip():
                self._tail.append(line)
            return
        digest = xxhash.xxh3_64_intdigest(line.encode())
        with self._lock:  # a thread that is told to end may still be reading
            if digest not in self._seen:
                self._seen.add(digest)
                self._found.put(event)
