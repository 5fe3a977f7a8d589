"""Follows a run on Kubernetes from far away: its RayJob by watches, its events by its driver's log. Its end, a detach, or a stop."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.job_status import JobStatus
from zerofleet.k8s.observer import Observer
from zerofleet.k8s.pending import why_pending
from zerofleet.k8s.run_objects import ask_to_stop, delete_cluster, delete_run
from zerofleet.launch.backends.pod_events import PodEvents
from zerofleet.launch.backends.pod_verdicts import PodVerdicts
from zerofleet.launch.exit_codes import INTERRUPTED, OK, RUN_FAILED, TIMEOUT, USER_MISTAKE
from zerofleet.launch.progress import Progress
from zerofleet.launch.screens import Screen, choose_screen
from zerofleet.launch.summary import heldout_line, told_facts, write_rows
from zerofleet.launch.watch import asked_to_stop
from zerofleet.launch.words import command
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import DRIVER, Event

_LOOK_S = 0.5
_LOG_END_S = 10.0
"""How long the rest of a log is waited for once the job is over."""


@dataclass(frozen=True)
class Place:
    """Where a run is: which cluster, namespace and name; `context` and `profile` as the user gave them."""

    api: Api
    namespace: str
    name: str
    context: str | None = None
    profile: str | None = None
    """File of the profile; none where no command line named it."""

    def command(self, verb: str, *words: str) -> str:
        """A command line for this run."""
        where = ["--backend", "kuberay", "--namespace", self.namespace]
        if verb == "resume":  # it makes the objects anew
            where += ["--profile", self.profile or "PROFILE"]
        return command(verb, *words, self.name, *where, *(["--context", self.context] if self.context else []))


class KubeWatch:
    """One run, from its creation, or from whenever it is looked at, to its end."""

    def __init__(self, place: Place, progress: Progress, storage: str, as_json: bool) -> None:
        self._place, self._progress, self._storage, self._as_json = place, progress, storage, as_json
        self._events = PodEvents(place.api, place.namespace)
        self._verdicts = PodVerdicts()
        self._said, self._is_blind = "", False
        self._deactivation: str | None = None
        """Kueue's words, when it has taken the run out of its queue for good."""

    def follow(self) -> int:
        """Shows the run until its RayJob is over. Returns the exit code; 130 when detached."""
        place = self._place
        with Observer(place.api, place.namespace, place.name) as observer:
            while True:
                try:
                    with choose_screen(place.name, self._as_json) as screen:
                        status = self._until_over(observer, screen)
                    return self._conclude(status)
                except KeyboardInterrupt:
                    if not asked_to_stop():
                        say_detached(place)
                        return INTERRUPTED
                    ask_to_stop(place.api, place.namespace, place.name)
                    sys.stderr.write("stopping: the run saves a checkpoint at the end of its step\n")

    def _until_over(self, observer: Observer, screen: Screen) -> JobStatus:
        while True:
            observer.wait(_LOOK_S)
            observed = observer.observed()
            status = observed.status
            self._say_trouble(observer.trouble, observer.is_forbidden)
            self._events.follow(observed.newest_submitter())
            self._show(screen, self._verdicts.see(observed))
            is_gone = observer.is_ready and observed.job is None
            self._deactivation = observed.deactivation
            if is_gone or self._deactivation is not None or status.is_over(observer.unchanged_s(status)):
                self._events.wait_for_end(_LOG_END_S)
                self._show(screen, is_over=True)
                if not self._progress.is_final:
                    self._events.read_again(_LOG_END_S)
                    self._show(screen, is_over=True)
                return status
            if (pending := why_pending(observed)) and pending.sentence != self._said:
                self._said = pending.sentence
                screen.event(_info(pending.sentence), self._progress)

    def _show(self, screen: Screen, incidents: Sequence[Event] = (), is_over: bool = False) -> None:
        for event in [*incidents, *self._verdicts.join(self._events.take(), is_over)]:
            self._progress.apply(event)
            screen.event(event, self._progress)
        screen.tick(self._progress)

    def _say_trouble(self, trouble: ApiError | None, is_forbidden: bool) -> None:
        if trouble is not None and is_forbidden:
            raise UserError(f"run {self._place.name} cannot be followed: {trouble}. The run goes on") from trouble
        if trouble is not None and not self._is_blind:
            sys.stderr.write(f"the run cannot be followed until the API server answers; it goes on: {trouble}\n")
        self._is_blind = trouble is not None

    def _conclude(self, status: JobStatus) -> int:
        self._events.close()
        if self._deactivation is not None and self._progress.state != "FINISHED":
            return self._held_back(self._deactivation)
        if not self._progress.is_final:
            return self._without_result(status)
        write_summary(self._place, self._progress, self._storage, self._as_json)
        clean_up(self._place, self._progress, status)
        if self._progress.state != "FAILED":
            return self._progress.exit_code or OK
        return self._progress.exit_code or (USER_MISTAKE if self._progress.user_error else RUN_FAILED)

    def _held_back(self, why: str) -> int:
        write_summary(self._place, self._progress, self._storage, self._as_json)
        sys.stderr.write(
            f"error: Kueue has deactivated the Workload of run {self._place.name} and deleted its pods ({why}). Its checkpoints are there: go on with "
            f"{self._place.command('resume')} --profile P (queue.max_execution_s is the profile's)\n"
        )
        return TIMEOUT

    def _without_result(self, status: JobStatus) -> int:
        """The job is over and its driver did not say how."""
        name, log = self._place.name, self._events.tail
        if not status.deployment:
            sys.stderr.write(f"error: the RayJob of run {name} was deleted before the run had ended\n")
            return RUN_FAILED
        end = f". The end of its log:\n{log}" if log else ""
        sys.stderr.write(f"error: the RayJob of run {name} is {status.words}{end}\n")
        mistakes = [line for line in log.splitlines() if line.startswith("error: ")]
        return USER_MISTAKE if status.deployment == "ValidationFailed" or mistakes else RUN_FAILED


