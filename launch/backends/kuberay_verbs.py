"""`status`, `logs`, `stop` and `list` of runs on Kubernetes, from far away: read from the cluster's API and the driver's log."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.execute import execute
from zerofleet.k8s.observer import Observed, Observer, component, look
from zerofleet.k8s.paths import RAY_JOB
from zerofleet.k8s.pending import why_pending
from zerofleet.k8s.pod_log import PodLog
from zerofleet.k8s.pod_loss import PodLoss, loss_of
from zerofleet.k8s.pods import HEAD_CONTAINER, SUBMITTER_CONTAINER
from zerofleet.k8s.run_objects import ask_to_stop, delete_run, find_job
from zerofleet.launch.backends.kuberay_resume import resume, stored_job
from zerofleet.launch.backends.kuberay_watch import Place, clean_up, summarise
from zerofleet.launch.backends.pod_events import parse_event
from zerofleet.launch.config import JobConfig
from zerofleet.launch.event_log_lines import log_line
from zerofleet.launch.exit_codes import OK, RUN_FAILED, TIMEOUT
from zerofleet.launch.progress import Progress
from zerofleet.launch.summary import heldout_line
from zerofleet.launch.words import prepare_line, step_line
from zerofleet.trainer.errors import NotFoundError, UserError, ZerofleetError

__all__ = ["list_runs", "logs", "resume", "status", "stop"]

_LOG_LINES = 500
"""Of the log's end, from which a run's progress is read."""
_KUBELET_S = 120.0
"""How long a kubelet may take to bring a request to stop into the head's pod."""
_LOOK_S = 0.5
_COLUMNS = "{:<47} {:<12} {:>13} {:>9} {:>5}  {}\n"


def place_of(arguments: argparse.Namespace) -> Place:
    """Raises UserError for a RUN that is no name."""
    if "/" in arguments.run:
        raise UserError(
            f"RUN is a name with --backend kuberay, not {arguments.run!r}: what `zerofleet list --backend kuberay` shows"
        )
    api = Api(arguments.context)
    return Place(api, arguments.namespace or api.namespace, arguments.run, arguments.context)


def status(arguments: argparse.Namespace) -> int:
    place = place_of(arguments)
    find_job(place.api, place.namespace, place.name)
    observed = look(place.api, place.namespace, place.name)
    job = stored_job(place)
    progress = progress_of(place, observed, job.train.steps)
    state, pending, lost = state_of(observed, progress), why_pending(observed), _lost_pods(observed)
    why = progress.why or (pending.sentence if pending else "")
    facts = summarise(place, progress, job.run.storage) | {
        "state": state,
        "why": why,
        "job_status": observed.status.words,
        "lost_pods": [asdict(loss) for loss in lost],
    }
    if arguments.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return OK
    rows = [
        ("run", place.name),
        ("state", f"{state}: {why}" if why else state),
        ("RayJob", f"{observed.status.words}, in namespace {place.namespace}"),
        ("pods", _pods(observed)),
        *(("lost pod", loss.sentence) for loss in lost),
        ("preparing", prepare_line(progress).removeprefix("preparing: ")),
        ("progress", step_line(progress) if progress.step else ""),
        ("held-out loss", heldout_line(progress)),
        ("checkpoint", "" if progress.last_checkpoint is None else f"step {progress.last_checkpoint}"),
        *(("incident", text) for text in progress.incidents[-3:]),
        ("folder", f"{facts['folder']} (in the pods)"),
        ("next", place.command("resume") if state in ("FAILED", "STOPPED", "DEAD") else ""),
    ]
    sys.stdout.write("".join(f"{name:<14} {value}\n" for name, value in rows if value))
    return OK


def logs(arguments: argparse.Namespace) -> int:
    """The driver's, as its submitter's pod repeats it; a rank's by the same verb, in the head's pod, where the run folder is."""
    place = place_of(arguments)
    find_job(place.api, place.namespace, place.name)
    if arguments.rank is not None:
        return _rank_log(place, arguments)
    if arguments.follow:
        return _follow_log(place)
    pod = look(place.api, place.namespace, place.name).newest_submitter()
    if not pod:
        raise NotFoundError(f"run {place.name!r} has no log yet: see {place.command('status')}")
    for line in PodLog(place.api, place.namespace, pod, SUBMITTER_CONTAINER).read(follow=False):
        _write_log(line)
    return OK


