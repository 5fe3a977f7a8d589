"""Runs real ranks (DeepSpeed on gloo) of a job, forked from a pre-imported server: a whole run takes a second or two."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.quarantine import Ranges
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.init_from import pin_init_from
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.world import World, free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.preload"])

TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@dataclass
class Outcome:
    """What the ranks of one attempt reported. `errors` holds (rank, type name, message) of uncaught exceptions."""

    attempt: int
    events: list[Event] = field(default_factory=list)
    errors: list[tuple[int, str, str]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def of(self, kind: str) -> list[Event]:
        return [e for e in self.events if e.kind == kind]

    def losses(self) -> dict[int, float]:
        return {e.step: e.data["loss"] for e in self.of("step")}


@dataclass(frozen=True)
class Plan:
    """Faults and requests of a test: at the start of step `step`, on rank `rank`."""

    nan_at: tuple[int, int] | None = None
    """(rank, step)"""
    spike_at: tuple[int, int] | None = None
    wrong_sample_at: tuple[int, int] | None = None
    kill_at: tuple[int, int] | None = None
    delta_fault: str | None = None
    """What becomes of the part of every delta that rank 0 of a silo sends."""
    stop_after: int | None = None
    """Rank 0 asks for a stop during this step."""
    slow: tuple[int, float, str] | None = None
    """(rank, seconds, "sleeps" or "computes"): what it does in addition at the start of every step."""
    slow_data_s: float = 0.0
    """By which every micro-batch comes later."""
    slow_writes_s: float = 0.0
    """Which every file takes longer to be written to storage."""
    changing_shapes: bool = False
    """Every step computes with one token less than the one before."""
    cache_of_rank: dict[int, str] = field(default_factory=dict)
    """Ranks whose node has other prepared data."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of every rank."""
    least_shared_bytes: int | None = None
    """From which size on tensors travel through shared memory."""
    shared_log: Path | None = None
    """Each rank writes a line for every tensor that did."""
    gradients_log: Path | None = None
    """Each rank writes a line for every call that DeepSpeed's BF16_Optimizer makes to our ways with gradients."""
    plain_gradients: bool = False
    """That optimizer as DeepSpeed made it."""


