"""Where the figures lie in each benchmark's own record: the series that its results are compared by, every value of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zerofleet.benchmarks.record import Better, Series

Record = Mapping[str, Any]


def throughput(record: Record) -> list[Series]:
    found = []
    for case in record["cases"]:
        found += _series(f"{case['case']}: step", "s", "lower", case["steps_s"])
        found += _series(f"{case['case']}: peak memory of a rank", "bytes", "lower", [max(case["peak_bytes"])])
    return found


def overhead(record: Record) -> list[Series]:
    arms = {"zerofleet": ("A1", "A2"), "bare": ("B1", "B2")}
    values = {name: [sum(pair[arm] for arm in both) / 2 for pair in record["pairs_s"]] for name, both in arms.items()}
    over = [ours / bare for ours, bare in zip(values["zerofleet"], values["bare"], strict=True)]
    return [
        *_series("zerofleet's step", "s", "lower", values["zerofleet"]),
        *_series("bare step", "s", None, values["bare"]),
        *_series("step over bare step", "", "lower", over),
    ]


def peer_throughput(record: Record) -> list[Series]:
    found = []
    for each in record["pairings"]:
        values = [peer / ours for ours, peer in each["seconds"]]
        found += _series(
            f"{each['model']}{', compiled' if each['is_compiled'] else ''}: step of {each['peer']} over zerofleet's",
            "",
            "higher",
            values,
        )
    return found


def speed(record: Record) -> list[Series]:
    found = []
    for each in record["arms"]:
        found += _series(f"step, {each['arm']}", "s", "lower", [seconds for seconds, *_ in each["starts"]])
    return found


def checkpoint(record: Record) -> list[Series]:
    found = [*_by_arm(record["rounds"], "zerofleet"), *_by_arm(record["resizes"], "zerofleet")]
    for label, pairs in record["slowdown_pairs"].items():
        found += _series(label, "", "lower", [pair["saving_s"] / pair["plain_s"] for pair in pairs])
    return found


def recovery(record: Record) -> list[Series]:
    rounds = [
        {name: {key: trial[key] for key in ("recovery_s", "cold_start_s")} for name, trial in _trials(each)}
        for each in record["rounds"]
    ]
    return list(_by_arm(rounds, "zerofleet"))


def _trials(a_round: Record) -> Iterator[tuple[str, Record]]:
    """Of the systems that came through."""
    for name, trial in a_round.items():
        if isinstance(trial, dict) and "error" not in trial:
            yield name, trial


def goodput(record: Record) -> list[Series]:
    return [
        *_series("goodput", "", "higher", [record["goodput"]]),
        *_series("goodput without faults", "", "higher", [record["unbroken_goodput"]["goodput"]]),
    ]


def controller(record: Record) -> list[Series]:
    found = _series("poll", "s", "lower", record["controller"]["poll_s"]["values"])
    for groups, prefix in ((record["controller"]["verdict_s"], "verdict, "), (record["plans_s"], "plan of ")):
        for name, spread in groups.items():
            found += _series(f"{prefix}{name}", "s", "lower", spread["values"])
    return found


def loader(record: Record) -> list[Series]:
    found = []
    for length, rounds in record["rounds"].items():
        for name in rounds[0]:
            rates = [each[name]["tokens"] / each[name]["cpu_s"] for each in rounds]
            found += _series(f"{length} tokens, {name}", "tokens/s", "higher" if name == "zerofleet" else None, rates)
    return found


def preparation(record: Record) -> list[Series]:
    return [
        *_series("preparation", "s", "lower", [pair["prepare"] for pair in record["pairs"]]),
        *_series("tokenizer alone", "s", None, [pair["tokenizer"] for pair in record["pairs"]]),
    ]


def plan_memory(record: Record) -> list[Series]:
    return _series("planned over measured memory", "", None, [case["ratio"] for case in record["cases"]])


def silos(record: Record) -> list[Series]:
    return [
        *_series("loss gap to data parallel", "", None, [seed["gap"] for seed in record["seeds"]]),
        *_series("fewer bytes than data parallel", "", "higher", [seed["egress"]["ratio"] for seed in record["seeds"]]),
    ]


def silos_aggregation(record: Record) -> list[Series]:
    found = []
    for name, seconds in record["seconds"].items():
        found += _series(name, "s", None if name == "flower" else "lower", seconds)
    for name, megabytes in record["peak_memory_mb"]["ours"].items():
        found += _series(f"memory for {name} silos", "MB", "lower", [megabytes])
    return found


def silo_faults(record: Record) -> list[Series]:
    return []


def fault_matrix(record: Record) -> list[Series]:
    restored = [cell["restored_s"] for cell in record["cells"] if cell["restored_s"] is not None]
    return _series("fault to the first new step, all faults", "s", None, restored)


def compare_power(record: Record) -> list[Series]:
    found = []
    for name, arm in record["arms"].items():
        found += _series(f"ratio found, {name}", "", None, [trial["ratio"] for trial in arm["trials"]])
    return found


def regression(record: Record) -> list[Series]:
    return [series for name, value in record["figures"].items() for series in _series(name, "", None, [value])]


def _by_arm(rounds: Sequence[Record], ours: str) -> Iterator[Series]:
    """Every figure of every arm; only ours are judged."""
    names = dict.fromkeys((arm, figure) for each in rounds for arm, figures in each.items() for figure in figures)
    for arm, figure in names:
        values = [each[arm][figure] for each in rounds if figure in each.get(arm, {})]
        is_ours, is_seconds = arm.startswith(ours), figure.endswith("_s")
        better: Better | None = "lower" if is_ours and is_seconds else None
        yield from _series(f"{arm}: {figure}", "s" if is_seconds else "", better, values)


def _series(name: str, unit: str, better: Better | None, values: Sequence[float]) -> list[Series]:
    """None where nothing was measured."""
    return [Series.of(name, unit, better, list(values))] if values else []