def _follow_log(place: Place) -> int:
    read = ""
    with Observer(place.api, place.namespace, place.name) as observer:
        while True:
            observer.wait(_LOOK_S)
            observed = observer.observed()
            pod, status = observed.newest_submitter(), observed.status
            if pod and pod != read:
                for line in PodLog(place.api, place.namespace, pod, SUBMITTER_CONTAINER).follow(threading.Event()):
                    _write_log(line)
                read = pod
            elif (
                status.is_over(observer.unchanged_s(status))
                or (observer.is_ready and observed.job is None)
                or observed.deactivation is not None
            ):
                return OK


def _rank_log(place: Place, arguments: argparse.Namespace) -> int:
    head = look(place.api, place.namespace, place.name).running_head
    if not head:
        raise NotFoundError(
            f"run {place.name!r} has no pods any more (or none yet): its ranks' logs are in its run folder, {stored_job(place).run.storage}/{place.name}/logs"
        )
    run = f"{stored_job(place).run.storage.rstrip('/')}/{place.name}"
    command = ["python", "-m", "zerofleet.launch", "logs", run, "--rank", str(arguments.rank)]
    if arguments.attempt is not None:
        command += ["--attempt", str(arguments.attempt)]
    return execute(place.context, place.namespace, head, HEAD_CONTAINER, command + (["-f"] if arguments.follow else []))


def _write_log(line: str) -> None:
    """Events as people read them; all else as it is."""
    event = parse_event(line)
    if event is not None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.start))
        text = log_line(event) or (f"step {event.step}: loss {event.data['loss']:.4f}" if event.kind == "step" else "")
        line = f"{stamp}  {text}" if text else ""
    if line:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def stop(arguments: argparse.Namespace) -> int:
    """With a checkpoint. A run that has ended is cleaned up, one that has not begun is deleted."""
    place = place_of(arguments)
    find_job(place.api, place.namespace, place.name)
    observed, job = look(place.api, place.namespace, place.name), stored_job(place)
    progress = progress_of(place, observed, job.train.steps)
    if observed.status.is_over(0.0):
        clean_up(place, progress, observed.status)
        sys.stdout.write(
            f"run {place.name} is {state_of(observed, progress)} already: there is nothing to stop; its pods are deleted\n"
        )
        return OK
    if observed.deactivation is not None:
        sys.stdout.write(
            f"Kueue has deactivated run {place.name} and deleted its pods already ({observed.deactivation}): there is nothing to stop. Go on with: "
            f"{place.command('resume')}\n"
        )
        return OK
    if not observed.newest_submitter():
        delete_run(place.api, place.namespace, place.name)
        sys.stdout.write(
            f"run {place.name} had no driver yet: its RayJob is deleted. To go on with it, submit its recipe with run.name={place.name} again\n"
        )
        return OK
    timeout_s = job.cluster.stop_timeout_s + _KUBELET_S if arguments.timeout is None else arguments.timeout
    ask_to_stop(place.api, place.namespace, place.name)
    sys.stdout.write(f"asked run {place.name} to stop; waiting for its checkpoint (at most {timeout_s:g} s)\n")
    sys.stdout.flush()
    return _wait_for_stop(place, job, timeout_s)


