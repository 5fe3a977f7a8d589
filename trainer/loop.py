"""One rank's life: build, load, train, evaluate, save, obey. `train` is the table of contents."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from zerofleet.trainer.batch import BatchPlan, block_seed
from zerofleet.trainer.checkpoint.adapters import adapter_for
from zerofleet.trainer.checkpoint.cadence import Cadence
from zerofleet.trainer.checkpoint.export import publish_model_files
from zerofleet.trainer.checkpoint.save import Saver, Source, make_saver, versions
from zerofleet.trainer.checkpoint.select import newest_commit_at
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.feed import Feed, MicroBatch, StepPlan
from zerofleet.trainer.description import describe
from zerofleet.trainer.driver_records import driver_records
from zerofleet.trainer.engine import build_engine, clips_itself, init_distributed, is_finite, seed_generators
from zerofleet.trainer.errors import LossSpike, NonFiniteStep, ReplicaDivergence, ZerofleetError
from zerofleet.trainer.events import Control, ControlSource, Report
from zerofleet.trainer.exchange import StepShare, StepSum, agree, agree_on, exchange, odd_ranks, replica_digest
from zerofleet.trainer.flops import device_peak
from zerofleet.trainer.keeper import Keeper
from zerofleet.trainer.model import DTYPES, check, config_digest
from zerofleet.trainer.own_time import own_time
from zerofleet.trainer.probe import PROBE_TOKENS, check_probe, other_code, probe_batch
from zerofleet.trainer.profiler import Profiler
from zerofleet.trainer.reporter import Fault, Reporter, no_fault
from zerofleet.trainer.restore import Restore
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.schedule import learning_rate
from zerofleet.trainer.silos.member import Member
from zerofleet.trainer.spikes import RecentLosses
from zerofleet.trainer.token_loss import on_device
from zerofleet.trainer.waits import Waits
from zerofleet.trainer.world import World

_SPIKE = 100.0  # what an injected spike multiplies a rank's loss with


def nothing_to_do() -> None:
    """What precedes a commit where whoever commits has made everything durable already."""


def train(
    config: TrainConfig,
    world: World,
    cache_path: Path,
    report: Report,
    control: ControlSource,
    fault: Fault = no_fault,
    snapshots: Path | None = None,
    before_commit: Callable[[], None] = nothing_to_do,
) -> None:
    """Runs one rank from the state that its attempt's record names to the last step, or to a stop.

    `snapshots` is the node agent's folder for them; without an agent the ranks write to storage and rank 0 commits, after
    `before_commit()`. Needs torchrun's environment variables. Raises UserError, CheckpointUnusable, NonFiniteStep,
    LossSpike, ReplicaDivergence, StorageError, WrongFragment; whatever is raised ends the rank.
    """
    loop = Loop(config, world, cache_path, report, control, fault, snapshots, before_commit)
    loop.build()
    loop.load()
    loop.run()


class Loop:
    """The state of one rank. `step` is the number of steps done; the step that is running is `step + 1`."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        cache_path: Path,
        report: Report,
        control: ControlSource,
        fault: Fault = no_fault,
        snapshots: Path | None = None,
        before_commit: Callable[[], None] = nothing_to_do,
    ) -> None:
        assert config.run.name is not None
        self.world, self._control = world, control
        self._report, self._snapshots, self._before_commit = report, snapshots, before_commit
        self.reporter = Reporter(world, report, fault)
        self.folder = RunFolder(config.run.storage, config.run.name)
        self.cache = DataCache.open(cache_path, config.data.stream)
        self.attempts = self.folder.attempts()
        self.record = next(a for a in self.attempts if a.attempt == world.attempt)
        self.config = config.with_micro_batch(self.record.micro_batch_size(config.train.micro_batch_size))
        train = self.config.train
        self.plan = BatchPlan.of(train.global_batch_size, train.micro_batch_size, world.world_size)
        self.losses = RecentLosses()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.reporter.step

    # -- build and load --------------------------------------------------------------------------------------------
    def build(self) -> None:
        """Process group, model, engine, adapter; refuses fragments that are not what they say."""
        self.reporter.begin("init", pid=os.getpid(), node=self.world.node_name)
        torch.use_deterministic_algorithms(self.config.train.deterministic)
        self.device = init_distributed(self.world, self.config.train.keep_freed_memory)
        self.reporter.begin("build")
        resolved = check(self.config, self.cache)
        self.fingerprints = {
            "data": self.cache.fingerprint,
            "tokenizer": self.cache.tokenizer_fingerprint,
            "model": config_digest(resolved.to_dict()),
            "job": f"seed {self.config.run.seed}, global batch {self.config.train.global_batch_size}",
        }
        agree_on(self.fingerprints)
        if self.world.rank == 0:
            publish_model_files(self.folder, resolved, self.cache.tokenizer_path)
        self.built = build_engine(self.config, resolved, self.plan, self.device)
        self.engine = self.built.engine
        self.adapter = adapter_for(self.engine)
        Member.reserve(self.adapter, self.config.silo)
        self._check_fragments()
        self.own = own_time(self.device, self.config.train.zero_stage)
        self.peak = device_peak(self.device, DTYPES[self.config.train.precision])
        self.feed = Feed.of(self.config, self.cache.train, self.plan, self.config.order_key, self.record.quarantine)
        self.keeper = Keeper(self.reporter, self._make_saver(), self._make_cadence(), self._probe)
        mine = (self.world, self.record.token, self.adapter, self.device, self.reporter, self._control)
        self.member = Member.of(self.config, *mine, self.keeper.settle, self.feed.num_tokens, self.folder.storage)
        wanted = self.config.train.profile
        self.profiler = Profiler(wanted, self.world, self.folder.storage, self.reporter, self.device)
        self.waits = Waits.on(self.device, self.world.local_rank, self.keeper.take_stall_s)

    def _make_saver(self) -> Saver:
        """To memory where there is an agent and room, else to storage. Collective."""
        alive = functools.partial(self.reporter.alive, "save")
        source = Source(
            config=self.config,
            run=self.folder,
            world=self.world,
            adapter=self.adapter,
            fingerprints=self.fingerprints,
            quarantine=self.record.quarantine,
            losses=self.losses,
            report=self._report,
            alive=alive,
            start_step=self.record.start_step,
        )
        return make_saver(source, self._snapshots, self.record.token, self._before_commit)

    def _make_cadence(self) -> Cadence:
        run_s = time.time() - self.attempts[0].claimed_at
        # Not since this attempt's start: the next may come before a save is due.
        commit_at = newest_commit_at(self.folder) if self.config.checkpoint.interval_s and not self.world.rank else None
        return Cadence(
            self.config.checkpoint,
            failures=max(0, len(self.attempts) - max(1, len(driver_records(self.folder)))),  # a resume is none
            observed_s=run_s,
            durable_at=time.monotonic() - (time.time() - commit_at if commit_at else run_s),
        )

    def _check_fragments(self) -> None:
        problem: ZerofleetError | None = None
        try:
            self.adapter.check_fragments()
        except ZerofleetError as error:
            problem = error
        agree(problem)

    def load(self) -> None:
        """The state that the attempt's record names; else the weights of `init_from`; else the initial weights."""
        self.reporter.begin("load")
        restore = Restore(
            self.folder,
            self.config.run.storage,
            self.world,
            self.adapter,
            self.fingerprints,
            self.device,
            self.reporter,
            self._snapshots,
        )
        if manifest := restore.start_of(self.record):
            self.losses.restore(manifest.recent_losses)
            self.keeper.restored(manifest.step, self.record.from_memory)
            if not self.record.from_memory:
                check_probe(self._probe(manifest.probe_tokens), manifest, versions(), self.device)
            elif self.world.rank == 0 and (told := other_code(manifest, versions())):
                self.reporter.event("incident", "load", **told)

    # -- the run ---------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Steps until the last one or a stop; evaluates and saves where the config says so."""
        train = self.config.train
        if self.world.rank == 0:
            describe(self.config, self.plan, self.built, self.cache, self.peak, self.reporter)
        control = self.member.begin() if self.member else Control()
        if self.step == 0 and control.action != "stop":
            self.evaluate()
            self.reporter.release()
        if control.action == "stop" or (control := self._outer_step(control)).action == "stop":
            if self.step:
                self.keeper.keep(control)
            return self._end("stopped")
        if self.built.is_compiled:
            self.reporter.begin("build")  # the first step's compilation, whose limit of silence is not that of a step
        while not self._is_last():
            control = self._outer_step(self.profiler.step(self.train_step))
            last = self._is_last()
            if last or (train.eval_interval_steps and self.step % train.eval_interval_steps == 0):
                self.evaluate()
            self.keeper.keep(Control("save") if last else control, is_last=last)
            if control.action == "stop" and not last:
                return self._end("stopped")
        if self.keeper.saved_step != self.step:
            self.keeper.keep(Control("save"), is_last=True)
        self._end("finished")

    def _schedule_step(self) -> int:
        """Where the run stands in its schedule: beyond its own steps in a silo that has missed rounds."""
        return self.member.schedule_step(self.step) if self.member else self.step

    def _is_last(self) -> bool:
        """Whether no step is left, of the silos' common ones either."""
        return self._schedule_step() >= self.config.train.steps and not (self.member and self.member.is_due)

    def _outer_step(self, control: Control) -> Control:
        """The step between silos, where one is due and no stop was asked for: a run that goes on begins with it."""
        if self.member is None or not self.member.is_due or control.action == "stop":
            return control
        control = max(control, self.member.exchange(), key=lambda each: each.code)
        self.keeper.saved_step = None  # what was saved at this step is another state
        return control

    def train_step(self) -> Control:
        """One optimizer step. Returns what all ranks were asked to do after it."""
        start, began = time.time(), time.perf_counter()
        self.own.alone()
        plan = self.feed.step_plan(self.step)
        self.feed.read_ahead(plan)
        fault = self.reporter.fault("step", self.step + 1, plan.ranges)
        self._set_learning_rate()
        share = StepShare(control=self._wanted().code)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        loss_scale = self.adapter.missing_loss_scale()
        fed = self.feed.with_wrong_sample(plan, self.world.rank) if fault == "wrong_sample" else plan
        self.own.stop()
        for micro_batch in self.waits.of(self.feed.micro_batches(fed, self.world.rank)):
            self.own.alone()
            share.add(micro_batch)
            loss = self._loss(micro_batch)
            if fault == "spike":
                loss = loss * _SPIKE
            loss_sum += loss.detach()
            self.own.among_others()
            scaled = loss * (loss_scale * self.world.world_size / plan.num_tokens)
            self.engine.backward(scaled * float("nan") if fault == "nan" else scaled, scale_wrt_gas=False)
            grad_norm = self._optimizer_step(plan) / loss_scale
            self.own.stop()
        share.loss_sum = float(loss_sum)
        total = exchange(share, self.device, self.world.world_size)
        self.reporter.release()  # every rank has settled: the step before is safe
        self.reporter.step += 1
        self._check_applied(plan, grad_norm)
        self._check_spike(plan, total.loss_sum / total.num_tokens)
        self._check_replicas()
        self._record(plan, total, grad_norm, start, time.perf_counter() - began)
        return Control.from_code(total.control)

    def _wanted(self) -> Control:
        """What this rank wants done after the step: what it was asked, and on rank 0 also what is due."""
        asked = self._control()
        return asked if self.world.rank else self.keeper.due(asked)

    def _loss(self, batch: MicroBatch) -> torch.Tensor:
        """Cross entropy summed over real tokens: a block of padding gives 0 and a zero gradient."""
        seed_generators(block_seed(self.config.run.seed, self.step, batch.block), self.device)
        return self.built.token_loss(*on_device(batch, self.device))

    def _optimizer_step(self, plan: StepPlan) -> float:
        """DeepSpeed's step; on the last micro-step of the step it updates the weights. Returns the gradient norm, NaN before."""
        is_boundary = self.engine.is_gradient_accumulation_boundary()
        if is_boundary:
            self.keeper.settle()
            if self.member:
                self.member.add_proximal_gradient(self.engine)
        if clips_itself(self.config) and is_boundary:
            limit = self.config.train.gradient_clipping or float("inf")
            norm = float(torch.nn.utils.clip_grad_norm_(self.built.model.parameters(), limit))
            if not is_finite(norm):
                raise NonFiniteStep(self.step + 1, norm, plan.ranges)
            self.engine.step()
            return norm
        self.engine.step()
        # Only at the boundary: reading the norm waits for the device.
        found = self.engine.get_global_grad_norm() if is_boundary else None
        return float("nan") if found is None else float(found)

    def _check_applied(self, plan: StepPlan, grad_norm: float) -> None:
        """DeepSpeed skips a step with a NaN silently. In fp16 that is how the loss scale adapts; elsewhere it is an incident."""
        applied = self.engine.was_step_applied() and is_finite(grad_norm)
        if applied:
            return
        if self.config.train.precision == "fp16":
            if self.world.rank == 0:
                self.reporter.event(
                    "skipped",
                    "step",
                    message=f"step {self.step} overflowed in fp16 and was skipped; the loss scale is halved",
                )
            return
        raise NonFiniteStep(self.step, grad_norm, plan.ranges)

    def _check_spike(self, plan: StepPlan, loss: float) -> None:
        """The loss is the same number on every rank, and so is what it is compared with: all raise, or none."""
        limit, score = self.config.train.loss_spike_threshold, self.losses.score(loss)
        if limit and score > limit:
            raise LossSpike(self.step, loss, score, limit, plan.ranges)
        self.losses.add(loss)

    def _check_replicas(self) -> None:
        every = self.config.train.replica_check_interval_steps
        if self.config.train.zero_stage == 3 or not every or self.step % every:
            return
        if odd := odd_ranks(replica_digest(self.built.model), self.device, self.world.world_size):
            raise ReplicaDivergence(self.step, odd)

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.config.train, self._schedule_step())
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def evaluate(self) -> None:
        """Mean loss per token over held-out sequences."""
        if not self.cache.heldout.num_sequences:
            return
        self.reporter.begin("eval")
        start, began = time.time(), time.perf_counter()
        share = StepShare()
        num_sequences = self.config.train.eval_sequences
        with self.built.evaluating():
            for batch in self.feed.heldout_blocks(self.cache.heldout, num_sequences, self.world.rank):
                self.reporter.alive("eval")
                share.add(batch)
                share.loss_sum += float(self._loss(batch))
        total = exchange(share, self.device, self.world.world_size)
        if self.world.rank == 0:
            loss = total.loss_sum / total.num_tokens
            self.reporter.hold("eval", "eval", start, time.perf_counter() - began, loss=loss, tokens=total.num_tokens)

    def _probe(self, num_tokens: int = PROBE_TOKENS) -> float:
        """The probe loss of the weights as they are, nats per token. Collective at stage 3."""
        batch = probe_batch(self.cache, self.config.data.document_mask, num_tokens)
        with self.built.evaluating():
            loss = float(self._loss(batch))
        return loss / max(1, batch.num_tokens)

    def _end(self, kind: str) -> None:
        self.keeper.settle()
        self.profiler.close()
        dist.barrier()
        self.reporter.release()
        self.reporter.begin("end")
        if self.world.rank == 0:
            self.reporter.event(kind, "end")
        dist.barrier()
        dist.destroy_process_group()

    # -- what rank 0 says ------------------------------------------------------------------------------------------
    def _record(self, plan: StepPlan, total: StepSum, grad_norm: float, start: float, seconds: float) -> None:
        """Ledger and report. Raises DataError through `StepSum.verify` when the ranks did not feed what the step plans."""
        total.verify(self.step, len(plan.positions), plan.num_tokens)
        if self.world.rank:
            return self.reporter.event("phase", "step", start, seconds, **self.own.take(), **self.waits.take())
        self.keeper.stepped(seconds)
        data, micro_batch_size = self.fingerprints["data"], self.plan.micro_batch_size
        entry = total.ledger_entry(self.step, self.world, plan.ranges, data, micro_batch_size)
        rate = total.num_tokens / seconds
        length, peak = self.config.data.sequence_length, self.peak.flops_per_second * self.world.world_size
        self.reporter.hold(
            "step",
            "step",
            start,
            seconds,
            ledger=entry.to_dict(),
            loss=total.loss_sum / total.num_tokens,
            grad_norm=grad_norm,
            learning_rate=self.engine.optimizer.param_groups[0]["lr"],
            tokens=total.num_tokens,
            tokens_per_second=rate,
            mfu=rate * self.built.shape.flops_per_token(length) / peak,
            mfu_causal=rate * self.built.shape.flops_per_token(length, causal=True) / peak,
            **self.own.take(),
            **self.waits.take(),
        )
