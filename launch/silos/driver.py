"""Drives a run of silos: one driver of its own for each silo, and the outer server that they meet at.

A silo is a whole run in `silos/NAME/`: its driver, its Ray, its attempts, snapshots, ledger and checkpoints know nothing of the other
silos, and whatever recovers a run recovers a silo. This driver starts them, starts one again that was killed, goes on without one
that has failed while the quorum is there, and exports the model at the end.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from zerofleet.cluster.event_log import EventLog
from zerofleet.cluster.faults import VARIABLE as FAULTS_VARIABLE
from zerofleet.cluster.outer.rounds import Rounds
from zerofleet.cluster.outer.server import OuterServer
from zerofleet.cluster.outer.state import OuterStore
from zerofleet.cluster.outer.terms import Terms
from zerofleet.launch.config import JobConfig
from zerofleet.launch.drivers import requests_before
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.event_log_lines import write_log_line
from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.launch.requests import RequestWatch
from zerofleet.launch.silos.environment_file import check_environment_files
from zerofleet.launch.silos.jobs import shared_tokenizer, silo_job, silo_run, weight_limit
from zerofleet.launch.silos.process import SiloProcess
from zerofleet.launch.silos.progress import RoundLosses
from zerofleet.launch.stops import Stops
from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.silos.codecs import load_codec
from zerofleet.trainer.silos.strategies import load_strategy
from zerofleet.trainer.silos.wire import VARIABLE

_LOOK_S = 0.2
"""Seconds between two looks at the silos."""
_HEARTBEAT_S = 10.0
_LOOPBACK = "127.0.0.1"


class SilosDriver:
    """One driver's control of a run of silos, to its end."""

    def __init__(self, run: RunFolder, job: JobConfig, number: int, log: EventLog, stops: Stops) -> None:
        assert job.silos is not None
        self._run, self._job, self._number, self._log, self._stops = run, job, number, log, stops
        self._silos = job.silos
        self._watch = RequestWatch(run, requests_before(run), 0.5 if run.storage.is_local else 3.0)
        self._losses = RoundLosses(job.silos.interval_steps)
        self._processes: dict[str, SiloProcess] = {}
        self._state, self._step, self._heard_at = "PENDING", 0, 0.0
        self._is_stopping = False

    def run(self) -> int:
        """The exit code."""
        try:
            return self._drive()
        except Exception as error:
            mistake = isinstance(error, UserError)
            if mistake:
                self._say("error", type=type(error).__name__, message=str(error), traceback="", user=True)
            self._enter("FAILED", str(error) if isinstance(error, ZerofleetError) else f"the driver failed: {error!r}")
            raise
        finally:
            for process in self._processes.values():
                process.end()

    def _drive(self) -> int:
        self._say("environment", **fingerprint())
        check_environment_files(self._job)
        self._enter("PREPARING", "the job was taken")
        tokenizer = shared_tokenizer(self._job)
        terms = Terms(
            {name: member.weight for name, member in self._silos.members.items()},
            load_strategy(self._silos.strategy, self._silos.strategy_options),
            load_codec(self._silos.codec),
            self._silos.least,
            self._silos.deadline_s,
            self._silos.aggregation,
            self._silos.trimmed_fraction,
            weight_limit(self._job, self._silos) if self._silos.secure_aggregation else None,
        )
        self._rounds = Rounds(terms, OuterStore(self._run.storage, self._silos.keep_rounds), self._hear_round)
        server = OuterServer(self._rounds, listen_address(self._job))
        self._watch.start()
        try:
            self._enter(
                "STARTING",
                f"{len(terms.weights)} silos start; the outer server listens at {server.where.host}:{server.where.port}",
            )
            for name in sorted(terms.weights):
                self._start(name, tokenizer, server)
            self._enter("RUNNING", "the silos' drivers run")
            return self._attend()
        finally:
            server.close()
            self._watch.close()

    def _start(self, name: str, tokenizer: str, server: OuterServer) -> None:
        run, job = silo_run(self._run, name), silo_job(self._job, name, tokenizer)
        environment = {
            VARIABLE: server.where.to_env(),
            FAULTS_VARIABLE: faults_of(name, os.environ.get(FAULTS_VARIABLE, "")),
        }
        own_file = self._silos.members[name].environment_file
        process = SiloProcess(name, run, job, environment, self._losses.hear, own_file)
        self._processes[name] = process
        process.start()

    # -- while they run --------------------------------------------------------------------------------------------
    def _attend(self) -> int:
        """Until every silo has ended."""
        while any(process.is_running for process in self._processes.values()):
            time.sleep(_LOOK_S)  # processes, files and signals: nothing that all of them could be waited for with
            self._obey()
            for process in self._processes.values():
                self._look_at(process)
            self._tell_losses()
            self._heartbeat()
        self._tell_losses(is_end=True)
        return self._conclude()

    def _look_at(self, process: SiloProcess) -> None:
        process.look()
        if not process.has_just_ended():
            return
        if process.is_killed and not self._is_stopping and process.may_start_again:
            self._incident(
                f"the driver of silo {process.name} {process.how_it_ended}: another is started", process.name
            )
            return process.start()
        self._rounds.gone(process.name)
        if process.state == "FINISHED":
            return self._say("info", message=f"silo {process.name} is FINISHED", silo=process.name)
        if self._is_stopping:
            return
        self._incident(f"silo {process.name} {process.how_it_ended}: the others go on without it", process.name)
        left = [other for other in self._processes.values() if other.is_running or other.state == "FINISHED"]
        if len(left) < self._silos.least:
            self._incident(
                f"{len(left)} silos are left and the quorum is {self._silos.least}: the run ends", process.name
            )
            self._stop_all()

    def _tell_losses(self, is_end: bool = False) -> None:
        """A step of the run is a round: the mean over the silos' tokens since the last one."""
        for step, loss, tokens, start, seconds in self._losses.take(time.monotonic(), is_end):
            self._step = step
            data = {"loss": loss, "tokens": tokens, "tokens_per_second": tokens / max(seconds, 1e-9)}
            self._emit(Event("step", self._number, DRIVER, step, "outer", start, seconds, data))

    def _hear_round(self, kind: str, data: dict[str, Any]) -> None:
        """From the outer server's threads."""
        if kind == "round":
            self._losses.close(data["round"], data["tokens"], time.monotonic())
        self._say(kind, data)

    def _heartbeat(self) -> None:
        if time.monotonic() - self._heard_at > _HEARTBEAT_S:
            self._heard_at = time.monotonic()
            self._say("heartbeat")

    def _obey(self) -> None:
        for action in [*self._stops.take(), *self._watch.take()]:
            if action == "save":
                for process in self._processes.values():
                    process.run.request("save")
            elif action == "end":
                for process in self._processes.values():
                    process.ask_to_end()
            elif not self._is_stopping:  # two people who ask for a stop want one
                self._stop_all()

    def _stop_all(self) -> None:
        self._enter("DRAINING", "the silos save and end")
        self._is_stopping = True
        for process in self._processes.values():
            process.ask_to_stop()

    # -- the end ---------------------------------------------------------------------------------------------------
    def _conclude(self) -> int:
        states = {name: process.state for name, process in self._processes.items()}
        finished = sorted(name for name, state in states.items() if state == "FINISHED")
        told = ", ".join(f"{name} {state}" for name, state in sorted(states.items()))
        if len(finished) >= self._silos.least:
            if self._job.checkpoint.export:
                self._export(finished[0])
            return self._enter("FINISHED", f"all {self._job.train.steps} steps are done ({told})", OK)
        if self._is_stopping and "FAILED" not in states.values():
            return self._enter("STOPPED", f"stopped ({told})", OK)
        return self._enter(
            "FAILED", f"too few silos have finished ({told}); the quorum is {self._silos.least}", RUN_FAILED
        )

    def _export(self, name: str) -> None:
        """Every silo that has finished ends with the outer weights."""
        from zerofleet.trainer.checkpoint.export import export  # brings torch

        started, source = time.time(), silo_run(self._run, name)
        target = self._run.storage.local_path("export") if self._run.storage.is_local else None
        dtype = self._job.checkpoint.export_dtype
        path = export(source, None, target, dtype, lambda message: self._incident(message, name))
        self._emit(
            Event(
                "export",
                self._number,
                DRIVER,
                self._step,
                "end",
                started,
                time.time() - started,
                {"path": path, "dtype": dtype},
            )
        )

    # -- events ----------------------------------------------------------------------------------------------------
    def _enter(self, state: str, why: str, exit_code: int | None = None) -> int:
        data: dict[str, Any] = {"from": self._state, "to": state, "why": why}
        if exit_code is not None:
            data["exit_code"] = exit_code
        self._state = state
        self._say("state", data)
        return exit_code or OK

    def _incident(self, message: str, silo: str) -> None:
        self._say("incident", {"class": "silo", "message": message, "silo": silo})

    def _say(self, kind: str, fields: Mapping[str, Any] | None = None, **data: Any) -> None:
        self._emit(Event(kind, self._number, DRIVER, self._step, "outer", time.time(), data={**(fields or {}), **data}))

    def _emit(self, event: Event) -> None:
        self._log.emit(event)
        write_log_line(event)


def listen_address(job: JobConfig) -> str:
    """Where the outer server listens: what the job says, else loopback, or where that would be each silo's own host, the address of this host
    towards the head of a cluster that silos run on. Raises UserError where there is no way to it."""
    assert job.silos is not None
    addresses = {silo_job(job, name, None).cluster.address for name in job.silos.members} - {""}
    if job.silos.listen or not addresses:
        return job.silos.listen or _LOOPBACK
    host, _, port = min(addresses).rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((host, int(port)))  # sends nothing: the kernel chooses the address
            return str(way.getsockname()[0])
    except OSError as error:
        raise UserError(
            f"this host has no way to the Ray cluster at {min(addresses)} ({error}), so silos there would have none to the outer server: set "
            "silos.listen to an address of this host that they reach"
        ) from error


def faults_of(silo: str, text: str) -> str:
    """The injected faults of one silo: those that name it under `silo`, and those that name none."""
    if not text.strip():
        return ""
    entries: Sequence[dict[str, Any]] = json.loads(text)
    mine = [entry for entry in entries if entry.get("silo", silo) == silo]
    return json.dumps([{key: value for key, value in entry.items() if key != "silo"} for entry in mine])
