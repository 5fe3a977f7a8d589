"""The life of a run: `state.State` is the design; `Controller.step` moves it on, with a clock that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from zerofleet.cluster.attempt import Attempt, Stage
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.departures import Departures
from zerofleet.cluster.ending import End, left_in_memory, newest_in_words
from zerofleet.cluster.group import Group, Placement
from zerofleet.cluster.hooks import Hooks, Origin, Skips, origin_of, unusable_origins
from zerofleet.cluster.policy.failure import TERMS, Decision, Failure, Terms, decide
from zerofleet.cluster.policy.heartbeat import Limits
from zerofleet.cluster.policy.sizing import Decision as SizeDecision
from zerofleet.cluster.policy.sizing import Sizes
from zerofleet.cluster.replicas import Replicas
from zerofleet.cluster.saves import Saves
from zerofleet.cluster.sizer import Sizer
from zerofleet.cluster.spec import JobSpec
from zerofleet.cluster.state import State
from zerofleet.cluster.suspicion import Suspicion
from zerofleet.cluster.transitions import Transitions
from zerofleet.cluster.verdict import LOST_MEANWHILE, Verdict, judge
from zerofleet.cluster.waiting import Insistence, Limit
from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.events import Control, Event

WAIT_S = 0.5
"""Longest that one `step` waits for something to happen."""
HEARTBEAT_INTERVAL_S = 10.0
_SETTLE_S = 1.0
"""A broken connection alone only says that someone else has gone: so long the cause may take to be heard."""
_END_TIMEOUT_S = 30.0
"""How long ranks may take to exit after they have finished or stopped."""


class Controller(Transitions):
    """One driver's control of a run, from PENDING to a final state."""

    def __init__(
        self,
        group: Group,
        hooks: Hooks,
        config: ClusterConfig,
        *,
        sizes: Sizes,
        num_steps: int,
        terms: Terms = TERMS,
        last_attempt: int = 0,
        stages: tuple[Stage, ...] = (Stage.CHECK, Stage.TRAIN, Stage.EXPORT),
    ) -> None:
        """`num_steps` of the whole run; `last_attempt` is the newest one that was claimed; `stages` in the order they are run."""
        super().__init__(hooks.emit)
        self._group, self._hooks, self._config = group, hooks, config
        self._job: JobSpec | None = None
        self._stages, self._claimed = list(stages), last_attempt
        self._attempt = Attempt(last_attempt + 1, self._stages[0], None, 0, 0.0)
        self._failures: list[Failure] = []
        self._terms = terms
        self._excluded: frozenset[Origin] = frozenset()
        self._skips, self._heartbeat_at = Skips(), float("-inf")
        self._late, self._last_step = "", 0
        self._saves, self._replicas = Saves(), Replicas()
        self._sizer, self._num_steps = Sizer(sizes), num_steps
        self._limits = Limits(config.stall_timeout_s, group.world_size)
        self._suspicion, self._departures = Suspicion(group.stacks), Departures(group.departing)
        self._change: tuple[Callable[[], None], str] = (lambda: None, "")  # what RESIZING is for
        self._end: End | None = None
        self._insistence = Insistence(self._say_storage)
        self.keep_snapshots = True
        """Whether the agents' memory holds what storage does not, as far as is known."""

    @property
    def _place(self) -> tuple[int, int]:
        return self._attempt.number, self._attempt.step

    def step(self, now: float) -> None:
        """Moves the run on; waits at most about WAIT_S. `now` is monotonic, in seconds."""
        if now - self._heartbeat_at >= HEARTBEAT_INTERVAL_S:
            self._heartbeat_at = now
            self._say("heartbeat")
            if self.state is State.RUNNING and self._sizer.can_grow:
                self._sizer.saw(self._group.available(), now)
        try:
            for action in self._hooks.requests():
                self._obey(action, now)
            if self._end is not None:
                self._wait_for_end(now, self._end)
            elif self._insistence.is_waiting:
                self._listen(now)
                self._insistence.step(now)
            elif not self.state.is_final:
                getattr(self, f"_{self.state.lower()}")(now)
        except ZerofleetError as error:
            self._fail(now, str(error), error.exit_code, is_user_error=isinstance(error, UserError))

    # -- one handler per state -------------------------------------------------------------------------------------
    def _pending(self, now: float) -> None:
        self._enter(State.PREPARING, now, "the job was taken")

    def _preparing(self, now: float) -> None:
        self._group.place(None, 0.0)  # a cluster of our own is brought up meanwhile
        self._job = self._hooks.prepare(WAIT_S)
        if self._job is not None:
            self._enter(State.PLACING, now, "the data is prepared")

    def _placing(self, now: float) -> None:
        placement = self._group.place(self._job, WAIT_S)
        if not placement.is_ready:
            return self._wait_for_nodes(now, placement)
        for finding in placement.findings:
            self._say("incident", **{"class": "node", "message": str(finding)})
        if unfit := [finding for finding in placement.findings if finding.level == "error"]:
            if self._leave_out([finding.node for finding in unfit]):
                return
            return self._conclude(now, State.FAILED, f"pre-flight failed: {'; '.join(map(str, unfit))}", 1)
        self._launch(now, "all node agents are up")

    def _wait_for_nodes(self, now: float, placement: Placement) -> None:
        decision = self._sizer.gather(placement, self._entered_at, now)
        if decision.action == "fail":
            limit = f"cluster.placement_timeout_s={self._config.placement_timeout_s:g}"
            self._conclude(now, State.FAILED, f"no placement within {limit}: {placement.missing}", 3)
        elif decision.action == "go on":
            self._resize(decision)

    def _leave_out(self, names: Sequence[str]) -> bool:
        """Whether other nodes take the place of these."""
        if left := self._group.leave_out(names):
            self._say("info", message=f"the run goes on without node {', '.join(left)}: others take their place")
        return bool(left)

    def _resize(self, decision: SizeDecision) -> None:
        self._say("info", message=f"{decision.reason} ({self._group.num_nodes} -> {decision.nodes} nodes)")
        self._group.resize(decision.nodes)
        # Other steps: what was learned of the old ones would raise false alarms, or none.
        self._limits = Limits(self._config.stall_timeout_s, self._group.world_size)

    def _starting(self, now: float) -> None:
        self._listen(now)
        if self._has_broken(now):
            return self._enter(State.RECOVERING, now, "an attempt failed while it started")
        if self._has_ended(now):
            return self._next_stage(now)
        if self._attempt.has_stepped:
            return self._enter(State.RUNNING, now, "the first step is done")
        if now - self._attempt.started_at > self._config.start_timeout_s:
            limit, where = f"cluster.start_timeout_s={self._config.start_timeout_s:g}", self._attempt.where_ranks_are()
            self._late = f"the first step was not done within {limit}; {where}"
            self._enter(State.RECOVERING, now, self._late)

    def _running(self, now: float) -> None:
        self._listen(now)
        if self._has_broken(now):
            return self._enter(State.RECOVERING, now, "an attempt failed")
        if self._has_ended(now):
            return self._next_stage(now)
        if self._attempt.stage is Stage.TRAIN and (leaving := self._departures.look(now)):
            named = ", ".join(map(str, leaving))
            self._change = (partial(self._group.release, leaving), f"{named} is given back: another takes its place")
            self._save_and(State.RESIZING, now, f"{named} will be taken away: the ranks save at the end of their step")

    def _save_and(self, state: State, now: float, why: str) -> None:
        self._group.control(Control("stop"))
        self._enter(state, now, why)

    def _resizing(self, now: float) -> None:
        """As if a stop had been asked for; then the run goes on at once, on other nodes, from memory where storage does not take the state."""
        self._listen(now)
        if self._has_broken(now):
            return self._enter(State.RECOVERING, now, "an attempt failed while it was to be resized")
        if self._has_ended(now):
            if self._attempt.is_finished:
                return self._next_stage(now)
            self._kill(now)
            change, why = self._change
            change()
            self._enter(State.PLACING, now, why)

    def _draining(self, now: float) -> None:
        self._listen(now)
        if self._has_ended(now):
            return self._next_stage(now)
        if over := now - self._entered_at > self._config.stop_timeout_s:
            self._kill(now)
            cause = f"cluster.stop_timeout_s={self._config.stop_timeout_s:g} was over before the checkpoint was durable"
        elif self._has_broken(now):
            cause = self._judge(now).sentence
        else:
            return
        self._conclude(now, State.STOPPED, cause, 3 if over else 1)

    def _recovering(self, now: float) -> None:
        """Ends what is left of the attempt, judges, decides, and goes on from the newest checkpoint that can be used."""
        self._decide(now, self._judge(now))

    def _decide(self, now: float, verdict: Verdict) -> None:
        self._excluded |= unusable_origins(verdict, self._failures, self._attempt.start)
        self._failures.append(Failure(verdict, self._attempt.step, self._attempt.base_step, self._terms))
        decision = decide(self._failures, self._config.max_failures, self._config.max_quarantined_steps)
        if self._attempt.stage is not Stage.TRAIN and len(self._failures) > 1:
            decision = Decision("stop", f"the {self._attempt.stage} failed twice")
        self._say_verdict(verdict, decision)
        if decision.action == "stop":
            why = verdict.user_error or f"{verdict.sentence}. Stopping: {decision.reason}"
            return self._conclude(now, State.FAILED, why, 2 if verdict.user_error else 1)
        self._terms = self._terms.after(decision)
        self._leave_out(decision.without)
        if not self._group.place(self._job, 0.0).is_ready:
            return self._enter(State.PLACING, now, "a node must be replaced")
        self._launch(now, decision.reason)

    # -- attempts --------------------------------------------------------------------------------------------------
    def _launch(self, now: float, why: str) -> None:
        """Starts the next stage of the run as soon as storage lets it."""
        limit, what = Limit.of(self._config, "storage_timeout_s"), f"the {self._stages[0]} cannot start"
        self._insistence.begin(now, what, partial(self._start_stage, why), self._fail, limit)

    def _start_stage(self, why: str, now: float) -> None:
        """Training as a new attempt. Raises StorageError."""
        assert self._job is not None
        stage, number, start = self._stages[0], self._attempt.number, None
        if stage is Stage.TRAIN:
            with self._hooks.undisturbed():
                start = self._select()
                if self._group.is_whole:  # else what the lost node holds would be passed over for good
                    number = self._claim(start, now)
        if not self._group.is_whole:
            self._kill(now)
            return self._decide(now, LOST_MEANWHILE)
        ranks = 1 if stage is Stage.EXPORT else self._group.world_size
        self._attempt = Attempt(number, stage, start, ranks, now, step=self._last_step, limits=self._limits)
        self._late = ""
        self._suspicion.forget()
        job = self._job if stage is Stage.TRAIN else replace(self._job, target=stage.target)
        memory = start.checkpoint if start and start.in_memory else None
        self._group.start(job, number, ranks, stage.log_name, memory)
        if stage is not Stage.EXPORT:
            self._enter(State.STARTING, now, f"{why}; from {start or 'the beginning'}" if stage is Stage.TRAIN else why)
        elif self.state is not State.DRAINING:
            self._enter(State.RUNNING, now, "training is done and durable; exporting the model")

    def _claim(self, start: Origin | None, now: float) -> int:
        """The number of the attempt that goes on from there."""
        self._terms = self._hooks.claim(self._claimed + 1, start, self._group.world_size, self._terms)
        self._claimed += 1
        self._saves.begin(start.checkpoint.step if start else 0, {origin.checkpoint for origin in self._excluded})
        self._sizer.launched(self._group.num_nodes, now, self._terms.micro_batch_size)
        return self._claimed

    def _select(self) -> Origin | None:
        """The newest state that can be used. Never silently from scratch: ZerofleetError when there are only bad ones."""
        selection = self._hooks.select(self._excluded, self._group.snapshots())
        for message in self._skips.news(selection.skipped, self._attempt.save_in_flight):
            self._say("incident", **{"class": "checkpoint", "message": message})
        return origin_of(selection)

    def _next_stage(self, now: float) -> None:
        """The ranks have ended as they should."""
        attempt = self._attempt
        if attempt.stage is Stage.TRAIN and (why := self._lost_end(now)):
            return self._conclude(now, State.FAILED if attempt.is_finished else State.STOPPED, why, 1)
        if attempt.stage is Stage.TRAIN and not attempt.is_finished:
            self.keep_snapshots = False
            return self._stopped(now, f"stopped; the checkpoint of step {attempt.checkpoint_step} is durable")
        self._kill(now)
        self._stages.pop(0)
        self._failures.clear()
        if attempt.stage is Stage.TRAIN:
            self._last_step, self.keep_snapshots = attempt.step, False
        if not self._stages:
            return self._enter(State.FINISHED, now, f"all {self._last_step} steps are done")
        self._launch(now, "the model takes the data")

    def _listen(self, now: float) -> None:
        for event in self._group.poll(self._attempt.patience_s(now, WAIT_S)):
            self._hear(event, now)
        for incident in self._attempt.take_incidents():
            self._say("incident", **incident)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Takes in what has come of saves, and lets rank 0 begin the next."""
        for outcome in self._hooks.outcomes():
            self._saves.settle(outcome)
            if outcome.is_superseded and outcome.checkpoint.attempt == self._claimed:
                self.keep_snapshots = False
                raise UserError(f"{outcome.message}: this driver ends, and its ranks with it")
            if outcome.is_durable:
                self._hear(outcome.event(), now)
                self._grow_if_it_pays(now)
            else:
                self._say_storage(f"{outcome.trouble()}; {self._saves.since()}", given_up=outcome.is_settled)
            if outcome.is_settled:
                self._group.control(Control(settled_step=outcome.checkpoint.step))

    def _grow_if_it_pays(self, now: float) -> None:
        if self.state is not State.RUNNING or self._attempt.stage is not Stage.TRAIN or not self._sizer.can_grow:
            return
        step = self._attempt.step
        decision = self._sizer.at_commit(self._num_steps - step, step - self._attempt.checkpoint_step, now)
        if decision.action == "grow":
            self._change = (partial(self._resize, decision), "the run grows")
            self._save_and(State.RESIZING, now, decision.reason)

    def _kill(self, now: float) -> None:
        for event in self._group.kill():
            self._hear(event, now)

    def _hear(self, event: Event, now: float) -> None:
        event = event if event.attempt else replace(event, attempt=self._attempt.number)
        self._attempt.hear(event, now)
        event = self._saves.hear(event)
        self._hooks.emit(event)  # first: a commit makes durable what was written down before it
        if event.kind in ("written", "unwritten"):
            self._hooks.written(event)
        elif event.kind == "step":
            self._sizer.stepped(event, now)
        elif event.kind == "replicated" and (settled := self._replicas.hear(event)):
            if settled.is_news:
                self._say("incident" if settled.problem else "info", **settled.told())
            self._group.replicated(settled.checkpoint, is_whole=not settled.problem)

    def _has_broken(self, now: float) -> bool:
        attempt, stall_s = self._attempt, self._config.stall_timeout_s
        return attempt.has_failed(now, _SETTLE_S) or self._suspicion.look(attempt, now, stall_s)

    def _has_ended(self, now: float) -> bool:
        """Whether all ranks are done and gone, and what they left is durable or cannot be; who does not go is ended then."""
        attempt = self._attempt
        if late := attempt.overdue(now, _END_TIMEOUT_S):
            self._say("incident", **{"class": "hang", "message": late})
        return attempt.has_ended() and (attempt.ordered_step <= attempt.checkpoint_step or bool(self._lost_end(now)))

    def _judge(self, now: float) -> Verdict:
        if silent := self._suspicion.silent:
            self._say_stacks(self._suspicion.stacks)
        self._kill(now)
        return judge(self._attempt.evidence(silent, self._late, self._suspicion.stacks if silent else None))

    def _newest(self) -> str:
        """The newest checkpoint of the run, in words."""
        return newest_in_words(self._attempt.checkpoint_step, partial(self._hooks.select, self._excluded, []))

    # -- the end ---------------------------------------------------------------------------------------------------
    def _conclude(self, now: float, state: State, why: str, exit_code: int) -> None:
        """Ends the run, after what only the agents' memory holds has been made durable."""
        rescue, limit = partial(self._rescue, state, why, exit_code), Limit.of(self._config, "stop_timeout_s")
        self._insistence.begin(
            now, "what is durable cannot be seen", rescue, partial(self._lose_sight, state, why, exit_code), limit
        )

    def _rescue(self, state: State, why: str, exit_code: int, now: float) -> None:
        """Raises StorageError."""
        whole, kept = left_in_memory(partial(self._hooks.select, self._excluded), self._group, self._saves.durable_step)
        if whole is None:
            self.keep_snapshots = bool(kept)
            ending = f"; {self._newest()}" if state is State.STOPPED else ""
            return self._finish(now, state, f"{why}{ending}{kept}", exit_code)
        self._end = End(state, why, exit_code, whole, now)
        self._saves.ordered_again(whole)
        self._group.persist(whole)

    def _wait_for_end(self, now: float, end: End) -> None:
        self._listen(now)
        reached, is_durable = end.look(self._saves, now, self._config.stop_timeout_s, self._newest)
        if reached is not None:
            self.keep_snapshots, self._end = self.keep_snapshots and not is_durable, None
            if is_durable and self._attempt.has_trained:
                return self._next_stage(now)  # what was to end the run has come right meanwhile
            self._finish(now, reached.state, reached.why, reached.exit_code)

    def _lost_end(self, now: float) -> str:
        return self._saves.lost_end(self._attempt, now, self._config.stop_timeout_s)

    # -- requests --------------------------------------------------------------------------------------------------
    def _obey(self, action: str, now: float) -> None:
        if self.state.is_final:
            return
        is_training = self.state in (State.STARTING, State.RUNNING) and self._attempt.stage is Stage.TRAIN
        if action == "save":
            if is_training:
                self._group.control(Control("save"))
        elif action == "stacks":
            self._say_stacks(self._group.stacks())
        elif action == "end":
            self._kill(now)
            self._stopped(now, f"stopped at once; {self._newest()}")
        elif self.state is State.RESIZING:
            self._enter(State.DRAINING, now, "a stop was asked for, and the ranks are saving already")
        elif not is_training and self.state is not State.DRAINING and self._end is None:
            self._kill(now)
            self._conclude(now, State.STOPPED, f"stopped {self._attempt.stage.when_stopped(bool(self._claimed))}", 0)
        elif is_training and self._end is None:
            self._save_and(State.DRAINING, now, "a stop was asked for: the ranks save at the end of their step")
