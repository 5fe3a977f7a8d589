"""One pass finds what two would: hashes of blocks, digests of fragments, wherever parts and blocks cut them."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.checkpoint import format as format_module
from zerofleet.trainer.checkpoint import scan as scan_module
from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.checkpoint.commit import partial_digests
from zerofleet.trainer.checkpoint.format import DamagedFile
from zerofleet.trainer.checkpoint.fragments import DTYPES, FragmentKey
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta, open_snapshot

LENGTHS = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from(["F32", "BF16", "BOOL", "I64"])), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 700), st.integers(1, 900))
def test_it_agrees_with_separate_passes_however_it_is_cut(lengths, part_bytes, block_bytes):
    random = np.random.default_rng(sum(length for length, _ in lengths))
    payload, fragments = b"\x00" * 11, {}
    for number, (length, name) in enumerate(lengths):
        # The same tensor twice, of a later start: their digests add up.
        key = FragmentKey(f"t{number // 2}", "master", number * 1000, length, name)
        data = random.bytes(key.num_bytes)
        fragments[key] = (len(payload), len(payload) + len(data))
        payload += data
    payload += b"tail"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "PART_BYTES", part_bytes)
        patch.setattr(format_module, "BLOCK_BYTES", block_bytes)
        hashes, digests = scan_module.scan(memoryview(payload), fragments)
    blocks = [payload[start : start + block_bytes] for start in range(0, len(payload), block_bytes)]
    assert hashes == [xxhash.xxh3_128_hexdigest(block) for block in blocks]
    arrays = [(key, np.frombuffer(payload[start:end], DTYPES[key.dtype])) for key, (start, end) in fragments.items()]
    assert partial_digests(arrays) == digests


def test_a_snapshots_scan_is_its_hash_and_its_digests(tmp_path):
    keys = [FragmentKey("w", "master", 3, 1000, "F32"), FragmentKey("flags", "value", 0, 5, "BOOL")]
    with BufferSet(tmp_path, 0, 3).fill(SnapshotMeta(7, 1, "main", 0, 2, "token"), keys) as filling:
        filling.pieces[0].view(np.float32)[:] = np.arange(1000)
        filling.pieces[1][:] = 1
    snapshot = open_snapshot(filling.path)
    assert snapshot.scan() == (snapshot.hash(), partial_digests(snapshot.fragments()))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"data_offsets", b"\xff\xff\xff\xff_offsets"),
        (b'"F32"', b'"F22"'),
        (b"[0,4000]", b"[0,9000]"),
        (b"[0,4000]", b"[0,4e00]"),
    ],
)
def test_a_header_that_is_damaged_is_told(tmp_path, before, after):
    keys = [FragmentKey("w", "master", 0, 1000, "F32")]
    with BufferSet(tmp_path, 0, 3).fill(SnapshotMeta(7, 1, "main", 0, 2, "token"), keys) as filling:
        filling.pieces[0][:] = 1
    snapshot = open_snapshot(filling.path)
    content = filling.path.read_bytes()
    start = content.rindex(b"master/0/w")
    assert before in content[start:].replace(b" ", b" ")
    filling.path.write_bytes(content[:start] + content[start:].replace(before, after, 1))
    with pytest.raises(DamagedFile):
        snapshot.scan()
