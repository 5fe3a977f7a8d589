"""Preparation of text against the tokenizer alone on the same cores, and killed five times on its way.

    zerofleet bench preparation --megabytes 1000 --pairs 5 --output benchmarks/results/DATE-preparation.json

Text is made of the readable files of this machine (source, documentation), as lines of JSON in files of 8 MB; where that is less than what is asked
for, it is taken again. Both arms run in a process of their own, alternately, with text and tokenizer given and files in the page cache:

- `tokenizer`: `encode_batch_fast` over all documents, which are in memory, in batches of a megabyte, by all threads; what it gives is dropped.
- `prepare`: `prepare()` from the listing of the files to the finished, durable cache. (transformers, which loads a tokenizer that is given, is imported
  before: some seconds whatever the size.)

Ratio = seconds of `tokenizer` over seconds of `prepare`; the bar is 0.90 in the median.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.statistics import median_interval
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.data.sources import resolve
from zerofleet.trainer.data.tokenizer import save_trained

BAR = 0.90
KILLS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the text after which a preparation is killed."""
_ENDINGS = (
    ".py",
    ".pyi",
    ".md",
    ".rst",
    ".txt",
    ".h",
    ".hpp",
    ".c",
    ".cpp",
    ".js",
    ".ts",
    ".html",
    ".css",
    ".sh",
    ".pl",
    ".pm",
)
_ROOTS = (sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share", "/usr/include", "/opt")
_FILE_BYTES, _DOCUMENT_BYTES, _BATCH_CHARS = 8 * 10**6, (200, 10**6), 2**20


def texts() -> Iterator[str]:
    """Readable files of this machine, each once."""
    seen = set()
    for root in _ROOTS:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for path in (Path(folder) / name for name in sorted(names) if name.endswith(_ENDINGS)):
                real = path.resolve()
                if (
                    real in seen
                    or not real.is_file()
                    or not _DOCUMENT_BYTES[0] <= real.stat().st_size <= _DOCUMENT_BYTES[1]
                ):
                    continue
                seen.add(real)
                try:
                    yield real.read_text("utf-8")
                except (UnicodeDecodeError, OSError):
                    continue


def write_text(folder: Path, num_bytes: int) -> dict[str, Any]:
    """Files of JSON lines with `num_bytes` of text in all, and what they are made of."""
    folder.mkdir()
    written = distinct = num_documents = 0
    rounds = 0
    out = (folder / "000.jsonl").open("wb")
    while written < num_bytes:
        before = written
        for text in texts():
            size = len(text.encode())
            if out.tell() > _FILE_BYTES:
                out.close()
                out = (folder / f"{len(list(folder.iterdir())):03d}.jsonl").open("wb")
            out.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            written, num_documents = written + size, num_documents + 1
            if written >= num_bytes:
                break
        distinct, rounds = max(distinct, written - before), rounds + 1
    out.close()
    return {
        "bytes": written,
        "distinct_bytes": distinct,
        "documents": num_documents,
        "files": len(list(folder.iterdir())),
    }


def config(folder: Path, cache: str) -> DataConfig:
    return DataConfig(
        files=[f"{folder}/text/*.jsonl"], tokenizer=str(folder / "tokenizer"), packing="best_fit", cache=cache
    )


def tokenizer_alone(folder: Path) -> float:
    """Seconds of the tokenizer over all documents."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    documents = [text for shard in resolve(config(folder, "")).shards for text in shard.documents()]
    batches: list[list[str]] = [[]]
    num_chars = 0
    for document in documents:
        batches[-1].append(document)
        num_chars += len(document)
        if num_chars >= _BATCH_CHARS:
            batches.append([])
            num_chars = 0
    start = time.perf_counter()
    for batch in batches:
        backend.encode_batch_fast(batch, add_special_tokens=False)
    return time.perf_counter() - start


def whole_preparation(folder: Path, cache: str, pause_at: float) -> float:
    """Seconds of a preparation. It says where it is, so that it can be killed there."""

    def say(stage: str, fraction: float, detail: str) -> None:
        if stage == "tokenise" and fraction >= pause_at:
            print("here", flush=True)
            time.sleep(3600)  # until it is killed

    import transformers

    assert transformers.AutoTokenizer is not None  # it is imported at its first use
    start = time.perf_counter()
    prepare(config(folder, cache), 0, say)
    return time.perf_counter() - start


def in_a_process(arm: str, folder: Path, cache: Path, pause_at: float = 2.0) -> float | None:
    """Seconds of an arm; None when it was killed where it paused."""
    command = [sys.executable, "-m", "zerofleet.benchmarks.preparation", "--arm", arm, "--folder", str(folder)]
    command += ["--cache", str(cache), "--pause-at", str(pause_at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line == "here\n":
            process.kill()
            return None
    if process.returncode:
        raise SystemExit(f"the arm {arm} failed with exit code {process.returncode}")
    return float(line)


def killed(folder: Path, reference: DataCache) -> dict[str, Any]:
    """A preparation that is killed five times, compared with the unbroken one."""
    cache = folder / "killed"
    start, kept = time.perf_counter(), []
    for share in KILLS:
        assert in_a_process("prepare", folder, cache, share) is None, f"it was through before {share:.0%}"
        kept.append(len(list(cache.glob("*/parts/*.docs"))))
    seconds = in_a_process("prepare", folder, cache)
    again = DataCache.open(cache / reference.path.name)
    again.verify()
    names = ["index.json", *(path.name for path in reference.path.glob("*.bin"))]
    equal = all((again.path / name).read_bytes() == (reference.path / name).read_bytes() for name in names)
    return {
        "kills": list(KILLS),
        "parts_kept": kept,
        "last_s": seconds,
        "all_s": time.perf_counter() - start,
        "identical": equal,
    }


def measure(megabytes: int, pairs: int, folder: Path) -> dict[str, Any]:
    text = write_text(folder / "text", megabytes * 10**6)
    unsaved = DataConfig(files=[f"{folder}/text/*.jsonl"])
    save_trained(resolve(unsaved), 32_768, folder / "tokenizer")
    found: list[dict[str, float]] = []
    for pair in range(pairs):
        seconds = {}
        for arm in ("tokenizer", "prepare") if pair % 2 else ("prepare", "tokenizer"):
            cache = folder / f"cache-{pair}"
            seconds[arm] = in_a_process(arm, folder, cache) or 0.0
        found.append(seconds)
        print(f"pair {pair + 1}: {seconds}", file=sys.stderr)
        if pair:
            shutil.rmtree(folder / f"cache-{pair}")
    (path,) = (folder / "cache-0").iterdir()
    reference = DataCache.open(path)
    low, median, high = median_interval([pair["tokenizer"] / pair["prepare"] for pair in found])
    return {
        "environment": fingerprint(),
        "text": text,
        "tokens": reference.train.num_tokens + reference.heldout.num_tokens,
        "pairs": found,
        "ratio": {"median": median, "interval": [low, high], "bar": BAR, "met": median >= BAR},
        "prepare_mb_per_s": text["bytes"] / 1e6 / median_interval([pair["prepare"] for pair in found])[1],
        "killed": killed(folder, reference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file to write, without its ending .json")
    parser.add_argument("--arm", choices=("tokenizer", "prepare"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--pause-at", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm == "tokenizer":
        print(tokenizer_alone(arguments.folder))
    elif arguments.arm == "prepare":
        print(whole_preparation(arguments.folder, arguments.cache, arguments.pause_at))
    else:
        with tempfile.TemporaryDirectory(prefix="zerofleet-preparation-") as folder:
            result = measure(arguments.megabytes, arguments.pairs, Path(folder))
        print(json.dumps(result, indent=1))
        if arguments.output:
            arguments.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
