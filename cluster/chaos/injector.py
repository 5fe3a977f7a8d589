"""Carries a fault plan out from outside the run: waits at the gate, strikes, and keeps a record. Runs where the driver runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import psutil

from zerofleet.cluster.chaos import damage
from zerofleet.cluster.chaos.gate import Arrival, Gate
from zerofleet.cluster.chaos.mounts import MountedOutage, Outage, RoomyFolder, check_mounts
from zerofleet.cluster.faults import MOUNTED, NODE, ONCE, Fault
from zerofleet.cluster.local import Leftover, leftovers
from zerofleet.trainer.driver_records import driver_records
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

_HEAD = ("gcs_server", "raylet")
"""The processes without which there is no Ray; what hangs on them dies with them."""


@dataclass(frozen=True)
class Strike:
    """A fault that struck at `at` (Unix seconds), where `arrival` says."""

    fault: Fault
    arrival: Arrival
    at: float
    error: str = ""
    """Why it could not be brought about; then it did not strike."""

    def to_dict(self) -> dict[str, Any]:
        """What struck where."""
        where = {"point": self.fault.point, "step": self.arrival.step, "rank": self.fault.rank}
        return {"kind": self.fault.kind, **where, "attempt": self.arrival.attempt}


class Injector:
    """A context: until its end ranks are awaited, and what lasts is lifted there."""

    def __init__(
        self, run: RunFolder, faults: Sequence[Fault], cluster_address: str = "", outage: Outage | None = None
    ) -> None:
        """Before the run folder exists. `cluster_address` is the host:port of a Ray cluster that the run joins; `outage` is what
        storage_outage does, where it is not a mount. Raises UserError for a fault that cannot be made here, MountError."""
        for fault in faults:
            _check_place(fault.kind, is_joined=bool(cluster_address))
            if fault.kind in MOUNTED and not (outage and fault.kind == "storage_outage"):
                check_mounts(run, fault.kind)
        self._outage = outage
        self._run, self._gate = run, Gate(self._strike, _own_address(cluster_address) if cluster_address else "")
        self._lasting: dict[int, tuple[threading.Timer | None, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self.faults = tuple(replace(fault, gate=self._gate.path) for fault in faults)
        self.strikes: list[Strike] = []
        is_to_fill = any(fault.kind == "disk_full" for fault in faults)
        self._roomy = RoomyFolder(run.storage.local_path()) if is_to_fill else None

    def __enter__(self) -> Self:
        self._gate.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """To be left when the driver has ended."""
        self._gate.__exit__(kind, error, trace)
        self.lift()
        if self._roomy is not None:
            self._roomy.close()

    def lift(self) -> None:
        """Ends the faults that last. May be called twice."""
        for number in list(self._lasting):
            self._lift_one(number)

    def _lift_one(self, number: int) -> None:
        with self._lock:
            timer, lift = self._lasting.pop(number, (None, _nothing))
        if timer is not None:
            timer.cancel()
        lift()

    # -- in the gate's thread --------------------------------------------------------------------------------------
    def _strike(self, arrival: Arrival) -> bool:
        fault = self.faults[arrival.fault]
        if fault.attempt == ONCE and any(strike.arrival.fault == arrival.fault for strike in self.strikes):
            return False
        try:
            if fault.kind in _DAMAGES:
                damage.await_target(self._run, fault.kind, arrival.step)
            self.strikes.append(
                Strike(fault, arrival, time.time())
            )  # first: what it ends may be noticed before it returns
            if (act := _ACTIONS.get(fault.kind)) is not None:
                act(self, fault, arrival)
        except Exception as error:
            self.strikes.append(Strike(fault, arrival, time.time(), f"{type(error).__name__}: {error}"))
            raise
        return True

    def _kill_driver(self, fault: Fault, arrival: Arrival) -> None:
        os.kill(driver_records(self._run)[-1].pid, signal.SIGKILL)

    def _sigterm(self, fault: Fault, arrival: Arrival) -> None:
        os.kill(driver_records(self._run)[-1].pid, signal.SIGTERM)

    def _kill_agent(self, fault: Fault, arrival: Arrival) -> None:
        for process in agents_of(self._run):
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with another
                process.kill()

    def _kill_head(self, fault: Fault, arrival: Arrival) -> None:
        own = own_ray_of(self._run)
        for process in own.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with another
                if process.pid == own.head.pid or process.name() in _HEAD:
                    process.kill()

    def _disk_full(self, fault: Fault, arrival: Arrival) -> None:
        assert self._roomy is not None
        self._roomy.fill()
        self._lift_later(fault, arrival.fault, self._roomy.empty)

    def _storage_outage(self, fault: Fault, arrival: Arrival) -> None:
        outage = self._outage or MountedOutage(self._run.storage.local_path())
        outage.begin()
        self._lift_later(fault, arrival.fault, outage.end)

    def _lift_later(self, fault: Fault, number: int, lift: Callable[[], None]) -> None:
        timer = threading.Timer(fault.for_s, self._lift_one, [number]) if fault.for_s is not None else None
        self._lasting[number] = timer, lift
        if timer is not None:
            timer.start()

    def _damage(self, fault: Fault, arrival: Arrival) -> None:
        """With the loss of a rank, and of the memory unless that is what is damaged: else nobody would read it. The rank is stopped
        first, so that it makes no new snapshot behind our back."""
        os.kill(arrival.pid, signal.SIGSTOP)
        try:
            _DAMAGES[fault.kind](self._run)
            if fault.kind != "flip_snapshot":
                damage.lose_memory(self._run)
        finally:
            os.kill(arrival.pid, signal.SIGKILL)


def _check_place(kind: str, is_joined: bool) -> None:
    """Raises UserError where a fault of this kind has nothing to strike."""
    if kind in NODE and not is_joined:
        raise UserError(
            f"{kind} strikes a node of a Ray cluster that the run joins: give cluster.address and at least two nodes. "
            "A run that starts its own Ray has this host only; kill_head ends that"
        )
    if is_joined and kind in (*MOUNTED, *_DAMAGES, "kill_agent", "kill_head"):
        raise UserError(
            f"{kind} reaches what runs on this host only, and the run joins a Ray cluster: leave it out of the plan, or leave "
            "cluster.address out of the job"
        )


def _own_address(cluster_address: str) -> str:
    """Of this host, as the cluster's nodes see it: what it sends to the head comes from there. Sends nothing."""
    host, _, port = cluster_address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect((host, int(port)))
        return str(link.getsockname()[0])


