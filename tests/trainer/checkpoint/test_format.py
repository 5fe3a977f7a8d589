"""The format: safetensors that others can read, blocks verified as they are read, a manifest that guards itself."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from zerofleet.trainer.checkpoint import format as checkpoint_format
from zerofleet.trainer.checkpoint import reader as reader_module
from zerofleet.trainer.checkpoint.format import DamagedFile, Manifest, Scalars, Wanted, write_rank_file
from zerofleet.trainer.checkpoint.fragments import FragmentKey, Tensor, digest
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import CheckpointId
from zerofleet.trainer.storage import Storage

CHECKPOINT = CheckpointId(10, 1)
VALUES = np.arange(1000, dtype=np.float32)
OTHER = np.arange(300, dtype=np.float32) * 2


@pytest.fixture(params=[16 * 1024 * 1024, 512])
def storage(request, tmp_path, monkeypatch):
    """Blocks of 512 bytes make ranges cross them."""
    monkeypatch.setattr(checkpoint_format, "BLOCK_BYTES", request.param)
    return saved(Storage(str(tmp_path)))


def saved(storage: Storage) -> Storage:
    """Two rank files: `w` is cut at 600, `v` lies whole in the second."""
    files = [
        write_rank_file(storage, CHECKPOINT, 0, 2, [(FragmentKey("w", "master", 0, 600, "F32"), VALUES[:600])]),
        write_rank_file(
            storage,
            CHECKPOINT,
            1,
            2,
            [
                (FragmentKey("w", "master", 600, 400, "F32"), VALUES[600:]),
                (FragmentKey("v", "master", 0, 300, "F32"), OTHER),
            ],
        ),
    ]
    storage.create(CHECKPOINT.manifest, manifest(files).to_bytes())
    return storage


def manifest(files):
    return Manifest(
        step=10,
        attempt=1,
        silo="main",
        world_size=2,
        zero_stage=1,
        precision="fp32",
        position=80,
        quarantine=[],
        scalars=Scalars([10, 10], {"scale": 65536.0}, {"global_steps": 10, "skipped_steps": 0}),
        tensors={"w": Tensor((10, 100), {"master": "F32"}, ("tied",)), "v": Tensor((300,), {"master": "F32"})},
        digests={"master/w": f"{digest(VALUES, 0):016x}", "master/v": f"{digest(OTHER, 0):016x}"},
        rank_files=files,
        fingerprints={"data": "d"},
        versions={"torch": "2"},
        created_at=1.5,
    )


@pytest.mark.parametrize(("start", "length"), [(0, 1000), (0, 1), (599, 2), (600, 400), (123, 777), (999, 1), (5, 0)])
def test_any_run_of_elements_is_read_across_files_and_blocks(storage, start, length):
    assert np.array_equal(
        CheckpointReader(storage, CHECKPOINT).read("w", "master", start, length), VALUES[start : start + length]
    )


def test_all_that_is_wanted_is_read_into_place(storage):
    targets = [np.zeros(length, np.float32) for length in (500, 300, 123, 0)]
    wanted = [Wanted("w", "master", 0, targets[0]), Wanted("v", "master", 0, targets[1])]
    wanted += [Wanted("w", "master", 577, targets[2]), Wanted("w", "master", 0, targets[3])]
    calls = []
    CheckpointReader(storage, CHECKPOINT).fill(wanted, lambda: calls.append(1))
    assert np.array_equal(targets[0], VALUES[:500]) and np.array_equal(targets[1], OTHER)
    assert np.array_equal(targets[2], VALUES[577:700]) and calls


def test_the_same_from_an_object_store():
    """Its files cannot be mapped: they come as bytes, and are copied."""
    target = np.zeros(1000, np.float32)
    storage = saved(Storage(f"memory://{uuid.uuid4().hex}"))
    CheckpointReader(storage, CHECKPOINT).fill([Wanted("w", "master", 0, target)])
    assert np.array_equal(target, VALUES)


def test_nothing_is_read_into_place_unverified(storage):
    file = storage.local_path(CHECKPOINT.rank_file(0, 2))
    original = file.read_bytes()
    reader = CheckpointReader(storage, CHECKPOINT)
    for damage in (bytes([original[0] ^ 1]) + original[1:], original[:-1] + b"?", original[:-1]):
        file.write_bytes(damage)
        with pytest.raises(DamagedFile, match=r"rank-00000-of-00002.safetensors: block \d+"):
            reader.fill([Wanted("w", "master", 0, np.zeros(600, np.float32))])
    file.unlink()
    with pytest.raises(DamagedFile, match="is missing"):
        reader.fill([Wanted("w", "master", 0, np.zeros(600, np.float32))])


class Asked(Storage):
    """Answers for a size when as many have asked as a barrier waits for."""

    def __init__(self, url: str, parties: int) -> None:
        super().__init__(url)
        self._barrier, self.count = threading.Barrier(parties), 0

    def size(self, path: str) -> int:
        self._barrier.wait(10)
        self.count += 1
        return super().size(path)


def test_rank_files_are_asked_for_their_headers_at_once(tmp_path):
    saved(Storage(str(tmp_path)))
    asked = Asked(str(tmp_path), parties=2)
    CheckpointReader(asked, CHECKPOINT).check_blocks()
    assert asked.count == 2


def test_storage_that_is_away_is_not_asked_for_every_file(tmp_path, monkeypatch):
    storage = saved(Storage(str(tmp_path)))
    whole = Manifest.from_bytes(storage.read(CHECKPOINT.manifest))
    monkeypatch.setattr(reader_module, "FILES_AT_A_TIME", 2)
    asked, many = [], 1000

    def away(path: str) -> int:
        asked.append(path)
        time.sleep(0.02)  # storage that is away takes its time to say so: 10 s for all of them
        raise StorageError("away")

    monkeypatch.setattr(storage, "size", away)
    monkeypatch.setattr(Manifest, "from_bytes", lambda data: replace(whole, rank_files=whole.rank_files * (many // 2)))
    with pytest.raises(StorageError):
        CheckpointReader(storage, CHECKPOINT)
    assert len(asked) < many / 2


def test_a_tensor_has_its_shape_and_the_manifest_survives_the_way(storage):
    reader = CheckpointReader(storage, CHECKPOINT)
    assert reader.read_tensor("w", "master").shape == (10, 100)
    assert reader.manifest == manifest(reader.manifest.rank_files)


def test_a_rank_file_is_plain_safetensors(storage):
    found = load_file(storage.local_path(CHECKPOINT.rank_file(1, 2)))
    assert sorted(found) == ["master/0/v", "master/600/w"] and np.array_equal(found["master/0/v"], OTHER)


def test_every_flipped_byte_is_found(storage):
    for path in (CHECKPOINT.rank_file(0, 2), CHECKPOINT.rank_file(1, 2), CHECKPOINT.manifest):
        file = storage.local_path(path)
        original = file.read_bytes()
        for offset in range(0, len(original), max(1, len(original) // 60)):
            damaged = bytearray(original)
            damaged[offset] ^= 0x01
            file.write_bytes(damaged)
            with pytest.raises(DamagedFile):
                CheckpointReader(storage, CHECKPOINT).check_blocks()
        file.write_bytes(original)
    CheckpointReader(storage, CHECKPOINT).check_blocks()


@pytest.mark.parametrize("storage", [512], indirect=True)
def test_only_the_blocks_of_a_range_are_read(storage):
    file = storage.local_path(CHECKPOINT.rank_file(0, 2))
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    reader = CheckpointReader(storage, CHECKPOINT)
    assert np.array_equal(reader.read("w", "master", 0, 100), VALUES[:100])
    with pytest.raises(DamagedFile, match=r"rank-00000-of-00002.safetensors: block \d+"):
        reader.read("w", "master", 500, 100)


def test_a_gap_between_fragments_is_found(tmp_path):
    storage = Storage(str(tmp_path))
    file = write_rank_file(storage, CHECKPOINT, 0, 1, [(FragmentKey("v", "master", 0, 100, "F32"), OTHER[:100])])
    storage.create(CHECKPOINT.manifest, manifest([file]).to_bytes())
    with pytest.raises(DamagedFile, match="no rank file holds elements 100 to 300 of master/v"):
        CheckpointReader(storage, CHECKPOINT).read("v", "master", 0, 300)


def test_without_a_manifest_there_is_no_checkpoint(storage):
    storage.remove(CHECKPOINT.manifest)
    with pytest.raises(DamagedFile, match="never completed"):
        CheckpointReader(storage, CHECKPOINT)


def test_a_format_of_the_future_is_refused(storage):
    future = Manifest(**{**CheckpointReader(storage, CHECKPOINT).manifest.__dict__, "format_version": 2})
    with pytest.raises(DamagedFile, match="format 2, this version reads 1"):
        Manifest.from_bytes(future.to_bytes())