def clean_up(place: Place, progress: Progress, status: JobStatus) -> None:
    """After the end: of a run that has finished everything is deleted. A run that was stopped keeps its RayJob, without pods: it is what
    `resume` reads. One that failed keeps its pods for a while (lifecycle.ttl_s), to be looked at."""
    if progress.state == "FINISHED":
        delete_run(place.api, place.namespace, place.name)
    elif progress.state == "STOPPED" and status.cluster:
        delete_cluster(place.api, place.namespace, status.cluster)


def say_detached(place: Place) -> None:
    sys.stderr.write(
        f"detached: run {place.name} goes on in namespace {place.namespace}\n"
        f"  see it:  {place.command('status')}\n"
        f"  its log: {place.command('logs', '-f')}\n"
        f"  stop it: {place.command('stop')}\n"
    )


def summarise(place: Place, progress: Progress, storage: str) -> dict[str, Any]:
    """The facts that a log tells, for people and for --json."""
    return {
        "run": place.name,
        "namespace": place.namespace,
        **told_facts(progress),
        "last_checkpoint": progress.last_checkpoint,
        "folder": f"{storage.rstrip('/')}/{place.name}",
    }


def write_summary(place: Place, progress: Progress, storage: str, as_json: bool) -> None:
    """To stdout; the reason of a failure goes to stderr."""
    facts = summarise(place, progress, storage)
    if as_json:
        sys.stdout.write(json.dumps({"kind": "summary", **facts}) + "\n")
        return
    rows = [
        ("run", f"{place.name}: {progress.state} at step {progress.step} of {progress.total_steps}"),
        ("loss", "" if progress.loss is None else f"{progress.loss:.4f}"),
        ("held-out loss", heldout_line(progress)),
        ("checkpoint", "" if progress.last_checkpoint is None else f"step {progress.last_checkpoint}"),
        ("incidents", str(len(progress.incidents)) if progress.incidents else ""),
        ("export", progress.export_path or ""),
        ("folder", f"{facts['folder']} (in the pods)"),
        (
            "next",
            "" if progress.state == "FINISHED" else place.command("logs" if progress.state == "FAILED" else "resume"),
        ),
    ]
    write_rows(rows, progress)


def _info(message: str) -> Event:
    return Event("info", 0, DRIVER, 0, "init", time.time(), data={"message": message})
