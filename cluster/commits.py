"""From rank files to checkpoints: collects what the ranks' files are told of, and commits when a step is whole."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from zerofleet.cluster.policy.backoff import Backoff
from zerofleet.trainer.checkpoint.commit import Written, assemble
from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.errors import StorageError, Superseded, ZerofleetError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import CheckpointId

PAUSE_TIMEOUT_S = 5.0
"""How long whoever wants no commit meanwhile waits for one that is under way; then it tries again, as after any trouble with storage."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a save, or that it is still tried. `seconds` from the first rank file's beginning."""

    checkpoint: CheckpointId
    is_durable: bool
    message: str = ""
    num_bytes: int = 0
    seconds: float = 0.0
    is_settled: bool = True
    """False: storage refused it with `message`, and it is tried again."""
    is_superseded: bool = False
    """A newer attempt owns the run."""

    def event(self) -> Event:
        """That it is durable."""
        where, data = self.checkpoint, {"path": self.checkpoint.folder, "bytes": self.num_bytes}
        start = time.time() - self.seconds
        return Event("checkpoint", where.attempt, DRIVER, where.step, "save", start, self.seconds, data)

    def trouble(self) -> str:
        """What a user should know while it is not."""
        if self.is_settled:
            return f"step {self.checkpoint.step} did not become durable: {self.message}"
        return (
            f"step {self.checkpoint.step} cannot be made durable and is tried again; training goes on: {self.message}"
        )


@dataclass
class Gathering:
    """The files of saves that are not whole yet. Pure."""

    _parts: dict[CheckpointId, dict[int, Written]] = field(default_factory=dict)
    _since: dict[CheckpointId, float] = field(default_factory=dict)
    _given_up: set[CheckpointId] = field(default_factory=set)

    def hear(self, event: Event) -> tuple[Manifest, float] | Outcome | None:
        """A `written` or `unwritten` event. Returns the manifest and the beginning of a save that is whole now, or the outcome
        of one that will not be."""
        if event.kind == "unwritten":
            checkpoint = CheckpointId(**event.data["checkpoint"])
            self._forget(checkpoint)
            if checkpoint in self._given_up:
                return None
            self._given_up.add(checkpoint)
            return Outcome(checkpoint, False, event.data["message"])
        part = Written.from_dict(event.data)
        parts = self._parts.setdefault(part.checkpoint, {})
        parts[part.rank] = part
        since = self._since[part.checkpoint] = min(event.start, self._since.get(part.checkpoint, event.start))
        if len(parts) < part.world_size:
            return None
        self._forget(part.checkpoint)
        self._given_up.discard(part.checkpoint)
        return assemble(list(parts.values())), since

    def _forget(self, checkpoint: CheckpointId) -> None:
        self._parts.pop(checkpoint, None)
        self._since.pop(checkpoint, None)


class Committer:
    """Commits in a thread of its own: slow storage never holds up the controller. One save after the other."""

    def __init__(self, commit: Callable[[Manifest], None]) -> None:
        """`commit` raises ZerofleetError or FileExistsError; StorageError is tried again until `close`."""
        self._commit = commit
        self._gathering = Gathering()
        self._whole: queue.SimpleQueue[tuple[Manifest, float] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._committing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def hear(self, event: Event) -> None:
        """Takes a `written` or `unwritten` event in; returns at once."""
        found = self._gathering.hear(event)
        if isinstance(found, Outcome):
            self._outcomes.put(found)
        elif found is not None:
            self._whole.put(found)

    def outcomes(self) -> list[Outcome]:
        """What has come of saves since the last call."""
        found = []
        while not self._outcomes.empty():
            found.append(self._outcomes.get())
        return found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no commit is under way. Raises StorageError when one does not end within PAUSE_TIMEOUT_S."""
        if not self._committing.acquire(timeout=PAUSE_TIMEOUT_S):
            raise StorageError(
                f"a commit has been under way for longer than {PAUSE_TIMEOUT_S:g} s: storage is slow or down"
            )
        try:
            yield
        finally:
            self._committing.release()

    def close(self) -> None:
        """Gives up what could not be committed."""
        self._closing.set()
        self._whole.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (found := self._whole.get()) is not None and not self._closing.is_set():
            manifest, since = found
            checkpoint = CheckpointId(manifest.step, manifest.attempt, manifest.silo)
            problem = self._try(manifest, checkpoint)
            seconds = time.time() - since
            self._outcomes.put(
                Outcome(
                    checkpoint,
                    is_durable=problem is None,
                    message=str(problem or ""),
                    num_bytes=manifest.num_bytes,
                    seconds=seconds,
                    is_superseded=isinstance(problem, Superseded),
                )
            )

    def _try(self, manifest: Manifest, checkpoint: CheckpointId) -> Exception | None:
        backoff = Backoff()
        while True:
            try:
                with self._committing:
                    self._commit(manifest)
            except StorageError as error:
                if backoff.failures == 0:
                    self._outcomes.put(Outcome(checkpoint, False, str(error), is_settled=False))
                if self._closing.wait(backoff.next()):
                    return error
            except (ZerofleetError, FileExistsError) as error:
                return error
            except Exception as error:  # noqa: BLE001 - what is not foreseen ends this save, not the run
                _log.exception("committing step %d", manifest.step)
                return error
            else:
                return None