def job(folder: Path, corpus: Path, **changes) -> TrainConfig:
    """A tiny job; `train__steps=5` changes train.steps."""
    sections = {
        "run": {"name": "tiny", "storage": str(folder / "runs")},
        "model": {"config": TINY_LLAMA},
        "data": {
            "files": [f"{corpus}/*.txt"],
            "tokenizer_vocab_size": 400,
            "sequence_length": 32,
            "heldout_fraction": 0.1,
            "cache": str(corpus / "cache"),
        },
        "train": {
            "steps": 6,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "zero_stage": 1,
            "precision": "fp32",
            "learning_rate": 1e-2,
            "eval_sequences": 8,
            "replica_check_interval_steps": 2,
        },
        "checkpoint": {"interval_steps": 2, "keep_last": 100},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            sections[section][name] = value
        else:
            sections[section] = value
    return TrainConfig(**sections)


def run_attempt(
    config: TrainConfig, cache: DataCache, world_size: int, plan: Plan = Plan(), timeout_s: float = 90.0
) -> Outcome:
    """Claims the next attempt from the newest checkpoint that verifies and runs its ranks to their end."""
    run = RunFolder(config.run.storage, config.run.name)
    if not run.storage.exists("job.yaml"):
        run.create(json.dumps(config.model_dump(mode="json")))
    selection = select_checkpoint(run)
    assert selection.checkpoint is not None or not selection.found
    attempt = len(run.attempts()) + 1
    init_from = pin_init_from(run, config.run)
    run.claim_attempt(attempt, selection.checkpoint, world_size, config.train.zero_stage, init_from)
    return run_ranks(config, cache, world_size, attempt, plan, timeout_s)


def run_ranks(config, cache, world_size, attempt, plan=Plan(), timeout_s=90.0) -> Outcome:
    queue = CONTEXT.SimpleQueue()
    port = free_port()
    ranks = [
        CONTEXT.Process(
            target=_rank,
            args=(
                config.model_dump_json(),
                plan.cache_of_rank.get(rank, str(cache.path)),
                rank,
                world_size,
                attempt,
                port,
                plan,
                queue,
            ),
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    outcome, deadline = Outcome(attempt), time.monotonic() + timeout_s
    ended = 0
    while ended < world_size:
        while not queue.empty():
            item = queue.get()
            if item is None:
                ended += 1
            elif isinstance(item, str):
                outcome.events.append(Event.from_json(item))
            else:
                outcome.errors.append(item)
                ended += 1
        dead = [p for p in ranks if p.exitcode not in (None, 0)]
        if dead or time.monotonic() > deadline:
            break
        multiprocessing.connection.wait([queue._reader, *(p.sentinel for p in ranks if p.is_alive())], timeout=1.0)
    for process in ranks:
        if outcome.errors or dead or time.monotonic() > deadline:
            process.kill()
        process.join(30)
        outcome.exit_codes.append(process.exitcode)
    while not queue.empty():
        item = queue.get()
        if isinstance(item, str):
            outcome.events.append(Event.from_json(item))
        elif item is not None:
            outcome.errors.append(item)
    assert time.monotonic() < deadline, "the ranks did not end in time"
    return outcome


def _rank(config_json, cache_path, rank, world_size, attempt, port, plan, queue) -> None:
    from zerofleet.trainer import engine, host_collectives
    from zerofleet.trainer.bf16_gradients import Gradients
    from zerofleet.trainer.host_collectives import HostCollectives
    from zerofleet.trainer.loop import nothing_to_do, train
    from zerofleet.trainer.recorder import Recorder

    log = Path(os.environ.get("ZEROFLEET_TEST_LOGS", "/dev/null"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    world = World(rank, rank, 0, world_size, "test", attempt)
    os.environ.update({**world.env("127.0.0.1", port), **plan.environment})
    doing = 0

    def fault(point: str, step: int, ranges: Ranges) -> str | None:
        nonlocal doing
        doing = step
        if point == "step" and plan.kill_at == (rank, step):
            os.kill(os.getpid(), 9)
        if point == "step" and plan.slow is not None and plan.slow[0] == rank:
            _take_longer(*plan.slow[1:])
        if point == "outer" and rank == 0:
            return plan.delta_fault
        planted = {plan.nan_at: "nan", plan.spike_at: "spike", plan.wrong_sample_at: "wrong_sample"}
        return planted.get((rank, step)) if point == "step" else None

    def control() -> Control:
        return Control("stop" if rank == 0 and plan.stop_after is not None and doing >= plan.stop_after else "none")

    if plan.least_shared_bytes is not None:
        host_collectives.LEAST_BYTES = plan.least_shared_bytes
    if plan.shared_log is not None:
        _log_calls(HostCollectives, ("all_reduce", "all_gather"), plan.shared_log)
    if plan.gradients_log is not None:
        _log_calls(Gradients, ("add", "forget", "average", "mine"), plan.gradients_log)
    if plan.plain_gradients:
        engine.spare_copies = lambda optimizer: None
    if plan.slow_data_s:
        _read_slowly(plan.slow_data_s)
    if plan.slow_writes_s:
        _write_slowly(plan.slow_writes_s)
    if plan.changing_shapes:
        _shorten(engine.Engine, lambda: doing)
    config = TrainConfig.model_validate_json(config_json)
    recorder = Recorder(RunFolder(config.run.storage, config.run.name), attempt, config) if rank == 0 else None

    def report(event: Event) -> None:
        queue.put(event.to_json())
        if recorder is not None:
            recorder.on_event(event)

    before_commit = recorder.make_ledger_durable if recorder is not None else nothing_to_do
    try:
        train(config, world, Path(cache_path), report, control, fault, before_commit=before_commit)
    except BaseException as error:  # noqa: BLE001 - the test reads it
        traceback.print_exc()
        queue.put((rank, type(error).__name__, str(error)))
        os._exit(1)
    finally:
        if recorder is not None:
            recorder.close()
    queue.put(None)


def _log_calls(owner: type, names: tuple[str, ...], path: Path) -> None:
    for name in names:

        def logged(self, *arguments, name=name, plain=getattr(owner, name), **options):
            with path.open("a") as log:
                log.write(f"{name}\n")
            return plain(self, *arguments, **options)

        setattr(owner, name, logged)


def _read_slowly(seconds: float) -> None:
    from zerofleet.trainer.data.feed import Feed

    plain = Feed.micro_batches

    def slowly(self, *arguments):
        for batch in plain(self, *arguments):
            time.sleep(seconds)
            yield batch

    Feed.micro_batches = slowly


def _write_slowly(seconds: float) -> None:
    from zerofleet.trainer.storage import Storage

    plain = Storage.write_stream

    def slowly(self, *arguments, **options):
        time.sleep(seconds)
        return plain(self, *arguments, **options)

    Storage.write_stream = slowly


def _shorten(owner: type, step: Callable[[], int]) -> None:
    plain = owner.token_loss

    def shorter(self, inputs, labels):
        length = labels.shape[-1] - step()
        return plain(self, {name: values[..., :length] for name, values in inputs.items()}, labels[..., :length])

    owner.token_loss = shorter


def _take_longer(seconds: float, how: str) -> None:
    if how == "sleeps":
        time.sleep(seconds)
    else:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass


__all__ = ["CheckpointId", "Outcome", "Plan", "job", "run_attempt", "run_ranks"]
