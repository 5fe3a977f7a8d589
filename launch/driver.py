"""`python -m zerofleet.launch.driver STORAGE_URL RUN [--override key=value ...]`: drives a run on this machine to its end.

The run folder exists already. Claims the run, brings up a Ray of its own, prepares the data meanwhile, and hands over to
the controller. What it has to say goes to the run folder's events, what is notable to its log too. SIGTERM asks for a
stop with a checkpoint; a second one ends at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil

from zerofleet.cluster.attempt import Stage
from zerofleet.cluster.commits import Committer
from zerofleet.cluster.controller import Controller
from zerofleet.cluster.event_log import CLOSE_TIMEOUT_S, EventLog
from zerofleet.cluster.faults import VARIABLE as FAULTS_VARIABLE
from zerofleet.cluster.faults import parse_faults
from zerofleet.cluster.hooks import Hooks, Origin
from zerofleet.cluster.host import num_cores, visible_gpus
from zerofleet.cluster.joined_ray import JoinedRay, check_reachable
from zerofleet.cluster.local import reap_leftovers
from zerofleet.cluster.own_ray import OwnRay
from zerofleet.cluster.placement import Ask, NodeResources, check_ever_fits
from zerofleet.cluster.policy.failure import Terms
from zerofleet.cluster.policy.sizing import Sizes
from zerofleet.cluster.policy.time_limit import TimeLimit, driven_s
from zerofleet.cluster.preparation import Preparation, Progress
from zerofleet.cluster.snapshot_writer import snapshot_folder
from zerofleet.cluster.spec import PRELOAD, TRAIN, JobSpec, NodeSpec, SnapshotInfo
from zerofleet.launch.checks import check_job, check_no_labels
from zerofleet.launch.claims import Handed, claim
from zerofleet.launch.config import JobConfig, override_job
from zerofleet.launch.drivers import driver_records, effective_job, requests_before, run_namespace
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.event_log_lines import write_log_line
from zerofleet.launch.exit_codes import RUN_FAILED
from zerofleet.launch.lost_ray import begin_anew, judge_loss
from zerofleet.launch.metrics.live import Metrics, place_of
from zerofleet.launch.planning.rank_plan import rank_plan
from zerofleet.launch.report.write import leave_report
from zerofleet.launch.requests import RequestWatch
from zerofleet.launch.stops import Stops, stop_with_parent
from zerofleet.trainer import ops
from zerofleet.trainer.checkpoint.commit import commit
from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.checkpoint.select import Selection, newest_snapshot, select_checkpoint
from zerofleet.trainer.credentials import mask_output
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.init_from import pin_init_from
from zerofleet.trainer.recorder import Recorder
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.silos.wire import VARIABLE as OUTER_VARIABLE

_LOCAL_REQUEST_INTERVAL_S = 0.5
_REMOTE_REQUEST_INTERVAL_S = 3.0
"""Seconds between looks for requests; object stores charge for each."""

_NOTICE_S = 2.0
"""How long after an error of Ray's its loss may take to be noticed."""
_BUILD_S = 120.0
"""About how long an op takes to be compiled."""

_log = logging.getLogger("zerofleet.driver")


@dataclass(frozen=True)
class Program:
    """What ranks run; tests put something small in its place."""

    target: str = TRAIN
    preload: str = PRELOAD
    has_check: bool = True
    has_export: bool = True


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 finished or stopped, 1 the run failed, 2 the user's mistake, 3 no placement in time."""
    parser = argparse.ArgumentParser(prog="python -m zerofleet.launch.driver", description=__doc__)
    parser.add_argument("storage_url")
    parser.add_argument("run")
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    options = parser.parse_args(arguments)
    mask_output()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        return drive(options.storage_url, options.run, options.override)
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def drive(
    storage_url: str,
    name: str,
    overrides: Sequence[str] = (),
    program: Program = Program(),
    handed: Handed | None = None,
) -> int:
    """Runs the job of a run folder to its end, on the cluster that this process was handed to where it was. Returns the exit code. Raises
    UserError when it may not be driven."""
    stops, run = Stops(), RunFolder(storage_url, name)
    job = override_job(effective_job(run), overrides)  # before the claim: a wrong override must not stay in the record
    here = job.run.model_copy(update={"name": name, "storage": storage_url})
    address = handed.address if handed is not None else job.cluster.address
    joined = job.cluster.model_copy(update={"address": address})
    job = job.model_copy(update={"run": here, "cluster": joined})
    place = place_of(job)
    number = claim(run, overrides, handed)
    metrics = Metrics(run, job, number, place)
    log = EventLog(lambda attempt: Recorder(run, attempt, job.train_config()), metrics.hear)
    if (told := metrics.start()) is not None:
        log.emit(told)
        write_log_line(told)
    if job.silo is not None:
        stop_with_parent()
    try:
        if job.silos is not None:
            from zerofleet.launch.silos.driver import SilosDriver

            return SilosDriver(run, job, number, log, stops).run()
        return Driver(run, job, number, log, program, stops).run()
    finally:
        metrics.close()
        if log.close(min(CLOSE_TIMEOUT_S, job.cluster.stop_timeout_s)):
            leave_report(run)


