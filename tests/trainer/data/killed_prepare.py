"""Run by test_prepare_faults: FILES CACHES SEED NUM. Prepares NUM times in forked children that kill themselves on the way.

Each child sends itself SIGKILL at its n-th file operation, n drawn. Forking is safe here: this process never starts a thread.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import tokenizers  # noqa: F401 - imported once, not in every child

from tests.trainer.data.corpora import prepared
from zerofleet.trainer.data import parts

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock")
SMALL_PART_BYTES = 3000


def child(files: str, cache: Path, kill_at: int | None, counter: int) -> None:
    """Never returns. Without `kill_at`, writes the number of file operations to the pipe `counter`."""
    seen = 0

    def hook(name: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if name in OPERATIONS:
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    prepared(files, cache, packing="best_fit")
    os.write(counter, str(seen).encode())
    os._exit(0)


def forked(files: str, cache: Path, kill_at: int | None) -> tuple[int, int]:
    """(signal that ended the child, its file operations)."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(files, cache, kill_at, sender)
    os.close(sender)
    _, status = os.waitpid(pid, 0)
    count = os.read(receiver, 32)
    os.close(receiver)
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), int(count or 0)


def main(files: str, caches: Path, seed: int, num_kills: int) -> None:
    parts._MIN_PART_BYTES = SMALL_PART_BYTES
    forked(files, caches / "first", None)  # its imports may still write byte code, which would count as well
    ended, num_operations = forked(files, caches / "unbroken", None)
    assert ended == 0 and num_operations > 0
    # One point in each of equally long stretches: all stages are hit.
    draw, stretch = random.Random(seed), num_operations / num_kills
    points = [int(index * stretch + draw.random() * stretch) + 1 for index in range(num_kills)]
    signals = [forked(files, caches / f"killed-{point}", min(point, num_operations))[0] for point in points]
    parts_kept = len(list(caches.glob("killed-*/*/parts/*.docs")))
    print(json.dumps({"signals": signals, "points": points, "parts_kept": parts_kept}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
