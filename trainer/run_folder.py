"""The run folder: where everything lies that explains a run. DESIGN 2; it outlives the cluster.

job.yaml                                        resolved, immutable
attempts/0001.json                              claimed by exclusive create; names the checkpoint it starts from
events|metrics|ledger/attempt-0001/segment-*    JSON lines
logs/attempt-0001/rank-00000.log                (and driver.log, agent-*.log)
control/0001.json                               requests: stop, save
checkpoints/step-00000050/attempt-0001/silo-main/rank-*.safetensors, manifest.json
export/                                         the Hugging Face model folder
report.html                                     one page about all of it
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.data.quarantine import Ranges, union
from zerofleet.trainer.errors import NotFoundError, StorageError, UserError
from zerofleet.trainer.events import Event
from zerofleet.trainer.process_id import ProcessId, lives
from zerofleet.trainer.storage import SegmentWriter, Storage, read_segments

DEFAULT_STORAGE = "./runs"
REPORT = "report.html"


def default_storage() -> str:
    """`ZEROFLEET_STORAGE`, else ./runs."""
    return os.environ.get("ZEROFLEET_STORAGE") or DEFAULT_STORAGE


@dataclass(frozen=True)
class CheckpointId:
    """Names one checkpoint. Order: by step, then by attempt."""

    step: int
    attempt: int
    silo: str = DEFAULT_SILO

    @property
    def folder(self) -> str:
        return f"checkpoints/step-{self.step:08d}/attempt-{self.attempt:04d}/silo-{self.silo}"

    @property
    def manifest(self) -> str:
        return f"{self.folder}/manifest.json"

    def rank_file(self, rank: int, world_size: int) -> str:
        return f"{self.folder}/rank-{rank:05d}-of-{world_size:05d}.safetensors"


@dataclass(frozen=True)
class AttemptRecord:
    """One life of the ranks. `start_step` steps were done before it; `checkpoint_attempt` wrote the checkpoint that it starts from (None: initial weights)."""

    attempt: int
    start_step: int
    checkpoint_attempt: int | None
    world_size: int
    zero_stage: int
    claimed_at: float
    host: str
    pid: int
    from_memory: bool = False
    """Whether it starts from the agents' snapshots rather than from storage."""
    token: str = ""
    """Random: tells this attempt's snapshots from those of another run that once had this name."""
    init_from: str | None = None
    """`URL@STEP` of another run whose weights this run began with: resolved once, by the first attempt."""
    quarantine: list[list[int]] = field(default_factory=list)
    """Half-open ranges of sample positions that it leaves out: those of the attempt before it, and what was found since."""
    halved: list[int] = field(default_factory=list)
    """[a, b]: micro-batches of a sequences, which the recipe asks for, have run out of memory, and this attempt's have b; empty: the recipe's own."""
    process: str = ""
    """The ProcessId of who claimed it; empty in records by zerofleet up to 0.4."""

    def micro_batch_size(self, asked: int) -> int:
        """Sequences per rank and micro-step, where the recipe asks for so many. Another wish than the one that ran out is fulfilled."""
        return self.halved[1] if self.halved[:1] == [asked] else asked

    @property
    def is_here(self) -> bool:
        """Whether that process can be seen from here."""
        return ProcessId.parse(self.process).is_here if self.process else self.host == socket.gethostname()

    def is_same_claim(self, other: AttemptRecord) -> bool:
        """Whether both are tries of this process to claim the same."""
        is_mine = bool(self.process) and ProcessId.parse(self.process) == ProcessId.own()
        return is_mine and replace(self, claimed_at=other.claimed_at, token=other.token) == other

    @property
    def lives_here(self) -> bool:
        """Whether the process that claimed it is alive on this host. Of an old record, which only has its number: whether it may be."""
        if not self.is_here:
            return False
        return ProcessId.parse(self.process).is_alive() if self.process else lives(self.pid)


