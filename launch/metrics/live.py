"""A driver's metrics: a thread that takes its events in, and a server that answers whoever scrapes. Neither ever disturbs the driver."""

from __future__ import annotations

import heapq
import logging
import queue
import threading
import time
from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

from zerofleet.cluster.goodput.history import end_of
from zerofleet.cluster.probe import code_version
from zerofleet.launch.config import JobConfig
from zerofleet.launch.metrics.config import listening
from zerofleet.launch.metrics.reading import Facts, Reading, Sample
from zerofleet.trainer.driver_records import driver_records
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import RunFolder

_log = logging.getLogger(__name__)


class Metrics:
    """Of one driver."""

    def __init__(self, run: RunFolder, job: JobConfig, number: int, where: tuple[str, int] | None) -> None:
        """`number` is the driver's, which has claimed the run; `where` is the address and port to listen at, None: nobody asks."""
        self._run, self._where = run, where
        self._driver = next(record for record in driver_records(run) if record.number == number)
        self._facts, self._lock, self._began_at = _facts(job), threading.Lock(), time.time()
        self._reading, self._has_recalled = Reading(self._facts, self._driver, self._began_at), False
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, name="metrics", daemon=True)
        self._server: WSGIServer | None = None

    def start(self) -> Event | None:
        """Begins to answer. Returns what a user should know: where, or why not; None where nobody asked for it."""
        if self._where is None:
            return None
        address, port = self._where
        try:
            found = self._serve(address, port)
        except OSError as error:
            what = f"no metrics: {address}:{port} cannot be listened at ({error.strerror or error}); the run goes on without"
            remedy = "metrics.port=0 takes any port that is free"
            return self._say("incident", f"{what}. {remedy}", **{"class": "metrics"})
        self._thread.start()
        return self._say("info", f"metrics for Prometheus: http://{address}:{found}/metrics")

    def hear(self, event: Event) -> None:
        """Returns at once."""
        if self._server is not None:
            self._queue.put(event)

    def close(self) -> None:
        """Ends what was begun."""
        if self._server is not None:
            self._queue.put(None)
            self._server.shutdown()
            self._server.server_close()

    def samples(self) -> list[Sample]:
        """As things stand. While what the run did before is still read, only that it is there: a counter that starts from 0 and then
        jumps would look like as many failures."""
        with self._lock:
            now = time.time()
            return list(self._reading.samples(now) if self._has_recalled else self._reading.of_run(now))

    def _serve(self, address: str, port: int) -> int:
        """Returns the port. Raises OSError."""
        from prometheus_client import start_http_server
        from prometheus_client.registry import CollectorRegistry

        from zerofleet.launch.metrics.families import RunCollector

        registry = CollectorRegistry(auto_describe=False)
        registry.register(RunCollector(self._run.name, self.samples))
        self._server, _ = start_http_server(port, address, registry)
        return int(self._server.server_port)

    def _listen(self) -> None:
        """Whatever happens here, the run goes on."""
        reading = Reading(self._facts, self._driver, self._began_at)
        try:
            reading.recall(driver_records(self._run), self._run.attempts(), _past(self._run, self._began_at))
        except Exception as error:  # noqa: BLE001
            _log.warning("not all of what the run did before this driver is in its metrics: %s", error)
        reading.begin()
        with self._lock:
            self._reading, self._has_recalled = reading, True
        while (event := self._queue.get()) is not None:
            try:
                with self._lock:
                    self._reading.hear(event)
            except Exception as error:  # noqa: BLE001
                _log.exception("an event is not in the metrics: %s: %s", error, event)

    def _say(self, kind: str, message: str, **data: str) -> Event:
        attempts = self._run.attempts()
        number = 1 + (attempts[-1].attempt if attempts else 0)
        return Event(kind, number, DRIVER, 0, "init", time.time(), data={"message": message, **data})


def place_of(job: JobConfig) -> tuple[str, int] | None:
    """Where this job's driver answers. UserError for a wrong one. The silos of one machine have one place: the run of all of them."""
    return None if job.silo is not None else listening(job.metrics)


def _past(run: RunFolder, until: float) -> Iterator[Event]:
    """What was written down before that (Unix seconds), about in order; line by line, since a long run has many."""
    results = (Event(**line) for line in run.read("metrics"))
    for event in heapq.merge(run.events(), results, key=end_of):
        if event.start < until:
            yield event


def _facts(job: JobConfig) -> Facts:
    return Facts(
        version=code_version(),
        zero_stage=job.train.zero_stage,
        precision=job.train.precision,
        steps=job.train.steps,
        nodes=job.cluster.nodes,
        ranks=job.cluster.world_size,
        has_attempts=job.silos is None,
    )