def _nothing() -> None:
    """Another has lifted it already."""


def own_ray_of(run: RunFolder) -> Leftover:
    """The local Ray that the run's newest driver has started. Raises LookupError."""
    driver = driver_records(run)[-1].pid
    for found in leftovers():
        if (found.run, found.owner.pid) == (run.name, driver):
            return found
    raise LookupError(f"driver {driver} of run {run.name} has no Ray here")


def agents_of(run: RunFolder) -> list[psutil.Process]:
    """The node agents of a run on this host. Raises LookupError when there is none."""
    found = []
    for process in own_ray_of(run).processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "ray::NodeAgent":
                found.append(process)
    if not found:
        raise LookupError(f"run {run.name} has no node agent here")
    return found


_DAMAGES: dict[str, Callable[[RunFolder], None]] = {
    "flip_byte": damage.flip_byte,
    "truncate": damage.truncate,
    "zombie": damage.raise_zombie,
    "flip_snapshot": damage.flip_snapshot,
}
_ACTIONS: dict[str, Callable[[Injector, Fault, Arrival], None]] = {
    "kill_driver": Injector._kill_driver,
    "sigterm": Injector._sigterm,
    "kill_agent": Injector._kill_agent,
    "kill_head": Injector._kill_head,
    "disk_full": Injector._disk_full,
    "storage_outage": Injector._storage_outage,
    **dict.fromkeys(_DAMAGES, Injector._damage),
}
"""What strikes from outside; a kind that is not here the rank does to itself."""
