"""Fixtures that several test packages share."""

from __future__ import annotations

import multiprocessing.util
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

# The first example may compile a kernel; what takes too long is ended by its test's timeout.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell without job control leaves it to what runs behind it
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = [
    "whatever",
    "fails",
    "no",
    "sample",
    "is",
    "lost",
    "or",
    "seen",
    "twice",
    "and",
    "every",
    "second",
    "of",
    "the",
    "bill",
    "is",
    "accounted",
    "for",
    "by",
    "the",
    "ledger",
]


def pytest_configure(config: pytest.Config) -> None:
    """A temporary folder for each of several workers: a driver ends what dead drivers have left there, and those of another
    worker's tests are none of its business. Short: Ray's sockets lie in it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        own = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="zf-", dir="/tmp")
        tempfile.tempdir = None  # it is looked up once
        # After multiprocessing has removed (at -100) what it keeps there.
        multiprocessing.util.Finalize(None, shutil.rmtree, (own,), {"ignore_errors": True}, exitpriority=-200)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Forty small text files with something to learn in them."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(7)
    for number in range(40):
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(5, 20))) for _ in range(30)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def tiny_cache(tiny_corpus):
    """The corpus, prepared."""
    from tests.support.ranks import job
    from zerofleet.trainer.data.prepare import prepare

    config = job(tiny_corpus, tiny_corpus)
    return prepare(config.data, config.run.seed, lambda stage, fraction, detail: None)
