"""Reading a checkpoint in storage: every block is verified against the manifest's hash as it is read."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from zerofleet.trainer.checkpoint import format as checkpoint_format
from zerofleet.trainer.checkpoint.format import (
    DamagedFile,
    FragmentTable,
    Header,
    Manifest,
    Piece,
    RankFile,
    RankFileReader,
    parse_header,
)
from zerofleet.trainer.run_folder import CheckpointId
from zerofleet.trainer.storage import Storage

BlockCache = OrderedDict[tuple[str, int], bytes]
"""(path, block) to verified bytes, least recently used first."""
FILES_AT_A_TIME = 32
"""Rank files that are asked for their size and header at once: each is a round trip or two, and the driver looks at all of them before every
attempt. One after the other took longer than an attempt may take to start, at 16,384 ranks (docs/scale.md)."""
CACHED_BLOCKS = 8
"""Blocks that one process keeps while it reads a checkpoint, whatever the number of rank files: 128 MiB."""


class VerifiedReader:
    """Byte ranges of one rank file; every block is checked against the manifest's hash before a byte of it is used."""

    def __init__(self, storage: Storage, folder: str, file: RankFile, cache: BlockCache) -> None:
        self._storage, self._path, self._file, self._cache = storage, f"{folder}/{file.path}", file, cache

    def check_size(self) -> None:
        """Raises DamagedFile when the file is missing or has another size."""
        try:
            size = self._storage.size(self._path)
        except FileNotFoundError as error:
            raise DamagedFile(f"{self._file.path} is missing") from error
        if size != self._file.num_bytes:
            raise DamagedFile(f"{self._file.path} has {size} bytes, the manifest says {self._file.num_bytes}")

    def checked_header(self) -> Header:
        """The header of a file that has its size. Raises DamagedFile."""
        self.check_size()
        return self.header()

    def header(self) -> Header:
        """Fragments and their absolute byte range in the file. Raises DamagedFile."""
        data = self._read_raw(0, self._file.header_bytes)
        if xxhash.xxh3_128_hexdigest(data) != self._file.header_digest:
            raise DamagedFile(f"{self._file.path}: its header does not match the manifest's digest")
        return parse_header(data)

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), verified. Raises DamagedFile."""
        pieces = []
        for block in range(start // checkpoint_format.BLOCK_BYTES, -(-end // checkpoint_format.BLOCK_BYTES)):
            offset = block * checkpoint_format.BLOCK_BYTES
            pieces.append(self._block(block)[max(start - offset, 0) : max(end - offset, 0)])
        return b"".join(pieces)

    def check_blocks(self) -> None:
        """Reads and verifies the whole file. Raises DamagedFile."""
        for block in range(len(self._file.blocks)):
            self._read_block(block)

    def tasks(self, pieces: Sequence[Piece]) -> Iterator[Callable[[], None]]:
        """One per block that holds any of the pieces: reads it, what is wanted straight into place, and verifies it. Each raises
        DamagedFile."""
        size = checkpoint_format.BLOCK_BYTES
        by_block: dict[int, list[Piece]] = {}
        for piece in sorted(pieces, key=lambda piece: piece.start):
            for block in range(piece.start // size, -(-piece.end // size)):
                by_block.setdefault(block, []).append(piece.within(block * size, (block + 1) * size))
        for block, inside in by_block.items():
            yield functools.partial(self._fill_from_block, block, inside)

    def _fill_from_block(self, block: int, pieces: Sequence[Piece]) -> None:
        start = position = block * checkpoint_format.BLOCK_BYTES
        end = min(start + checkpoint_format.BLOCK_BYTES, self._file.num_bytes)
        places: list[memoryview] = []
        for piece in [*pieces, Piece(end, memoryview(bytearray()))]:
            # What is not wanted has to be read too: the hash is of the whole block.
            places += [memoryview(bytearray(piece.start - position)), piece.target]
            position = piece.end
        found = xxhash.xxh3_128()
        try:
            for part in self._storage.read_pieces(self._path, start, places):
                found.update(part)
        except FileNotFoundError as error:
            raise DamagedFile(f"{self._file.path} is missing") from error
        self._check(block, found.hexdigest())

    def _block(self, block: int) -> bytes:
        key = (self._path, block)
        if key not in self._cache:
            self._cache[key] = self._read_block(block)
            if len(self._cache) > CACHED_BLOCKS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _read_block(self, block: int) -> bytes:
        start = block * checkpoint_format.BLOCK_BYTES
        data = self._read_raw(start, min(start + checkpoint_format.BLOCK_BYTES, self._file.num_bytes))
        self._check(block, xxhash.xxh3_128_hexdigest(data))
        return data

    def _check(self, block: int, found: str) -> None:
        if found != self._file.blocks[block]:
            start = block * checkpoint_format.BLOCK_BYTES
            end = min(start + checkpoint_format.BLOCK_BYTES, self._file.num_bytes)
            raise DamagedFile(f"{self._file.path}: block {block} (bytes {start} to {end}) does not match its hash")

    def _read_raw(self, start: int, end: int) -> bytes:
        try:
            return self._storage.read(self._path, start, end)
        except FileNotFoundError as error:
            raise DamagedFile(f"{self._file.path} is missing") from error


class CheckpointReader(FragmentTable):
    """A checkpoint in storage."""

    def __init__(self, storage: Storage, checkpoint: CheckpointId) -> None:
        """Reads the manifest and all headers. Raises DamagedFile."""
        self.checkpoint = checkpoint
        try:
            self.manifest = Manifest.from_bytes(storage.read(checkpoint.manifest))
        except FileNotFoundError as error:
            raise DamagedFile("it has no manifest.json: it was never completed") from error
        cache: BlockCache = OrderedDict()
        self._readers = [VerifiedReader(storage, checkpoint.folder, file, cache) for file in self.manifest.rank_files]
        with ThreadPoolExecutor(FILES_AT_A_TIME, "headers") as pool:
            # At the first that fails `map` gives up the rest: storage that is away is not asked for thousands of files more.
            headers = pool.map(VerifiedReader.checked_header, self._readers)
            super().__init__(self.manifest.tensors, zip(self._readers, headers, strict=True))

    def _tasks(self, reader: RankFileReader, pieces: Sequence[Piece]) -> Iterator[Callable[[], None]]:
        assert isinstance(reader, VerifiedReader)
        return reader.tasks(pieces)

    def partial_digests(self, rank: int, world_size: int) -> None:
        """The manifest holds the digests."""

    def check_blocks(self) -> None:
        """Verifies every byte of every file. Raises DamagedFile."""
        for reader in self._readers:
            reader.check_blocks()
