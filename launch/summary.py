"""What is said when a run has ended: losses, checkpoints, export, folder, and the next command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from zerofleet.launch.progress import Progress
from zerofleet.launch.words import command, pasteable, run_argument
from zerofleet.trainer.run_folder import REPORT, RunFolder


def told_facts(progress: Progress) -> dict[str, Any]:
    """What a run's events tell, wherever it is driven."""
    return {
        "state": progress.state,
        "why": progress.why,
        "step": progress.step,
        "steps": progress.total_steps,
        "loss": progress.loss,
        "heldout_loss_first": progress.evals[0][1] if progress.evals else None,
        "heldout_loss_last": progress.evals[-1][1] if progress.evals else None,
        "incidents": len(progress.incidents),
        "export": progress.export_path,
    }


def summarise(run: RunFolder, progress: Progress) -> dict[str, Any]:
    """The facts, for people and for --json."""
    return {
        "run": run.name,
        **told_facts(progress),
        "checkpoints": [checkpoint.step for checkpoint in run.checkpoints()],
        "folder": run.storage.path(),
    }


def write_summary(run: RunFolder, progress: Progress, as_json: bool) -> None:
    """Writes it to stdout; the reason of a failure goes to stderr."""
    facts = summarise(run, progress)
    if as_json:
        sys.stdout.write(json.dumps({"kind": "summary", **facts}) + "\n")
        return
    rows = [
        ("run", f"{run.name}: {progress.state} at step {progress.step} of {progress.total_steps}"),
        ("loss", "" if progress.loss is None else f"{progress.loss:.4f}"),
        ("held-out loss", heldout_line(progress)),
        ("checkpoints", ", ".join(f"step {step}" for step in facts["checkpoints"])),
        ("incidents", str(facts["incidents"]) if facts["incidents"] else ""),
        ("export", progress.export_path or ""),
        ("folder", facts["folder"]),
        ("report", run.storage.path(REPORT) if run.storage.exists(REPORT) else ""),
        ("next", _next(run, progress)),
    ]
    write_rows(rows, progress)


def write_rows(rows: Sequence[tuple[str, str]], progress: Progress) -> None:
    """To stdout, those that say something; the reason of a failure to stderr."""
    sys.stdout.write("\n" + "".join(f"{name:<14} {value}\n" for name, value in rows if value))
    if progress.state == "FAILED":
        reason = progress.user_error or progress.why or progress.verdict or progress.error or "no reason was recorded"
        sys.stdout.flush()
        sys.stderr.write(f"error: {reason}\n")


def heldout_line(progress: Progress) -> str:
    """Held-out loss before and after; empty when nothing was evaluated."""
    if not progress.evals:
        return ""
    (first_step, first), (last_step, last) = progress.evals[0], progress.evals[-1]
    if first_step == last_step:
        return f"{first:.4f} (step {first_step})"
    change = f"it {'rose' if last > first else 'fell'} by {abs(last - first):.4f} nats"
    return f"{first:.4f} (step {first_step}) -> {last:.4f} (step {last_step}): {change}"


def _next(run: RunFolder, progress: Progress) -> str:
    if progress.state == "FAILED":
        return command("logs", run_argument(run))
    if progress.state == "STOPPED":
        return command("resume", run_argument(run))
    if progress.export_path:
        load = f"AutoModelForCausalLM.from_pretrained('{progress.export_path}')"
        return f'{pasteable(sys.executable)} -c "from transformers import AutoModelForCausalLM; {load}"'
    return command("export", run_argument(run))
