"""The agreed figures: what costs more, or less, than `regression.json` says is noticed."""

import pytest

from zerofleet.benchmarks.regression import (
    Agreed,
    commit_operations,
    light_figures,
    misses,
    read_agreed,
    step_figures,
    write_agreed,
)


def test_what_needs_no_ranks_is_as_agreed(tmp_path):
    found = light_figures(tmp_path)
    assert misses(found, read_agreed()) == [], "`zerofleet bench regression --write --output FILE` agrees to it"
    assert {name for name in read_agreed() if not name.startswith("step")} == set(found)


@pytest.mark.integration
@pytest.mark.timeout(400)
def test_steps_are_as_agreed(tmp_path):
    found = step_figures(tmp_path)
    assert misses(found, read_agreed()) == [], "`zerofleet bench regression --write --output FILE` agrees to it"
    assert {name for name in read_agreed() if name.startswith("step")} == set(found)
    assert found["step, ZeRO-3: collectives"] > found["step, ZeRO-1: collectives"] > 1


def test_more_and_less_than_agreed_are_missed_and_so_is_what_is_new():
    agreed = {"a": Agreed(100, 0.02), "b": Agreed(4, 0)}
    assert misses({"a": 102, "b": 4}, agreed) == []
    assert [told.partition(":")[0] for told in misses({"a": 103, "b": 3.9, "c": 1}, agreed)] == ["a", "b", "c"]
    assert len(misses({"a": 97}, agreed)) == 1


def test_agreeing_keeps_tolerances(tmp_path):
    path = tmp_path / "agreed.json"
    write_agreed({"a": 1.0}, path)
    assert read_agreed(path) == {"a": Agreed(1.0, 0.02)}
    path.write_text(path.read_text().replace("0.02", "0.5"))
    write_agreed({"a": 2.0, "b": 3.0}, path)
    assert read_agreed(path) == {"a": Agreed(2.0, 0.5), "b": Agreed(3.0, 0.02)}


def test_an_operation_more_per_rank_is_counted(tmp_path):
    assert commit_operations(tmp_path, 3) > commit_operations(tmp_path, 2)
