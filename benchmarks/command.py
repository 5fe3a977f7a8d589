"""`zerofleet bench`: lists benchmarks, runs one and frames its record, compares two results.

A benchmark is a process of its own, `python -m zerofleet.benchmarks.NAME`, under torchrun where it needs ranks that are started from outside:
what measures must not have imported what is measured. What this module adds to a benchmark's record is the same for all
(`record.py`): what it ran on, the load before and after, every value with median and interval.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from zerofleet.benchmarks.checkout import build_of
from zerofleet.benchmarks.comparison import compare, differences, text_of
from zerofleet.benchmarks.page import write_pages
from zerofleet.benchmarks.record import LoadAverage, Result, read_result
from zerofleet.benchmarks.registry import BENCHMARKS, Benchmark, table
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.exit_codes import NOT_FOUND, OK, RUN_FAILED, USER_MISTAKE
from zerofleet.trainer.errors import UserError

_BUSY_SHARE = 0.3
"""Load average per core from which on a machine is not a quiet one."""

_TWO = """\
builds CHECKOUT [RECIPE]   this code and another checkout of it, whose steps take turns (--help)
compare A.json B.json      is B faster or slower than A, or can nobody tell? (--help)
"""
"""Of two things each."""


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0, 1 where a bar was missed or a result is slower, 2 for the user's mistake, 4 for a benchmark or a file that is not there."""
    parser = argparse.ArgumentParser(
        prog="zerofleet bench",
        description="Measure, and compare what was measured. `zerofleet bench NAME --help` shows a benchmark's own options.",
        epilog=f"benchmarks:\n{table()}\n{_TWO}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a benchmark, `builds` or `compare`; without one they are listed"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="of the benchmark, and --output FILE")
    given = parser.parse_args(list(arguments))
    if given.name is None:
        sys.stdout.write(f"{table()}\n{_TWO}")
        return OK
    if given.name == "compare":
        return _compare(given.options)
    if given.name == "builds":
        _needs_torch("builds")
        from zerofleet.benchmarks import builds

        return builds.main(given.options)
    if given.name not in BENCHMARKS:
        sys.stderr.write(
            f"error: there is no benchmark {given.name!r}; there are: builds, compare, {', '.join(BENCHMARKS)}\n"
        )
        return NOT_FOUND
    return _measure(BENCHMARKS[given.name], given.options)


def _compare(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="zerofleet bench compare", description="Exit code 1: B is slower in something."
    )
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    parser.add_argument(
        "--least-effect",
        type=float,
        metavar="SHARE",
        help="that is worth a verdict (default: 0.015 where runs took turns, else 0.05)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args(list(arguments))
    first, second = read_result(given.first), read_result(given.second)
    if unlike := differences(first, second):
        raise UserError("the two results must not be compared:\n  " + "\n  ".join(unlike))
    for path, result in ((given.first, first), (given.second, second)):
        load, cores = result.load_average.before[0], result.environment["cores"]
        if load > _BUSY_SHARE * cores:
            sys.stderr.write(
                f"warning: {path} was measured on a busy machine: load average {load:.1f} on {cores} cores\n"
            )
    findings = compare(first, second, given.least_effect)
    if not findings:
        raise UserError("the two results have no series in common that could be judged")
    is_worse = any(found.is_worse for found in findings)
    if given.json:
        builds = [result.build.model_dump() for result in (first, second)]
        sys.stdout.write(json.dumps({"builds": builds, "series": [asdict(found) for found in findings]}) + "\n")
    else:
        sys.stdout.write(text_of(findings))
    return RUN_FAILED if is_worse else OK


def _measure(benchmark: Benchmark, options: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output", type=Path)
    given, rest = parser.parse_known_args(options)
    if {"-h", "--help"} & set(rest):
        return subprocess.run(_command(benchmark, ["--help"], is_help=True), check=False).returncode
    started = datetime.now(UTC)
    output = given.output or Path(f"{started:%Y-%m-%d-%H%M%S}-{benchmark.name}.json")
    if output.suffix != ".json":
        raise UserError(f"--output {output}: name a file that ends in .json; its page and picture lie beside it")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.absolute().parent} is no folder: --output names a file in one")
    with tempfile.TemporaryDirectory(prefix="zerofleet-bench-") as folder:
        own = Path(folder) / "record.json"
        before, began = os.getloadavg(), time.monotonic()
        exit_code = _run(_command(benchmark, [*rest, "--output", str(own)]))
        load = LoadAverage(before=before, after=os.getloadavg())
        if not own.exists():
            sys.stderr.write(f"error: {benchmark.name} ended with exit code {exit_code} and without a record\n")
            return USER_MISTAKE if exit_code == USER_MISTAKE else RUN_FAILED
        facts = {"load_average": load, "duration_s": time.monotonic() - began, "exit_code": exit_code}
        result = framed(benchmark, rest, json.loads(own.read_text()), started=started, **facts)
        result.write(output)
        drawn = {page.suffix: page.read_text(encoding="utf-8") for page in Path(folder).glob("record.*") if page != own}
        write_pages(result, output, drawn)
    sys.stderr.write(f"{output}\n")
    return OK if exit_code == 0 else RUN_FAILED


def framed(
    benchmark: Benchmark, options: list[str], record: dict[str, object], started: datetime, **facts: object
) -> Result:
    """A benchmark's record in the form that all have."""
    environment = fingerprint()
    del environment["load_average"]  # it has its own place, before and after
    return Result.model_validate(
        {
            "benchmark": benchmark.name,
            "command": options,
            "build": build_of(),
            "environment": environment,
            "started_at": f"{started:%Y-%m-%dT%H:%M:%SZ}",
            "series": benchmark.series(record),
            "measured": record,
            **facts,
        }
    )


def _command(benchmark: Benchmark, options: list[str], is_help: bool = False) -> list[str]:
    module = f"zerofleet.benchmarks.{benchmark.name}"
    _needs_torch(benchmark.name)
    if benchmark.torchrun_ranks and not is_help:
        ranks = ["--standalone", "--nproc-per-node", str(benchmark.torchrun_ranks)]
        return [sys.executable, "-m", "torch.distributed.run", *ranks, "-m", module, *options]
    return [sys.executable, "-m", module, *options]


def _needs_torch(name: str) -> None:
    if find_spec("torch") is None:
        raise UserError(f"{name} needs torch: pip install 'zerofleet[train]'")


def _run(command: list[str]) -> int:
    """Runs it to its end; a SIGTERM or Ctrl-C is its, too: it ends what it has started."""
    # In a session of its own, so that a Ctrl-C on the terminal reaches it once, from here.
    process = subprocess.Popen(command, env={"OMP_NUM_THREADS": "1", **os.environ}, start_new_session=True)

    def pass_on(number: int, frame: object) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
