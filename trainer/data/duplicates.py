"""Documents that are in a corpus more than once: equal ones, and nearly equal ones. Which copy stays depends on the documents only.

Near duplicates are found by MinHash (A. Broder, "On the resemblance and containment of documents", 1997) over five consecutive tokens, the signatures
datasketch's, and locality-sensitive hashing in bands: documents that share a band are compared by their signatures, and what is alike, directly or
through others, is one group, of which the longest document stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.errors import UserError

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

CONTENT = np.dtype([("high", "<u8"), ("low", "<u8")])
"""xxh3-128 of a document's text."""
SIMILARITY = 0.8
"""Estimated Jaccard similarity of two documents' shingles from which they are near duplicates."""
NUM_HASHES = 128
BANDS, ROWS = 9, 13
"""What datasketch's MinHashLSH chooses for these two: the fewest false candidates and misses together."""
_SHINGLE_TOKENS = 5
_BATCH_SHINGLES = 2**16
_BATCH_PAIRS = 2**16
_MIX = np.uint64(0x9E3779B97F4A7C15)


def check_available() -> None:
    """Raises UserError where near duplicates cannot be found for want of a library."""
    try:
        import datasketch  # noqa: F401
        import scipy.sparse.csgraph  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"data.deduplicate=near needs {error.name}: pip install 'zerofleet[dedup]', or set data.deduplicate=exact"
        ) from error


def content_of(data: bytes) -> bytes:
    """One CONTENT."""
    digest = xxhash.xxh3_128_intdigest(data)
    return digest.to_bytes(16, "big")[:8][::-1] + digest.to_bytes(16, "big")[8:][::-1]


def signature(tokens: NDArray[Any]) -> NDArray[np.uint32]:
    """MinHash of a document's shingles, uint32 [NUM_HASHES]; a document shorter than a shingle is one."""
    from datasketch import MinHash

    shingles = np.zeros(max(1, len(tokens) - _SHINGLE_TOKENS + 1), np.uint64)
    for offset in range(min(_SHINGLE_TOKENS, len(tokens))):
        shingles = _mixed(shingles, tokens[offset : offset + len(shingles)].astype(np.uint64))
    hashes = np.unique((shingles >> np.uint64(32)).astype(np.uint32)).tolist()
    minhash = MinHash(num_perm=NUM_HASHES, seed=1, hashfunc=_as_it_is, scheme="affine32")
    for first in range(0, len(hashes), _BATCH_SHINGLES):  # each takes half a kilobyte
        minhash.update_batch(hashes[first : first + _BATCH_SHINGLES])
    found: NDArray[np.uint32] = minhash.hashvalues
    return found


def _as_it_is(value: int) -> int:
    return value


def _mixed(state: UInt64, values: UInt64) -> UInt64:
    """A step of a hash over columns: SplitMix64's finaliser (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = state * _MIX + values + _MIX
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def first_copies(contents: NDArray[Any]) -> NDArray[np.bool_]:
    """Of equal documents the first; `contents` is CONTENT [n]."""
    order = np.lexsort((contents["low"], contents["high"]))  # stable, so equal ones stay in their order
    ordered = contents[order]
    is_kept = np.ones(len(contents), bool)
    is_kept[order[1:]] = ordered[1:] != ordered[:-1]
    return is_kept


def unlike(contents: NDArray[Any], lengths: Int64, signatures: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Of each group of near duplicates the longest document, of several that long the one with the smallest hash.

    `contents` is CONTENT [n] without repetitions, `lengths` int64 [n] tokens, `signatures` uint32 [n, NUM_HASHES]. Documents in another order
    give the same choice.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(contents)
    rank = np.empty(size, np.int64)
    # The rank by content alone says whom a band's documents are compared with; none of this depends on their order.
    rank[np.lexsort((contents["low"], contents["high"], -lengths))] = np.arange(size)
    edges = [_alike_in_band(signatures, rank, band) for band in range(BANDS)]
    pairs = np.concatenate(edges) if edges else np.empty((0, 2), np.int64)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    _, groups = connected_components(graph, directed=False)
    order = np.lexsort((rank, groups))
    is_kept = np.ones(size, bool)
    is_kept[order[1:]] = groups[order[1:]] != groups[order[:-1]]
    return is_kept


def _alike_in_band(signatures: NDArray[np.uint32], rank: Int64, band: int) -> Int64:
    """Pairs [m, 2] of documents with the same rows of a band and signatures that are alike: each with the first of its bucket by rank."""
    keys = np.zeros(len(signatures), np.uint64)
    for row in range(band * ROWS, (band + 1) * ROWS):
        keys = _mixed(keys, signatures[:, row].astype(np.uint64))
    order = np.lexsort((rank, keys))
    begins = np.ones(len(order), bool)
    begins[1:] = keys[order[1:]] != keys[order[:-1]]
    firsts = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    pairs = np.stack([firsts, order], axis=1)[~begins]
    is_alike = np.empty(len(pairs), bool)
    for start in range(0, len(pairs), _BATCH_PAIRS):
        some = pairs[start : start + _BATCH_PAIRS]
        equal = signatures[some[:, 0]] == signatures[some[:, 1]]
        is_alike[start : start + _BATCH_PAIRS] = equal.mean(axis=1) >= SIMILARITY
    return pairs[is_alike]
