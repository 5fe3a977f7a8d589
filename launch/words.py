"""Numbers and names as the command line shows them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from zerofleet.launch.progress import Progress
from zerofleet.trainer.run_folder import RunFolder, default_storage
from zerofleet.trainer.storage import Storage


def duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def step_line(progress: Progress) -> str:
    """Step, loss, throughput and the time that remains."""
    parts = [f"step {progress.step}/{progress.total_steps}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.mfu is not None:
        parts.append(f"MFU {progress.mfu:.1%}")
    if progress.eta_s:
        parts.append(f"ETA {duration(progress.eta_s)}")
    return "  ".join(parts)


def prepare_line(progress: Progress) -> str:
    """Stage and share of what is made before training (data, ops); empty when there is none going on."""
    if progress.prepare is None:
        return ""
    stage, fraction, detail = progress.prepare
    return f"preparing: {stage} {fraction:.0%}" + (f"  {detail}" if detail else "")


def run_argument(run: RunFolder) -> str:
    """RUN for the next command line: the name when it lies in the default storage, else the whole path."""
    parent = run.storage.path().rsplit("/", 1)[0]
    return run.name if Storage(default_storage()).path() == parent else run.storage.url


def command(*words: str) -> str:
    """A `zerofleet ...` command line that works when it is pasted into this shell."""
    on_path, called = shutil.which("zerofleet"), Path(sys.argv[0])
    if on_path and Path(on_path).resolve() == called.resolve():
        program = "zerofleet"
    elif called.name == "zerofleet":
        program = pasteable(str(called))
    else:
        program = f"{pasteable(sys.executable)} -m zerofleet.launch"
    return " ".join([program, *map(shlex.quote, words)])


def pasteable(path: str) -> str:
    """A program's path as a word of the shell, relative where it lies below this folder."""
    relative = os.path.relpath(path)
    return shlex.quote(path if relative.startswith("..") else relative)
