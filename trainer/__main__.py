"""`torchrun -m zerofleet.trainer job.yaml`: the same training without Ray, for debugging and for machines without it.

Rank 0 claims the attempt, records events and metrics, and prints progress. SIGTERM is a stop: all ranks save at the end
of the same step.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.deepspeed_check import check_deepspeed_section
from zerofleet.trainer.engine import init_distributed
from zerofleet.trainer.errors import CheckpointUnusable, UserError, ZerofleetError
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.init_from import pin_init_from
from zerofleet.trainer.loop import nothing_to_do, train
from zerofleet.trainer.recorder import Recorder
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.takeover import check_takeover, parse_config
from zerofleet.trainer.world import World

PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 finished or stopped, 1 failed, 2 the user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m zerofleet.trainer", description=__doc__)
    parser.add_argument("job", type=Path, help="a resolved job.yaml; only its trainer sections are read")
    try:
        _run(parser.parse_args(arguments).job)
    except ZerofleetError as error:
        sys.stderr.write(f"zerofleet: {error}\n")
        return error.exit_code
    return 0


def read_config(path: Path) -> TrainConfig:
    """The trainer's sections of a job.yaml. Raises UserError."""
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"{path} is not a job: {error}") from error
    config = parse_config(text, str(path))
    if config.run.name is None:
        raise UserError(f"{path} has no run.name: give it one, the run's folder is named after it")
    return config


def _run(path: Path) -> None:
    config = read_config(path)
    stop = StopOnSigterm()
    _stop_with_torchrun()
    bare = World.from_env(attempt=0)
    check_deepspeed_section(config, bare.world_size)
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None)
    if cache.left_out and bare.rank == 0:
        sys.stdout.write(f"prepared data: {cache.left_out}\n")
    init_distributed(bare, config.train.keep_freed_memory)
    attempt = _claim(config, bare, path)
    world = World.from_env(attempt)
    recorder = Recorder(_folder(config), attempt, config) if world.rank == 0 else None

    def report(event: Event) -> None:
        if recorder is not None:
            recorder.on_event(event)
            _print(event)

    try:
        before_commit = recorder.make_ledger_durable if recorder is not None else nothing_to_do
        train(config, world, cache.path, report, stop.control, before_commit=before_commit)
    finally:
        if recorder is not None:
            recorder.close()


def _folder(config: TrainConfig) -> RunFolder:
    assert config.run.name is not None
    return RunFolder(config.run.storage, config.run.name)


def _claim(config: TrainConfig, world: World, path: Path) -> int:
    """Rank 0 makes the run where it is new, or asks whether it may go on with it; walks back to a checkpoint that verifies
    in full, and claims the attempt."""
    answer: list[int | ZerofleetError | None] = [None]
    if world.rank == 0:
        try:
            answer = [_claim_here(config, world, path)]
        except ZerofleetError as error:
            answer = [error]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], ZerofleetError):
        raise answer[0]
    assert answer[0] is not None
    return answer[0]


def _claim_here(config: TrainConfig, world: World, path: Path) -> int:
    run = _folder(config)
    if run.storage.exists("job.yaml"):
        check_takeover(run, config, str(path))
    else:
        run.create(path.read_text())
    selection = select_checkpoint(run, full=True)
    for checkpoint, reason in selection.skipped:
        sys.stdout.write(f"skipped the checkpoint of step {checkpoint.step} (attempt {checkpoint.attempt}): {reason}\n")
    if selection.checkpoint is None and selection.found:
        newest: CheckpointId = selection.skipped[0][0]
        raise CheckpointUnusable(
            newest.step, newest.attempt, "no checkpoint of this run verifies; start a new run, or restore its files"
        )
    attempts = run.attempts()
    attempt = (attempts[-1].attempt if attempts else 0) + 1
    init_from = pin_init_from(run, config.run)
    run.claim_attempt(attempt, selection.checkpoint, world.world_size, config.train.zero_stage, init_from)
    return attempt


def _stop_with_torchrun() -> None:
    """A rank whose torchrun was killed saves and ends: nobody else would ever end it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class StopOnSigterm:
    """SIGTERM asks for a stop; torchrun sends it to every rank."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def control(self) -> Control:
        return Control("stop" if self._asked else "none")


def _print(event: Event) -> None:
    if event.kind == "step":
        d = event.data
        sys.stdout.write(
            f"step {event.step} loss {d['loss']:.4f} grad_norm {d['grad_norm']:.3f} lr {d['learning_rate']:.2e} "
            f"{d['tokens_per_second']:,.0f} tokens/s mfu {d['mfu']:.1%}\n"
        )
    elif event.kind != "phase":
        sys.stdout.write(f"{event.kind} step {event.step} {event.duration_s:.2f} s {event.data}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
