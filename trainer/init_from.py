"""`run.init_from`: another run's checkpoint as the start of a new run."""

from __future__ import annotations

from zerofleet.trainer.checkpoint.select import select_checkpoint, verify_checkpoint
from zerofleet.trainer.config import RunConfig
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder


def pin_init_from(run: RunFolder, config: RunConfig) -> str | None:
    """What the next attempt's record says under `init_from`: the first attempt decides, so that a source that is still
    training, or a restart before the first checkpoint, changes nothing."""
    if config.init_from is None:
        return None
    if attempts := run.attempts():
        return attempts[0].init_from
    source, checkpoint = resolve_init_from(config.init_from, config.storage)
    return f"{source.storage.url}@{checkpoint.step}"


def resolve_init_from(text: str, storage: str) -> tuple[RunFolder, CheckpointId]:
    """`RUN@STEP` or `RUN` (newest step); a bare name lies in `storage`. Raises NotFoundError, CheckpointUnusable, UserError."""
    name, at, step_text = text.rpartition("@")
    if not at or "/" in step_text:  # an @ within a URL
        name, step_text = text, ""
    run = RunFolder.open(name if "/" in name else f"{storage.rstrip('/')}/{name}")
    if not step_text:
        selection = select_checkpoint(run)
        if selection.checkpoint is None:
            raise NotFoundError(f"run.init_from={text!r}: run {run.name!r} has no checkpoint that can be used")
        return run, selection.checkpoint
    if not step_text.isdigit():
        raise UserError(f"run.init_from={text!r}: {step_text!r} is not a step; write RUN@STEP, for example {name}@1000")
    matching = [c for c in run.checkpoints() if c.step == int(step_text)]
    if not matching:
        steps = ", ".join(str(c.step) for c in run.checkpoints()) or "none"
        raise NotFoundError(
            f"run.init_from={text!r}: run {run.name!r} has no checkpoint of step {step_text}; it has {steps}"
        )
    verify_checkpoint(run, matching[-1])
    return run, matching[-1]
