"""A corpus that is read in shards is the corpus, whatever lies on the disk of it."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.corpora import config, prepared, quiet, write_corpus
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import DataConfig, StreamConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.data.stream.attach import attach
from zerofleet.trainer.data.stream.publish import publish
from zerofleet.trainer.data.stream.published import Published, shard_path
from zerofleet.trainer.data.stream.shards import ShardFolder
from zerofleet.trainer.data.stream.store import shards_folder
from zerofleet.trainer.errors import DataError, StorageError, UserError
from zerofleet.trainer.storage import Storage

SHARD_SEQUENCES = 5
SHARD_BYTES = SHARD_SEQUENCES * 32 * 2


@pytest.fixture(scope="module", params=["concatenate", "best_fit"])
def whole(request, tmp_path_factory) -> DataCache:
    folder = tmp_path_factory.mktemp("whole")
    return prepared(write_corpus(folder / "corpus"), folder / "cache", packing=request.param)


@pytest.fixture(scope="module")
def remote(whole, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    publish(whole, str(folder), SHARD_BYTES)
    return folder


def data_config(url: Path, cache: Path, **stream) -> DataConfig:
    fields = {"url": str(url), "window_shards": 3, "max_bytes": 6 * 2 * SHARD_BYTES} | stream
    return DataConfig(stream=StreamConfig(**fields), sequence_length=32, cache=str(cache))


def attached(url: Path, cache: Path, **stream) -> DataCache:
    return attach(data_config(url, cache, **stream), cache, quiet)


def feed_of(cache: DataCache, world_size: int = 1) -> Feed:
    plan = BatchPlan.of(8, 2, world_size)
    return Feed.of(_Job(data_config(Path("x"), Path("x"))), cache.train, plan, "main", [])


class _Job:
    """What `Feed.of` reads of a job."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data
        self.run = type("Run", (), {"seed": 3})


def bytes_in(cache: DataCache) -> int:
    num_bytes = 0
    for path in shards_folder(cache.path)[0].iterdir():
        with contextlib.suppress(FileNotFoundError):  # fetched ahead meanwhile
            num_bytes += path.stat().st_size
    return num_bytes


# -- the same corpus -----------------------------------------------------------------------------------------------
def test_every_sequence_is_that_of_the_whole_cache(whole, remote, tmp_path):
    streamed = attached(remote, tmp_path, max_bytes=2**30)
    store, reference = streamed.train, whole.train
    samples = np.random.default_rng(0).permutation(reference.num_sequences)
    for some in (samples, samples[:1], samples[:0]):
        for found, expected in zip(store.read(some), reference.read(some), strict=True):
            assert np.array_equal(found, expected) and found.dtype == expected.dtype
        assert np.array_equal(store.position_ids(some), reference.position_ids(some))
        assert np.array_equal(store.num_targets(some), reference.num_targets(some))
    assert store.num_sequences == reference.num_sequences > 40 * SHARD_SEQUENCES
    with pytest.raises(IndexError):
        store.read(np.array([reference.num_sequences]))
    assert not (streamed.path / "train.bin").exists()
    for found, expected in zip(*(c.heldout.read(np.arange(3)) for c in (streamed, whole)), strict=True):
        assert np.array_equal(found, expected)
    assert (streamed.tokenizer_path / "tokenizer.json").read_bytes() == (
        whole.tokenizer_path / "tokenizer.json"
    ).read_bytes()