class RunFolder:
    """Paths and records of one run. Reads are cheap and unlocked; claims are exclusive creates."""

    def __init__(self, storage_url: str, name: str) -> None:
        self.name = name
        self.storage = Storage(storage_url).sub(name)

    @staticmethod
    def open(run: str) -> RunFolder:
        """RUN as the command line takes it: a name under the default storage, a path or a URL. NotFoundError when absent."""
        url, _, name = run.rstrip("/").rpartition("/")
        folder = RunFolder(url or ("/" if run.startswith("/") else default_storage()), name)
        if not folder.storage.exists("job.yaml"):
            known = Storage(url or default_storage()).list()
            near = f"; runs there: {', '.join(known[-8:])}" if known else "; there are no runs there"
            raise NotFoundError(f"no run {name!r} in {url or default_storage()}{near}")
        return folder

    def create(self, job_yaml: str) -> None:
        """Takes the run's name. UserError when it is taken."""
        try:
            self.storage.create("job.yaml", job_yaml.encode())
        except FileExistsError as error:
            raise UserError(
                f"run {self.name!r} exists already in {self.storage.url}: `zerofleet resume {self.name}` goes on with it, "
                "or choose another run.name"
            ) from error

    def job_yaml(self) -> str:
        return self.storage.read("job.yaml").decode()

    # -- attempts --------------------------------------------------------------------------------------------------
    def attempts(self) -> list[AttemptRecord]:
        """All attempts, oldest first. StorageError for a record that is none."""
        names = [name for name in self.storage.list("attempts") if re.fullmatch(r"\d{4,}\.json", name)]
        return [self._attempt(f"attempts/{name}") for name in names]

    def _attempt(self, path: str) -> AttemptRecord:
        try:
            return AttemptRecord(**json.loads(self.storage.read(path)))
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"{self.storage.path(path)} is damaged: it is no record of an attempt ({error}). Restore the file"
            ) from error

    def claim_attempt(
        self,
        attempt: int,
        start: CheckpointId | None,
        world_size: int,
        zero_stage: int,
        init_from: str | None = None,
        from_memory: bool = False,
        quarantine: Ranges = (),
        halved: Sequence[int] = (),
    ) -> AttemptRecord:
        """Claims `attempt` exclusively: the fencing of everything that an older attempt may still write. What earlier attempts
        left out it leaves out too, whatever it starts from, and `quarantine` besides. `halved` as in the record; the attempt's before it where it is
        not given.

        Raises UserError when another process claimed it first, or when the process that claimed the one before still lives on
        this host: that one owns the run.
        """
        attempts = self.attempts()
        if owner := _living_owner(attempts):
            raise UserError(
                f"run {self.name!r} is being trained by process {owner} on this host: `kill {owner}` makes it save and end, "
                "whether a driver or torchrun started it; then try again"
            )
        record = AttemptRecord(
            attempt=attempt,
            start_step=start.step if start else 0,
            checkpoint_attempt=start.attempt if start else None,
            world_size=world_size,
            zero_stage=zero_stage,
            claimed_at=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            process=str(ProcessId.own()),
            from_memory=from_memory,
            token=os.urandom(8).hex(),
            init_from=init_from,
            quarantine=union(quarantine, *(record.quarantine for record in attempts)),
            halved=list(halved) or (attempts[-1].halved if attempts else []),
        )
        try:
            self.storage.create(f"attempts/{attempt:04d}.json", json.dumps(asdict(record), indent=1).encode())
        except FileExistsError as error:
            there = AttemptRecord(**json.loads(self.storage.read(f"attempts/{attempt:04d}.json")))
            if there.is_same_claim(record):
                return there  # of an earlier try, which storage took though it seemed to fail
            raise UserError(
                f"attempt {attempt} of run {self.name!r} was claimed by another driver or torchrun: that one owns the run. "
                f"See `zerofleet status {self.name}`; stop it before starting another"
            ) from error
        return record

    # -- checkpoints -----------------------------------------------------------------------------------------------
    def checkpoints(self, silo: str = DEFAULT_SILO) -> list[CheckpointId]:
        """All checkpoints that have a manifest and that no later attempt has fenced off, oldest first."""
        attempts = self.attempts()
        return [
            found
            for found in self.checkpoint_folders(silo)
            if not self.fenced(found, attempts) and self.storage.exists(found.manifest)
        ]

    def checkpoint_folders(self, silo: str = DEFAULT_SILO) -> list[CheckpointId]:
        """Every checkpoint folder, complete or not, oldest first."""
        found = []
        for step_name in self.storage.list("checkpoints"):
            if match := re.fullmatch(r"step-(\d+)", step_name):
                for attempt_name in self.storage.list(f"checkpoints/{step_name}"):
                    if attempt := re.fullmatch(r"attempt-(\d+)", attempt_name):
                        found.append(CheckpointId(int(match[1]), int(attempt[1]), silo))
        return sorted(found, key=lambda c: (c.step, c.attempt))

    def fenced(self, checkpoint: CheckpointId, attempts: list[AttemptRecord] | None = None) -> bool:
        """Whether a later attempt started before this checkpoint's step: then it is a zombie's, or of a past that no longer counts."""
        last = last_that_counts(checkpoint.attempt, self.attempts() if attempts is None else attempts)
        return last is not None and checkpoint.step > last

    # -- streams ---------------------------------------------------------------------------------------------------
    def writer(self, stream: str, attempt: int) -> SegmentWriter:
        """Appends to `events`, `metrics` or `ledger` of one attempt."""
        return SegmentWriter(self.storage, f"{stream}/attempt-{attempt:04d}")

    def read(self, stream: str) -> Iterator[dict[str, Any]]:
        """All records of a stream, attempt by attempt."""
        for folder in self.storage.list(stream):
            for line in read_segments(self.storage, f"{stream}/{folder}"):
                yield json.loads(line)

    def events(self) -> Iterator[Event]:
        for record in self.read("events"):
            yield Event(**record)

    def log_path(self, attempt: int, name: str) -> str:
        return f"logs/attempt-{attempt:04d}/{name}.log"

    # -- control ---------------------------------------------------------------------------------------------------
    def request(self, action: str) -> None:
        """Leaves a request (`stop`, `save` or `stacks`) for whoever drives the run."""
        number = len(self.storage.list("control")) + 1
        while True:
            try:
                body = json.dumps({"action": action, "at": time.time()}).encode()
                return self.storage.create(f"control/{number:04d}.json", body)
            except FileExistsError:
                number += 1

    def newest_request(self) -> int:
        """Its number; 0 before there is one."""
        return max(self._request_numbers(), default=0)

    def _request_numbers(self) -> list[int]:
        return [int(name[:-5]) for name in self.storage.list("control") if re.fullmatch(r"\d+\.json", name)]

    def requests(self, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
        """Requests with a number above `after`, in order."""
        numbers = sorted(number for number in self._request_numbers() if number > after)
        return [(number, json.loads(self.storage.read(f"control/{number:04d}.json"))) for number in numbers]


def last_that_counts(attempt: int, attempts: Sequence[AttemptRecord]) -> int | None:
    """The last step of an attempt that counts: every later attempt started at or after it. None: there is no later one, all do."""
    return min((later.start_step for later in attempts if later.attempt > attempt), default=None)


def _living_owner(attempts: Sequence[AttemptRecord]) -> int | None:
    """The process that claimed the newest attempt, where it is another one, on this host, and alive."""
    newest = max(attempts, key=lambda record: record.attempt, default=None)
    if newest is None or newest.pid == os.getpid() or not newest.lives_here:
        return None
    return newest.pid
