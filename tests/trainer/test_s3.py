"""S3 behind a network that delays, cuts, refuses and swallows: what is repeated, what is told, and that nothing waits for ever."""

from __future__ import annotations

import time

import fsspec
import pytest

from zerofleet.benchmarks.s3.proxy import BLACK_HOLE, LOSE_ANSWER, NONE, REFUSE, BadProxy, Fault
from zerofleet.benchmarks.s3.server import BUCKET, S3Server, environment
from zerofleet.trainer import s3
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.storage import SegmentWriter, Storage, read_segments

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]
PART_BYTES = 5 * 2**20
TIMEOUT_S = 0.5


@pytest.fixture(scope="module")
def proxy():
    pytest.importorskip("moto", reason="the S3 server of the tests is moto, of the dev extra")
    with S3Server() as server, BadProxy(server.port) as running:
        yield running


@pytest.fixture
def storage(proxy, tmp_path, monkeypatch):
    proxy.fault = NONE
    proxy.injected.clear()
    for name, value in environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    settings = {
        "default_block_size": PART_BYTES,
        "config_kwargs": {"read_timeout": TIMEOUT_S, "connect_timeout": TIMEOUT_S},
    }
    monkeypatch.setattr(s3, "SLOWEST_BYTES_PER_S", 20e6)
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    yield Storage(f"s3://{BUCKET}/{tmp_path.name}")
    proxy.fault = NONE


def blocks(count):
    return [bytes([number]) * 2**20 for number in range(count)]


def test_a_create_whose_answer_was_lost_is_ours_and_no_second_one_is(proxy, storage):
    proxy.fault = LOSE_ANSWER
    storage.create("claim", b"mine")
    assert proxy.injected["cut"] == 1 and storage.read("claim") == b"mine"
    with pytest.raises(FileExistsError):
        storage.create("claim", b"mine")


def test_a_lost_answer_gives_nobody_the_claim_of_another(proxy, storage):
    storage.create("claim", b"of another")
    proxy.fault = LOSE_ANSWER
    with pytest.raises(FileExistsError):
        storage.create("claim", b"mine")
    assert proxy.injected["cut"] == 1 and storage.read("claim") == b"of another"


@pytest.mark.parametrize("direction", ["request", "answer"])
def test_a_cut_in_the_middle_of_a_body_is_repeated(proxy, storage, direction):
    storage.write_stream("before", blocks(8))
    proxy.fault = Fault("cut", direction=direction, after_bytes=2**20)
    if direction == "request":
        assert storage.write_stream("x", blocks(12)) == 12 * 2**20
        assert storage.read("x") == b"".join(blocks(12))
    else:
        assert storage.read("before", 2**20, 7 * 2**20) == b"".join(blocks(8)[1:7])
    assert proxy.injected["cut"] == 1


def test_what_cannot_be_sent_leaves_nothing_and_can_be_sent_later(proxy, storage):
    proxy.fault = Fault("cut", direction="request", after_bytes=2**20, times=100)
    with pytest.raises(StorageError, match="check run.storage"):
        storage.write_stream("x", blocks(12))
    proxy.fault = NONE
    assert not storage.exists("x") and storage.list() == []
    assert storage.write_stream("x", blocks(12)) == 12 * 2**20


def test_delays_are_only_slow(proxy, storage):
    proxy.fault = Fault("delay", delay_s=0.05)
    storage.create("a", b"1")
    assert storage.list() == ["a"] and storage.read("a") == b"1" and proxy.injected["delay"] >= 3


ACTIONS = {
    "create": lambda storage: storage.create("new", b"1"),
    "stream": lambda storage: storage.write_stream("new", blocks(12)),
    "read": lambda storage: storage.read("there"),
    "range": lambda storage: storage.read("there", 1, 3),
    "size": lambda storage: storage.size("there"),
    "exists": lambda storage: storage.exists("there"),
    "list": lambda storage: storage.list(""),
    "remove": lambda storage: storage.remove("there"),
}


@pytest.mark.parametrize("fault", [REFUSE, BLACK_HOLE], ids=["refused", "swallowed"])
@pytest.mark.parametrize("action", ACTIONS)
def test_an_outage_is_a_storage_error_in_bounded_time_and_never_an_answer(proxy, storage, action, fault):
    """`exists` and `list` above all: an outage must not look like a run without checkpoints."""
    storage.create("there", b"12345")
    proxy.fault, began = fault, time.monotonic()
    with pytest.raises(StorageError):
        ACTIONS[action](storage)
    # 3 tries of at most twice TIMEOUT_S and the body's time, pauses of 1 s; the same again to give up an upload
    assert time.monotonic() - began < 10 and proxy.injected[fault.kind] >= 2
    proxy.fault = NONE
    assert storage.read("there") == b"12345"
    ACTIONS[action](storage)


def test_a_blip_is_not_noticed(proxy, storage):
    storage.create("there", b"1")
    proxy.fault = Fault("cut", times=2)
    assert storage.list() == ["there"]
    proxy.fault = Fault("cut", times=2)
    assert storage.read("there") == b"1"


def test_segments_survive_an_outage_in_order_and_once(proxy, storage):
    writer = SegmentWriter(storage, "log")
    for number in range(6):
        proxy.fault = [NONE, REFUSE, LOSE_ANSWER, REFUSE, BLACK_HOLE, NONE][number]
        writer.append(str(number))
        try:
            writer.flush()
        except StorageError:
            assert proxy.fault in (REFUSE, BLACK_HOLE)
    writer.close()
    assert list(read_segments(storage, "log")) == [str(number) for number in range(6)]