class Driver:
    """Puts the parts of a run together, runs them, and takes them apart again."""

    def __init__(
        self, run: RunFolder, job: JobConfig, number: int, log: EventLog, program: Program, stops: Stops
    ) -> None:
        self._run, self._job, self._log, self._program, self._stops = run, job, log, program, stops
        self._number, self._config = number, job.train_config()
        attempts, asked = run.attempts(), job.train.micro_batch_size
        self._last_attempt = attempts[-1].attempt if attempts else 0
        size = attempts[-1].micro_batch_size(asked) if attempts else asked
        self._terms = Terms(micro_batch_size=size, min_micro_batch_size=job.train.min_micro_batch_size or 0)
        interval_s = _LOCAL_REQUEST_INTERVAL_S if run.storage.is_local else _REMOTE_REQUEST_INTERVAL_S
        self._started_at = psutil.Process().create_time()
        self._limit = self._time_limit()
        self._watch = RequestWatch(run, requests_before(run), interval_s)
        self._newest, self._lost_ray = (self._last_attempt + 1, 0), threading.Event()
        self._faults = os.environ.get(FAULTS_VARIABLE, "")

    def run(self) -> int:
        """From PENDING to a final state; whatever happens, nothing is left behind."""
        try:
            self._check()
        except UserError as error:
            self._fail(error)
            raise
        self._say("environment", **fingerprint())
        if plan := rank_plan(self._job):
            self._say("plan", **plan)
        for leftover in reap_leftovers():
            self._say("info", message=f"ended the Ray that a killed driver of run {leftover.run} had left behind")
        if self._faults:
            self._say("info", message=f"faults will be injected: {self._faults}")
        node_spec = self._node_spec()
        cluster = self._cluster(node_spec)
        exit_code = RUN_FAILED
        try:
            exit_code = self._control(cluster, replace(node_spec, early_zygote=cluster.zygote_path))
        finally:
            cluster.stop(self._run.storage, f"logs/ray-{self._number:04d}" if exit_code == RUN_FAILED else None)
        return exit_code

    def _cluster(self, node_spec: NodeSpec) -> OwnRay | JoinedRay:
        """To be made before Ray is imported."""
        if address := self._job.cluster.address:
            return JoinedRay(node_spec, address)
        machine = _this_machine()
        own_ray = OwnRay(node_spec, int(machine.cpus), int(machine.gpus))
        own_ray.watch(lambda code: self._on_lost_ray(own_ray, code))
        return own_ray

    def _on_lost_ray(self, own_ray: OwnRay, code: int) -> None:
        """Begins anew, or ends this process; in a thread of its own, since the others wait for Ray. Does not return."""
        self._lost_ray.set()
        try:
            attempt, step = self._newest
            verdict = judge_loss(self._run.events(), self._started_at, code, step, self._job.cluster.max_failures)
            self._emit(Event("verdict", attempt, DRIVER, step, "end", time.time(), data=verdict))
            if verdict["action"] == "stop":
                self._say("state", **{"from": "", "to": "FAILED", "why": verdict["sentence"], "exit_code": RUN_FAILED})
            elif self._stops.is_asked:
                self._run.request("stop")  # the signal's memory is lost with this program
            self._log.close()
            own_ray.stop(self._run.storage, f"logs/ray-{self._number:04d}")
            if verdict["action"] == "retry":
                begin_anew()
        except Exception:  # noqa: BLE001 - whatever it is, this process is of no more use
            _log.exception("the driver cannot begin anew; `zerofleet resume %s` goes on", self._run.name)
        finally:
            os._exit(RUN_FAILED)

    def _stand_aside(self, timeout_s: float) -> None:
        """Does not return when Ray is lost: then another thread ends this program."""
        if self._lost_ray.wait(timeout_s):
            threading.Event().wait()

    def _control(self, cluster: OwnRay | JoinedRay, node_spec: NodeSpec) -> int:
        """Prepares the data, and steps the controller to its end."""
        from zerofleet.cluster.ray_group import RayGroup  # takes 0.6 s, while Ray starts

        preparation = Preparation(self._prepare, self._say)
        is_ours = isinstance(cluster, OwnRay)
        group = RayGroup(cluster.join, Ask.of(self._job.cluster), node_spec, is_ours=is_ours)
        committer = Committer(self._commit)
        controller = self._controller(group, preparation, committer)
        self._watch.start()
        try:
            while not controller.state.is_final:
                if over := self._limit.look(time.time(), self._newest[1], self._config.train.steps):
                    controller.limit(over)
                    self._stops.ask()
                controller.step(time.monotonic())
            self._stand_aside(0.0)
        except Exception as error:
            self._stand_aside(_NOTICE_S)
            self._say("state", **{"from": controller.state, "to": "FAILED", "why": f"the driver failed: {error!r}"})
            raise
        finally:
            preparation.cancel()
            self._watch.close()
            committer.close()
            group.close(controller.keep_snapshots)
        return controller.exit_code

    def _check(self) -> None:
        """What can be known before anything is started. Raises UserError."""
        check_job(self._job)
        parse_faults(self._faults)
        if address := self._job.cluster.address:
            check_reachable(address)
        else:
            check_no_labels(self._job)
            check_ever_fits(Ask.of(self._job.cluster), [_this_machine()])

    def _controller(self, group: Any, preparation: Preparation, committer: Committer) -> Controller:
        stages = [Stage.TRAIN]
        if self._program.has_check:
            stages.insert(0, Stage.CHECK)
        if self._program.has_export and self._config.checkpoint.export:
            stages.append(Stage.EXPORT)
        hooks = Hooks(
            prepare=preparation.wait,
            select=self._select,
            undisturbed=committer.paused,
            claim=self._claim_attempt,
            written=committer.hear,
            outcomes=committer.outcomes,
            emit=self._emit,
            requests=self._requests,
        )
        return Controller(
            group,
            hooks,
            self._job.cluster,
            sizes=self._sizes(),
            num_steps=self._config.train.steps,
            terms=self._terms,
            last_attempt=self._last_attempt,
            stages=tuple(stages),
        )

    def _sizes(self) -> Sizes:
        cluster, train = self._job.cluster, self._config.train
        return Sizes(
            min_nodes=cluster.min_nodes or cluster.nodes,
            max_nodes=cluster.nodes,
            ranks_per_node=cluster.ranks_per_node,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            grace_s=cluster.replace_timeout_s,
            placement_timeout_s=cluster.placement_timeout_s,
        )

    def _time_limit(self) -> TimeLimit:
        """What is left of the run's hours after all other drivers."""
        cluster, before = self._job.cluster, 0.0
        if cluster.max_hours or cluster.max_cost:
            others = [record.started_at for record in driver_records(self._run) if record.number != self._number]
            before = driven_s(others, (event for event in self._run.events() if event.start < self._started_at))
        price = cluster.nodes * cluster.price_per_hour
        return TimeLimit(cluster.max_hours, before, self._started_at, cluster.max_cost, price)

    def _select(self, excluded: frozenset[Origin], snapshots: Sequence[SnapshotInfo]) -> Selection:
        """The newest state: in memory when that is as new as what storage holds, since it is there already."""
        stored = select_checkpoint(self._run, frozenset(o.checkpoint for o in excluded if not o.in_memory))
        unusable = frozenset(o.checkpoint for o in excluded if o.in_memory)
        newest = newest_snapshot(self._run, [info.meta for info in snapshots], unusable)
        if newest is None or (stored.checkpoint is not None and stored.checkpoint.step > newest.step):
            return stored
        return replace(stored, checkpoint=newest, in_memory=True, found=max(1, stored.found))

    def _claim_attempt(self, attempt: int, start: Origin | None, world_size: int, terms: Terms) -> Terms:
        checkpoint, in_memory = (start.checkpoint, start.in_memory) if start else (None, False)
        init_from = pin_init_from(self._run, self._config.run)
        train = self._config.train
        halved = (
            (train.micro_batch_size, terms.micro_batch_size) if terms.micro_batch_size < train.micro_batch_size else ()
        )
        arguments = (attempt, checkpoint, world_size, train.zero_stage, init_from, in_memory, terms.quarantine, halved)
        record = self._run.claim_attempt(*arguments)
        said = {name: getattr(record, name) for name in ("start_step", "world_size", "from_memory", "quarantine")}
        self._emit(Event("claimed", attempt, DRIVER, record.start_step, "load", record.claimed_at, data=said))
        return replace(terms, quarantine=record.quarantine)

    def _commit(self, manifest: Manifest) -> None:
        commit(self._config.checkpoint, self._run, manifest, self._log.make_ledger_durable)

    # -- the parts -------------------------------------------------------------------------------------------------
    def _prepare(self, progress: Progress) -> JobSpec:
        cache = prepare(self._config.data, self._config.run.seed, progress)
        if cache.left_out.bad:
            self._say("incident", **{"class": "data", "message": f"{cache.left_out.bad}: see {cache.path}/index.json"})
        self._build_ops(progress)
        return JobSpec(
            run=self._run.name,
            config_json=self._config.model_dump_json(),
            cache_path=str(cache.path),
            target=self._program.target,
            faults=self._faults,
            threads_per_rank=max(1, int(self._job.cluster.cpus_per_rank)),
            bind_cores=self._job.cluster.bind_cores,
            outer=os.environ.get(OUTER_VARIABLE, ""),
        )

    def _build_ops(self, progress: Progress) -> None:
        """What the job cannot do without; never inside a rank, where nobody would see that a compiler is running."""
        needed = ops.needed_by(self._config)
        if needed and (missing := ops.missing_tools()):
            raise UserError(
                f"deepspeed.zero_optimization.offload_optimizer needs {', '.join(needed)}, which has to be compiled, and "
                f"this machine lacks {' and '.join(missing)}: install it, or remove the section"
            )
        ops.build(needed, lambda op, s: progress(f"build {op}", min(s / _BUILD_S, 0.99), f"{s:.0f} s, once"))

    def _node_spec(self) -> NodeSpec:
        storage = self._run.storage
        return NodeSpec(
            run=self._run.name,
            node_rank=0,
            accelerator="cuda" if self._job.cluster.gpus_per_rank else "cpu",
            log_folder=str(storage.local_path("logs")) if storage.is_local else None,
            storage_url=storage.url,
            namespace=run_namespace(self._run),
            model_type=str(self._config.model.config.get("model_type", "")),
            preload=self._program.preload,
            snapshots=snapshot_folder(self._run),
        )

    # -- requests and events ---------------------------------------------------------------------------------------
    def _requests(self) -> list[str]:
        """Signals, and what the run folder holds."""
        return [*self._stops.take(), *self._watch.take()]

    def _fail(self, error: UserError) -> None:
        """The run ends before there is a controller."""
        self._say("error", type=type(error).__name__, message=str(error), traceback="", user=True)
        self._say("state", **{"from": "PENDING", "to": "FAILED", "why": str(error)})

    def _say(self, kind: str, **data: Any) -> None:
        self._emit(Event(kind, self._last_attempt + 1, DRIVER, 0, "init", time.time(), data=data))

    def _emit(self, event: Event) -> None:
        """To the run folder, and what is notable to this process's log too."""
        self._newest = max(self._newest[0], event.attempt), max(self._newest[1], event.step)
        self._log.emit(event)
        write_log_line(event)


def _this_machine() -> NodeResources:
    """What the local Ray is given: the cores that this process may use, and the GPUs."""
    cpus, gpus = num_cores(), visible_gpus()
    return NodeResources("local", socket.gethostname(), cpus, gpus, cpus, gpus)


if __name__ == "__main__":
    sys.exit(main())