def test_shards_lie_on_the_nodes_own_disk_where_it_has_one(whole, remote, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROFLEET_SCRATCH", str(tmp_path / "nvme"))
    streamed = attached(remote, tmp_path / "shared", max_bytes=2**30)
    samples = np.arange(whole.train.num_sequences)
    assert np.array_equal(streamed.train.read(samples)[0], whole.train.read(samples)[0])
    assert len(list((tmp_path / "nvme/streams" / streamed.path.name / "shards").glob("*.bin"))) > 10
    assert not list((tmp_path / "shared").rglob("shards"))


def test_preparation_of_a_published_corpus_is_to_attach_it(remote, tmp_path):
    said = []
    cache = prepare(data_config(remote, tmp_path), 0, lambda *progress: said.append(progress))
    assert cache.fingerprint == attached(remote, tmp_path).fingerprint and said[-1][0] == "stream"


def test_another_cut_is_another_order_and_so_other_data(whole, remote, tmp_path):
    cut = publish(whole, str(tmp_path / "remote"), 2 * SHARD_BYTES)
    assert cut.content == attached(remote, tmp_path).train.published.content
    assert (
        attached(tmp_path / "remote", tmp_path, max_bytes=2**20).fingerprint != attached(remote, tmp_path).fingerprint
    )
    assert attached(remote, tmp_path).fingerprint != whole.fingerprint


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_two_epochs_within_the_bound_each_shard_fetched_once_in_each(whole, remote, tmp_path, monkeypatch, world_size):
    """What the ranks of a node do, one after the other, with a folder that holds 2 windows of 3 shards."""
    fetched, read = [], Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, path, *rest: fetched.append(path) or read(self, path, *rest))
    largest = max(entry.num_bytes for entry in attached(remote, tmp_path).train.published.shards)
    caches = [attached(remote, tmp_path, max_bytes=6 * largest) for _ in range(world_size)]
    feeds = [feed_of(cache, world_size) for cache in caches]
    num_sequences = whole.train.num_sequences
    del fetched[:]
    fed = []
    for step in range(2 * num_sequences // 8):
        for rank, feed in enumerate(feeds):
            plan = feed.step_plan(step)
            feed.read_ahead(plan)
            for batch in feed.micro_batches(plan, rank):
                expected = [
                    array[: batch.num_sequences] for array in whole.train.read(plan.samples[batch.block * 2 :][:2])
                ]
                assert np.array_equal(batch.inputs["input_ids"][: batch.num_sequences], expected[0])
                assert np.array_equal(batch.labels[: batch.num_sequences], expected[1])
            assert bytes_in(caches[0]) <= 6 * largest
        fed += plan.samples.tolist()
    assert sorted(fed[:num_sequences]) == list(range(num_sequences))
    num_shards = len(caches[0].train.published.shards)
    assert len([path for path in fetched if path.startswith("shards/")]) <= 2 * num_shards + 6


def test_a_step_that_reaches_over_a_small_window_has_its_shards(whole, tmp_path):
    """The last shard holds a few sequences and is a window of its own: a step of a full one reaches from the window before it into that after."""
    num_sequences = whole.train.num_sequences
    size = next(size for size in range(20, 60) if 0 < num_sequences % size < size // 4)
    publish(whole, str(tmp_path / "remote"), size * 32 * 2)
    *full, last = [
        entry.num_bytes for entry in attached(tmp_path / "remote", tmp_path, max_bytes=2**30).train.published.shards
    ]
    bound, plan = sum(sorted(full)[-2:]) + last, BatchPlan.of(size, size, 1)
    job = _Job(data_config(tmp_path / "remote", tmp_path))
    with pytest.raises(
        UserError, match=rf"windows of .*=1 shards have {num_sequences % size} sequences or more, .* {bound} bytes"
    ):
        Feed.of(
            job, attached(tmp_path / "remote", tmp_path, max_bytes=bound - 1, window_shards=1).train, plan, "main", []
        )
    cache = attached(tmp_path / "remote", tmp_path, max_bytes=bound, window_shards=1)
    feed, most = Feed.of(job, cache.train, plan, "main", []), 0
    for step in range(4 * num_sequences // size):
        planned = feed.step_plan(step)
        feed.read_ahead(planned)
        for shard in cache.train._shards._wanted:  # whatever is fetched ahead may be there before the step reads
            cache.train._shards.get(shard)
        most = max(most, len(np.unique(planned.samples // size)))
        (batch,) = feed.micro_batches(planned, 0)
        assert np.array_equal(batch.inputs["input_ids"], whole.train.read(planned.samples)[0])
        assert bytes_in(cache) <= bound
    assert most == 3


def test_ranks_that_need_the_same_shard_at_once_fetch_it_once(remote, tmp_path, monkeypatch):
    cache = attached(remote, tmp_path)
    published, dtype = cache.train.published, cache.token_dtype
    fetched, read = [], Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, path, *rest: fetched.append(path) or read(self, path, *rest))
    folders = [
        ShardFolder(Storage(str(remote)), cache.path / "shards", published.shards, dtype, 2**30) for _ in range(4)
    ]
    start, found = threading.Barrier(4), []

    def rank(folder: ShardFolder) -> None:
        start.wait()
        found.extend(folder.get(shard).tobytes() == (remote / shard_path(shard)).read_bytes() for shard in range(20))

    threads = [threading.Thread(target=rank, args=[folder]) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80 and sorted(fetched) == [shard_path(shard) for shard in range(20)]


# -- faults --------------------------------------------------------------------------------------------------------
@pytest.fixture
def own_remote(remote, tmp_path) -> Path:
    return shutil.copytree(remote, tmp_path / "own")


def test_a_shard_that_disappears_stops_the_run_and_it_goes_on_when_it_is_back(own_remote, remote, tmp_path):
    store = attached(own_remote, tmp_path).train
    gone = own_remote / shard_path(2)
    gone.unlink()
    samples = np.arange(SHARD_SEQUENCES * 4)
    with pytest.raises(
        DataError, match=r"shard 2 of \d+ has disappeared: .*00000002.bin .*Put it back, or publish the same.*resume"
    ):
        store.read(samples)
    shutil.copy(remote / shard_path(2), gone)
    assert store.read(samples)[0].shape == (20, 32)


@pytest.mark.parametrize(
    ("damage", "what"), [(lambda data: data[:-2], r"it has \d+ of"), (lambda data: b"\xff" + data[1:], "its hash is")]
)
def test_a_shard_that_changed_stops_the_run_before_anything_of_it_is_fed(own_remote, tmp_path, damage, what):
    store = attached(own_remote, tmp_path).train
    path = own_remote / shard_path(1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"shard 1 of \d+ is not what was published.*{what}.*data.stream.url"):
        store.read(np.array([SHARD_SEQUENCES]))
    assert store.read(np.array([0]))[0].shape == (1, 32), "others can be read"
    assert [p.name for p in (attached(own_remote, tmp_path).path / "shards").glob("*.bin")] == ["00000000.bin"]


def test_a_shard_that_the_disk_damaged_is_fetched_again(remote, tmp_path):
    cache = attached(remote, tmp_path)
    expected = cache.train.read(np.array([0, 6]))
    local = cache.path / "shards" / "00000000.bin"
    local.write_bytes(b"\0" * local.stat().st_size)
    found = attached(remote, tmp_path).train.read(np.array([0, 6]))
    assert np.array_equal(found, expected)


def test_what_a_killed_fetch_left_takes_no_room(remote, tmp_path):
    cache = attached(remote, tmp_path)
    partial = cache.path / "shards" / "00000007.tmp"
    partial.write_bytes(b"x" * 5 * SHARD_BYTES)
    cache.train.read(np.array([0]))
    assert not partial.exists()


def test_what_does_not_fit_is_said_with_numbers(remote, tmp_path):
    with pytest.raises(UserError, match=r"data.stream.max_bytes=1000 is too little: .*6 of up to \d+ bytes, are \d+"):
        attached(remote, tmp_path, max_bytes=1000)
    with pytest.raises(UserError, match=r"too little for train.global_batch_size=400: .*can need shards of \d+ bytes"):
        Feed.of(
            _Job(data_config(remote, tmp_path)), attached(remote, tmp_path).train, BatchPlan.of(400, 2, 1), "main", []
        )
    cache = attached(remote, tmp_path)
    folder = ShardFolder(Storage(str(remote)), tmp_path / "x", cache.train.published.shards, cache.token_dtype, 400)
    folder.want([0, 1])
    with pytest.raises(StorageError, match=r"raise data.stream.max_bytes \(400\)"):
        for shard in (0, 1):
            folder.get(shard)


@pytest.mark.parametrize("setting", ["data.cache", "ZEROFLEET_SCRATCH"])
def test_storage_that_is_full_says_where(remote, tmp_path, monkeypatch, setting):
    if setting == "ZEROFLEET_SCRATCH":
        monkeypatch.setenv(setting, str(tmp_path / "nvme"))
    cache = attached(remote, tmp_path)

    def full(descriptor, offset, num_bytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match=f"the disk is full: free space there, or set {setting} to"):
        cache.train.read(np.array([0]))
    assert bytes_in(cache) == 0


def test_addresses_and_settings_that_are_wrong(whole, remote, own_remote, tmp_path):
    with pytest.raises(DataError, match=r"holds no published corpus \(stream.json is missing\): publish one"):
        attached(tmp_path / "nothing", tmp_path)
    with pytest.raises(UserError, match="data.stream.url='nowhere://x' cannot be opened"):
        attached("nowhere://x", tmp_path)
    with pytest.raises(
        UserError, match=r"sequence_length=64, but .* was prepared with 32: set data.sequence_length=32"
    ):
        wrong = data_config(remote, tmp_path).model_copy(update={"sequence_length": 64})
        attach(wrong, tmp_path, quiet)
    (own_remote / "stream.json").write_text('{"version": 1}')
    with pytest.raises(DataError, match="stream.json is damaged"):
        attached(own_remote, tmp_path)
    (own_remote / "stream.json").write_text('{"version": 7}')
    with pytest.raises(DataError, match="format version 7, this zerofleet reads 1"):
        attached(own_remote, tmp_path)
    with pytest.raises(ValueError, match="prepared when it was published: remove data.packing"):
        DataConfig(stream=StreamConfig(url="x"), packing="best_fit")
    with pytest.raises(ValueError, match="one of the four"):
        config("x", tmp_path, stream=StreamConfig(url="x"))


def test_a_table_that_changed_is_refused(own_remote, tmp_path):
    (own_remote / "train.ends.bin").write_bytes(b"\0" * (own_remote / "train.ends.bin").stat().st_size)
    with pytest.raises(DataError, match="train.ends.bin is not what was published"):
        attached(own_remote, tmp_path)


# -- publishing ----------------------------------------------------------------------------------------------------
def test_publishing_goes_on_where_it_was_killed_and_refuses_to_mix(whole, remote, own_remote, tmp_path):
    (own_remote / "stream.json").unlink()
    (own_remote / shard_path(3)).unlink()
    published = publish(whole, str(own_remote), SHARD_BYTES)
    assert Published.from_bytes((remote / "stream.json").read_bytes(), "") == published
    assert (own_remote / shard_path(3)).read_bytes() == (remote / shard_path(3)).read_bytes()
    with pytest.raises(UserError, match="is there already and is of another corpus, or was published with other"):
        publish(whole, str(own_remote), 2 * SHARD_BYTES)


def test_a_mixture_is_refused(tmp_path):
    sources = {name: {"files": [write_corpus(tmp_path / name, 10)], "weight": 1} for name in ("a", "b")}
    data = DataConfig(
        sources=sources, packing="best_fit", tokenizer_vocab_size=300, sequence_length=32, cache=str(tmp_path / "cache")
    )
    with pytest.raises(UserError, match="holds a mixture of 2 sources"):
        publish(prepare(data, 0, quiet), str(tmp_path / "remote"))
