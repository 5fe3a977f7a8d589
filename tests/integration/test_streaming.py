"""Runs whose corpus lies in an object store and never on the disk as a whole: fed exactly once, whatever happens."""

from __future__ import annotations

import random

import pytest
import yaml

from tests.support.cli import Cli, assert_audited, kill_rank_at, losses, wait_for_end
from zerofleet.benchmarks.s3.server import BUCKET, S3Server, environment
from zerofleet.trainer.data.stream.order import WindowedOrder
from zerofleet.trainer.data.stream.publish import publish
from zerofleet.trainer.data.stream.published import shard_path
from zerofleet.trainer.storage import Storage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SHARD_SEQUENCES, WINDOW_SHARDS, STEPS, BATCH = 16, 3, 24, 8
SHARD_BYTES = SHARD_SEQUENCES * 32 * 2
MAX_BYTES = 2 * WINDOW_SHARDS * (SHARD_BYTES + SHARD_SEQUENCES * 2)


class StreamingCli(Cli):
    """The command line, and a recipe whose data is streamed from `url`."""

    def __init__(self, folder, corpus, url, settings) -> None:
        super().__init__(folder, corpus)
        self.settings = settings
        sections = yaml.safe_load(self.recipe.read_text())
        sections["data"] = {
            "stream": {"url": url, "window_shards": WINDOW_SHARDS, "max_bytes": MAX_BYTES},
            "sequence_length": 32,
            "cache": str(folder / "cache"),
        }
        sections["train"] |= {"steps": STEPS, "global_batch_size": BATCH}
        self.recipe.write_text(yaml.safe_dump(sections))

    def __call__(self, *arguments, **environment):
        return super().__call__(*arguments, **{**self.settings, **environment})

    @property
    def shards(self):
        (folder,) = (self.folder / "cache" / "streams").glob("*/shards")
        return list(folder.glob("*.bin"))


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto", reason="the S3 server of the tests is moto, of the dev extra")
    with S3Server() as running:
        yield running


@pytest.fixture
def s3(server, monkeypatch):
    settings = environment(server.port)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_corpus, tiny_cache):
    """Of an unbroken run that streams the same shards from a folder."""
    folder = tmp_path_factory.mktemp("reference")
    publish(tiny_cache, str(folder / "remote"), SHARD_BYTES)
    cli = StreamingCli(folder, tiny_corpus, str(folder / "remote"), {})
    done = cli.submit("straight")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_audited(cli.run("straight"), STEPS)
    return losses(cli.run("straight"))


def published(name, cache, tmp_path, corpus, s3) -> tuple[StreamingCli, Storage]:
    url = f"s3://{BUCKET}/{name}"
    publish(cache, url, SHARD_BYTES)
    return StreamingCli(tmp_path, corpus, url, s3), Storage(url)


def test_a_rank_is_killed_while_it_streams_from_s3(tmp_path, tiny_corpus, tiny_cache, s3, reference):
    cli, _ = published("killed", tiny_cache, tmp_path, tiny_corpus, s3)
    done = cli.submit("killed", "--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    kill_rank_at(cli.run("killed"), 1, 9, random.Random(1))
    assert wait_for_end(cli, "killed") == "FINISHED"
    assert losses(cli.run("killed")) == reference, "bitwise"
    assert_audited(cli.run("killed"), STEPS)
    assert 0 < sum(path.stat().st_size for path in cli.shards) <= MAX_BYTES
    assert len(cli.shards) * SHARD_SEQUENCES < tiny_cache.train.num_sequences, "the corpus was never there as a whole"


@pytest.mark.further
def test_a_shard_that_is_gone_stops_the_run_and_it_goes_on_when_it_is_back(
    tmp_path, tiny_corpus, tiny_cache, s3, reference
):
    cli, storage = published("gone", tiny_cache, tmp_path, tiny_corpus, s3)
    order = WindowedOrder(tiny_cache.train.num_sequences, SHARD_SEQUENCES, WINDOW_SHARDS, 0, "main")
    shard = shard_path(int(order.shards_of(0, 2)[0]))  # a step after 2 windows of 6 steps needs it
    kept = storage.read(shard)
    storage.remove(shard)
    done = cli.submit("gone")
    assert done.returncode == 2 and "has disappeared" in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Put it back" in done.stdout + done.stderr
    storage.create(shard, kept)
    done = cli("resume", "gone")
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(cli.run("gone")) == reference
    assert_audited(cli.run("gone"), STEPS)