def _wait_for_stop(place: Place, job: JobConfig, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    with Observer(place.api, place.namespace, place.name) as observer:
        while time.monotonic() < deadline:
            observer.wait(_LOOK_S)
            observed = observer.observed()
            status = observed.status
            if observer.is_ready and (observed.job is None or status.is_over(observer.unchanged_s(status))):
                return _stopped(place, observed, job)
    sys.stderr.write(
        f"error: run {place.name} has not ended {timeout_s:g} s after it was asked to stop; the request stands. Wait longer with --timeout, or see "
        f"{place.command('logs')}\n"
    )
    return TIMEOUT


def _stopped(place: Place, observed: Observed, job: JobConfig) -> int:
    if observed.job is None:
        sys.stdout.write(f"run {place.name} has ended, and whoever followed it has cleaned up\n")
        return OK
    progress = progress_of(place, observed, job.train.steps)
    state = state_of(observed, progress)
    clean_up(place, progress, observed.status)
    saved = "" if progress.last_checkpoint is None else f". The newest checkpoint is of step {progress.last_checkpoint}"
    go_on = "" if state == "FINISHED" else f"; go on with: {place.command('resume')}"
    sys.stdout.write(f"run {place.name} is {state} at step {progress.step}{saved}{go_on}\n")
    if state in ("STOPPED", "FINISHED") and not progress.exit_code:
        return OK
    sys.stderr.write(f"error: {progress.why or observed.status.words}\n")
    return RUN_FAILED


def list_runs(arguments: argparse.Namespace) -> int:
    """The runs that the cluster knows: those that have finished are deleted there."""
    api = Api(arguments.context)
    namespace = arguments.namespace or api.namespace
    jobs = api.get(RAY_JOB.path(namespace), {"labelSelector": "app.kubernetes.io/managed-by=zerofleet"})["items"]
    if not jobs and not arguments.json:
        sys.stdout.write(f"no runs in namespace {namespace}\n")
    elif not arguments.json:
        sys.stdout.write(_COLUMNS.format("RUN", "STATE", "STEP", "LOSS", "PODS", "CREATED"))
    for each in jobs:
        place = Place(api, namespace, each["metadata"]["name"], arguments.context)
        sys.stdout.write(_listed_if_whole(place, each["metadata"]["creationTimestamp"], arguments.json))
    return OK


def _listed_if_whole(place: Place, created: str, as_json: bool) -> str:
    """Empty for a run that cannot be read, which is said: its ConfigMap is being deleted, or its job.yaml is damaged."""
    try:
        return _listed(place, created, as_json)
    except ApiError:
        raise  # the cluster's trouble, not this run's
    except Exception as error:  # noqa: BLE001 - whatever is damaged in one run, the others are listed
        reason = str(error) if isinstance(error, ZerofleetError) else f"{type(error).__name__}: {error}"
        sys.stderr.write(f"warning: {place.name} cannot be read: {reason}\n")
        return ""


def _listed(place: Place, created: str, as_json: bool) -> str:
    observed = look(place.api, place.namespace, place.name)
    progress = progress_of(place, observed, stored_job(place).train.steps)
    state, running = (
        state_of(observed, progress),
        sum(pod["status"].get("phase") == "Running" for pod in _nodes(observed)),
    )
    facts = {
        "run": place.name,
        "state": state,
        "step": progress.step,
        "steps": progress.total_steps,
        "loss": progress.loss,
        "pods": running,
    }
    if as_json:
        return json.dumps({**facts, "created": created}) + "\n"
    loss = "-" if progress.loss is None else f"{progress.loss:.4f}"
    return _COLUMNS.format(place.name, state, f"{progress.step}/{progress.total_steps}", loss, running, created)


def progress_of(place: Place, observed: Observed, steps: int) -> Progress:
    """From the end of the driver's log."""
    progress, pod = Progress(steps), observed.newest_submitter()
    if not pod:
        return progress
    try:
        lines = [*PodLog(place.api, place.namespace, pod, SUBMITTER_CONTAINER).read(follow=False, tail=_LOG_LINES)]
    except ApiError as error:
        if error.status not in (400, 404):
            raise
        return progress  # its log has not begun, or is gone
    for line in lines:
        if event := parse_event(line):
            progress.apply(event)
    return progress


def state_of(observed: Observed, progress: Progress) -> str:
    """The controller's, or what it cannot say: `DEAD` when the job is over and its driver did not say how."""
    status = observed.status
    if progress.is_final and (status.is_over(0.0) or status.deployment == "Running"):
        return progress.state
    if status.deployment in ("Failed", "ValidationFailed"):
        return "FAILED"
    return "DEAD" if status.is_over(0.0) else progress.state


def _nodes(observed: Observed) -> list[dict[str, Any]]:
    return [pod for pod in observed.pods if component(pod) in ("head", "worker")]


def _lost_pods(observed: Observed) -> list[PodLoss]:
    """Of a job that runs: those that Kubernetes ends or has ended, as far as they are still there."""
    if observed.status.deployment != "Running":
        return []
    return [loss for pod in _nodes(observed) if (loss := loss_of(pod))]


def _pods(observed: Observed) -> str:
    shown = [
        f"{component(pod)} {pod['status'].get('phase', 'Pending')}"
        + (f" on {node}" if (node := pod["spec"].get("nodeName")) else "")
        for pod in _nodes(observed)
    ]
    return ", ".join(shown)
