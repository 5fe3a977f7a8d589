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
from zerofleet.trainer.driver_records import DriverRecord, driver_records
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import RunFolder

_log = logging.getLogger(__name__)


class Metrics:
    """Of one driver."""

    def __init__(self, run: RunFolder, job: JobConfig, number: int, where: tuple[str, int] | None) -> None:
        """`number` is the driver's, which has claimed the run; `where` is the address and port to listen at, None: nobody asks."""
        self._run, self._job, self._number, self._where = run, job, number, where
        self._began_at, self._lock = time.time(), threading.Lock()
        self._reading: Reading | None = None
        """None while what the run did before is still read."""
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._server: WSGIServer | None = None

    def start(self) -> Event | None:
        """Begins to answer. Returns what a user should know: where, or why not; None where nobody asked for it."""
        if self._where is None:
            return None
        try:
            attempts = self._run.attempts()
            driver = next(record for record in driver_records(self._run) if record.number == self._number)
        except StorageError as error:
            _log.warning("no metrics: %s", error)
            return None
        where, number = f"{self._where[0]}:{self._where[1]}", 1 + (attempts[-1].attempt if attempts else 0)
        try:
            port = self._serve(*self._where, self._fresh(driver))
        except OSError as error:
            what = f"no metrics: {where} cannot be listened at ({error.strerror or error}); the run goes on without"
            data = {"class": "metrics", "message": f"{what}. metrics.port=0 takes any port that is free"}
            return Event("incident", number, DRIVER, 0, "init", time.time(), data=data)
        threading.Thread(target=self._listen, args=(self._fresh(driver),), name="metrics", daemon=True).start()
        data = {"message": f"metrics for Prometheus: http://{self._where[0]}:{port}/metrics"}
        return Event("info", number, DRIVER, 0, "init", time.time(), data=data)

    def _fresh(self, driver: DriverRecord) -> Reading:
        """Of a run that has done nothing."""
        return Reading(_facts(self._job), driver, self._began_at)

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

    def _serve(self, address: str, port: int, fresh: Reading) -> int:
        """Returns the port. Raises OSError. While the past is read only what the run is is shown, by `fresh`: a counter that starts from 0 and
        then jumps would look like as many failures."""
        from prometheus_client import start_http_server
        from prometheus_client.registry import CollectorRegistry

        from zerofleet.launch.metrics.families import RunCollector

        def samples() -> list[Sample]:
            with self._lock:
                now = time.time()
                return list(fresh.of_run(now) if self._reading is None else self._reading.samples(now))

        registry = CollectorRegistry(auto_describe=False)
        registry.register(RunCollector(self._run.name, samples))
        self._server, _ = start_http_server(port, address, registry)
        return int(self._server.server_port)

    def _listen(self, reading: Reading) -> None:
        """Whatever happens here, the run goes on."""
        try:
            reading.recall(driver_records(self._run), self._run.attempts(), _past(self._run, self._began_at))
        except Exception as error:  # noqa: BLE001
            _log.warning("not all of what the run did before this driver is in its metrics: %s", error)
        reading.begin()
        with self._lock:
            self._reading = reading
        while (event := self._queue.get()) is not None:
            try:
                with self._lock:
                    reading.hear(event)
            except Exception as error:  # noqa: BLE001
                _log.exception("an event is not in the metrics: %s: %s", error, event)


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
