"""Verdicts on pairs of results, and what is refused."""

import json
import random

import pytest

from zerofleet.benchmarks.comparison import compare, differences, text_of
from zerofleet.benchmarks.record import Result, Series, read_result
from zerofleet.trainer.errors import NotFoundError, UserError

from .test_ratio_intervals import Machine

ENVIRONMENT = {"processor": "P", "cores": 2, "packages": {"torch": "2.13.0", "zerofleet": "0.4.0"}}


def result(*series: Series, session: str | None = None, arm: str = "A", **changes) -> Result:
    fields = {
        "benchmark": "throughput",
        "command": ["--steps", "50"],
        "build": {"version": "0.4.0", "commit": None},
        "environment": ENVIRONMENT,
        "load_average": {"before": (0, 0, 0), "after": (1, 1, 1)},
        "started_at": "2026-11-23T00:00:00Z",
        "duration_s": 1.0,
        "exit_code": 0,
        "alternation": {"session": session, "arm": arm} if session else None,
        "series": list(series),
        "measured": {},
    }
    return Result.model_validate(fields | changes)


def steps(values, better="lower", unit="s", name="step") -> Series:
    return Series.of(name, unit, better, list(values))


def verdicts(first: Result, second: Result, **options) -> list[str]:
    return [found.verdict for found in compare(first, second, **options)]


def width(found) -> float:
    return found.interval.high - found.interval.low


def alternated(seed: int, share: float, count: int = 120) -> tuple[Result, Result]:
    first, second = Machine(seed).pairs(count, share)
    return result(steps(first), session="s"), result(steps(second), session="s", arm="B")


def test_equal_arms_cannot_be_told_apart_and_five_percent_can():
    trials = range(40)
    assert sum(verdicts(*alternated(seed, 0.0)) == ["cannot tell"] for seed in trials) >= 38
    assert sum(verdicts(*alternated(seed, 0.05)) == ["slower"] for seed in trials) >= 36


def test_what_is_more_may_be_better():
    low, high = [1.0 + i / 100 for i in range(10)], [2.0 + i / 100 for i in range(10)]
    assert verdicts(result(steps(low)), result(steps(high))) == ["slower"]
    assert verdicts(result(steps(high)), result(steps(low))) == ["faster"]
    assert verdicts(*(result(steps(v, "higher", "tokens/s")) for v in (low, high))) == ["faster"]
    assert verdicts(*(result(steps(v, "lower", "bytes")) for v in (low, high))) == ["worse"]
    assert verdicts(*(result(steps(v, None)) for v in (low, high))) == []


def test_an_effect_that_is_too_small_is_none():
    first, second = alternated(1, 0.05)
    assert verdicts(first, second, least_effect=0.2) == ["cannot tell"]


def test_the_same_values_say_less_when_they_did_not_take_turns():
    first, second = Machine(3, drift=0.3).pairs(60, 0.05)
    (paired,) = compare(result(steps(first), session="s"), result(steps(second), session="s", arm="B"))
    (unpaired,) = compare(result(steps(first)), result(steps(second), session="other"))
    assert width(paired) < 0.5 * width(unpaired)
    assert "60 pairs" in paired.detail and "60 and 60 repetitions" in unpaired.detail


def test_too_few_repetitions_tell_nothing_and_many_series_need_more():
    one, two = result(steps([1.0] * 3)), result(steps([9.0] * 3))
    (found,) = compare(one, two)
    assert found.verdict == "cannot tell" and "at least 4 are needed" in found.detail
    names = [f"series {number}" for number in range(20)]
    draw = random.Random(0)
    many = [
        result(*(steps([base + draw.random() / 9 for _ in range(4)], name=name) for name in names)) for base in (1, 9)
    ]
    assert verdicts(*many) == ["cannot tell"] * 20


def test_turns_that_were_not_taken_to_the_end_are_no_pairs():
    one, other = result(steps([1.0] * 20), session="s"), result(steps([2.0] * 12), session="s")
    (found,) = compare(one, other)
    assert found.verdict == "cannot tell" and "20 and 12 values: one was cut short" in found.detail


def test_ratios_of_nothing_are_refused():
    (found,) = compare(result(steps([0.0] * 9)), result(steps([1.0] * 9)))
    assert found.verdict == "cannot tell" and "0 or less" in found.detail


def test_unlike_results_are_named_key_by_key():
    other = {**ENVIRONMENT, "cores": 4, "packages": {"torch": "2.13.1", "zerofleet": "0.5.0"}, "accelerators": ["H100"]}
    first, second = result(steps([1.0])), result(steps([1.0]), environment=other, command=[])
    assert differences(first, second) == [
        "options: --steps 50 against none",
        "environment.accelerators: nothing against H100",
        "environment.cores: 2 against 4",
        "environment.packages.torch: 2.13.0 against 2.13.1",
    ]
    assert differences(first, first) == []


def test_a_line_says_verdict_ratio_and_interval():
    text = text_of(compare(*alternated(1, 0.05)))
    assert text.startswith("step: slower (1.0") and text.endswith("120 pairs, 95.0%)\n")


def test_a_result_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    written = result(steps([1.0, 3.0, 2.0]))
    written.write(path)
    assert read_result(path) == written and written.series[0].median == 2.0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"median": 9.0}, "is not that of its values"),
        ({"values": []}, "at least 1 item"),
        ({"values": [float("nan")]}, "are no numbers"),
        ({"surprise": 1}, "Extra inputs"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, change, part):
    path = tmp_path / "a.json"
    fields = result(steps([1.0])).model_dump()
    fields["series"][0] |= change
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=part):
        read_result(path)


def test_two_series_of_one_name_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the same name"):
        result(steps([1.0]), steps([2.0]))
    with pytest.raises(NotFoundError):
        read_result(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(UserError, match="no result"):
        read_result(tmp_path / "text.json")
