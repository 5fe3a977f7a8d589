"""However many processes tokenise a corpus, and whatever ends them, the cache is the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer.data.corpora import content, document, prepared, write_corpus
from zerofleet.trainer.data import parts, pool
from zerofleet.trainer.data.parts import Part
from zerofleet.trainer.errors import DataError

SMALL_PART_BYTES = 3000


@pytest.fixture
def files(tmp_path) -> str:
    return write_corpus(tmp_path / "corpus")


def in_processes(monkeypatch, count: int) -> list[int]:
    """Makes a small corpus worth `count` processes; returns the list of those that are started."""
    monkeypatch.setattr(parts, "_MIN_PART_BYTES", SMALL_PART_BYTES)
    monkeypatch.setattr(pool, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
    started, start = [], pool._start

    def counted(descriptor, num_threads, lock):
        process = start(descriptor, num_threads, lock)
        started.append(process.pid)
        return process

    monkeypatch.setattr(pool, "_start", counted)
    return started


class Sized:
    """A data shard of which only the size is asked."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


@pytest.mark.parametrize(
    ("megabytes", "cores", "expected"),
    [([1] * 30, 8, 1), ([16] * 10, 8, 8), ([16] * 3, 8, 3), ([1000], 8, 1), ([40], 8, 1), ([], 8, 1)],
)
def test_as_many_processes_as_are_worth_their_start(megabytes, cores, expected):
    planned = [Part(index, [Sized(size * 2**20)]) for index, size in enumerate(megabytes)]
    assert pool.num_processes(planned, cores) == expected


@pytest.mark.integration
@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [2, 3])
def test_the_same_bytes_in_any_number_of_processes(files, tmp_path, monkeypatch, count):
    reference = prepared(files, tmp_path / "one", packing="best_fit")
    started = in_processes(monkeypatch, count)
    fractions = []
    again = prepared(files, tmp_path / "many", packing="best_fit", progress=lambda *said: fractions.append(said[:2]))
    assert content(again) == content(reference)
    assert len(started) == count and not any(is_alive(pid) for pid in started)
    told = [fraction for stage, fraction in fractions if stage == "tokenise"]
    assert len(told) > 5 and told == sorted(told) and told[-1] == 1.0


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.integration
@pytest.mark.timeout(60)
def test_bad_data_in_one_process_ends_the_preparation_as_in_this_one(files, tmp_path, monkeypatch):
    bad = tmp_path / "corpus/020.txt"
    text = bad.read_bytes()
    bad.write_bytes(text[:10] + b"\xff" + text[10:])
    started = in_processes(monkeypatch, 2)
    with pytest.raises(DataError, match=r"020\.txt: byte 10 \(0xff\) does not decode"):
        prepared(files, tmp_path / "cache", tokenizer=given_tokenizer(tmp_path, monkeypatch))
    assert len(started) == 2 and not any(is_alive(pid) for pid in started)


def given_tokenizer(tmp_path, monkeypatch) -> str:
    """Of another corpus, so that it is not training that meets the bad file."""
    return str(prepared(write_corpus(tmp_path / "other", 2), tmp_path / "tokenizers").tokenizer_path)


@pytest.mark.integration
@pytest.mark.timeout(60)
def test_a_killed_process_is_named_and_what_was_done_is_kept(files, tmp_path, monkeypatch):
    reference = prepared(files, tmp_path / "one")
    started = in_processes(monkeypatch, 2)

    def kill_one(stage: str, fraction: float, detail: str) -> None:
        if stage == "tokenise" and fraction > 0.3 and len(started) == 2:
            os.kill(started[0], signal.SIGKILL)
            started.append(-1)

    with pytest.raises(pool.ProcessLost, match="was killed, most likely for memory"):
        prepared(files, tmp_path / "cache", progress=kill_one)
    kept = len(list((tmp_path / "cache").glob("*/parts/*.docs")))
    assert kept > 0
    assert content(prepared(files, tmp_path / "cache")) == content(reference)


KILLED = """
import os, signal
from pathlib import Path
from tests.trainer.data.corpora import prepared
from zerofleet.trainer.data import parts, pool
parts._MIN_PART_BYTES = {part_bytes}
pool.BYTES_PER_PROCESS = 1
os.sched_getaffinity = lambda pid: {{0, 1}}

def say(stage, fraction, detail):
    if stage == "tokenise" and fraction >= {kill_at}:
        print("now", flush=True)
        signal.pause()

prepared({files!r}, Path({cache!r}), progress=say, packing="best_fit")
"""


@pytest.mark.integration
@pytest.mark.timeout(110)
def test_killed_five_times_it_ends_with_the_same_bytes(tmp_path):
    """SIGKILL to the parent, from outside, further on each time: the kernel ends its processes, and the next try goes on."""
    files = write_corpus(tmp_path / "corpus", num_files=120, num_words=400)
    reference = prepared(files, tmp_path / "one", packing="best_fit")
    num_parts = []
    for kill_at in (0.1, 0.3, 0.5, 0.7, 0.9):
        arguments = {
            "part_bytes": SMALL_PART_BYTES,
            "files": files,
            "cache": str(tmp_path / "cache"),
            "kill_at": kill_at,
        }
        run_and_kill(KILLED.format(**arguments))
        num_parts.append(len(list((tmp_path / "cache").glob("*/parts/*.docs"))))
    assert num_parts == sorted(num_parts) and num_parts[0] > 0, f"parts kept after each kill: {num_parts}"
    assert content(prepared(files, tmp_path / "cache", packing="best_fit")) == content(reference)


def run_and_kill(program: str) -> None:
    """Kills a preparation as soon as it says that it is where it is to be killed; its processes go on with their parts meanwhile."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n", "the preparation came to its end before it was killed"
        process.kill()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    part_bytes=st.sampled_from([1, 200, 1000, 10**9]),
    batch_chars=st.sampled_from([1, 300, 10**9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_and_batches_of_any_size_in_any_order_give_the_same_bytes(
    tmp_path_factory, monkeypatch, sizes, part_bytes, batch_chars, seed
):
    """What processes differ in is which part is done when, and by whom: here the parts are done in a random order."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "corpus").mkdir()
    (folder / "corpus/000.txt").write_text(document(7, 30))
    for index, size in enumerate(sizes, 1):
        (folder / f"corpus/{index:03d}.txt").write_text(document(index, size) if size else " ")
    fields = {"heldout_fraction": 0, "packing": "best_fit"}
    reference = prepared(f"{folder}/corpus/*.txt", folder / "one", **fields)
    tokenise_here = pool._tokenise_here

    def shuffled(todo, work, advance):
        tokenise_here(random.Random(seed).sample(todo, len(todo)), work, advance)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_MIN_PART_BYTES", part_bytes)
        patch.setattr(parts, "_BATCH_CHARS", batch_chars)
        patch.setattr(pool, "_tokenise_here", shuffled)
        assert content(prepared(f"{folder}/corpus/*.txt", folder / "other", **fields)) == content(reference)
