"""The comparison with other systems: data order, figures, verdicts, and a system that fails."""

import contextlib
import dataclasses
import itertools
import json
import statistics
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from zerofleet.benchmarks import extracts, peer_throughput
from zerofleet.benchmarks.peer_throughput import (
    COMPARED_STEPS,
    MODELS,
    Pairing,
    largest_difference,
    line,
    page,
    sessions,
)
from zerofleet.benchmarks.peers.training.prepare import job, make_task
from zerofleet.benchmarks.peers.training.session import SystemFailed, session
from zerofleet.benchmarks.peers.training.task import WORLD_SIZE, Task
from zerofleet.benchmarks.peers.training.turns import Turn
from zerofleet.trainer.batch import BatchPlan


def pairing(ours: float, theirs: float, **changes) -> Pairing:
    seconds = [(ours, theirs), (ours * 1.01, theirs), (ours, theirs * 1.01)] * 3
    fields = {"model": "small", "is_compiled": False, "peer": "ddp"} | changes
    return Pairing(**fields, seconds=seconds, processor_seconds=seconds, loss_difference=1e-4)


def test_above_one_zerofleet_is_faster():
    figures = pairing(1.0, 1.5).figures()
    assert figures["ratio"]["ratio"] == pytest.approx(1.5, rel=0.02)
    assert figures["ratio"]["low"] <= figures["ratio"]["ratio"] <= figures["ratio"]["high"]
    assert figures["median_step_s"] == [1.0, 1.5]


@pytest.mark.parametrize(
    ("model", "peer", "bar"), [("small", "hf_trainer", 1.3), ("medium", "hf_trainer", 1.0), ("small", "ddp", 1.0)]
)
def test_the_bar_is_met_or_missed(model, peer, bar):
    for seconds, is_met in ((bar * 1.05, True), (bar * 0.95, False)):
        found = pairing(1.0, seconds, model=model, peer=peer)
        assert (found.bar, found.figures()["is_met"]) == (bar, is_met)
        assert ("**missed**" in line(found)) is not is_met


def test_a_peer_with_other_losses_has_no_figure_and_is_named():
    found = Pairing("small", False, "fsdp2", [], [], 0.2, "its losses are not zerofleet's: [8.0], and [9.0]")
    assert not found.figures()["is_met"]
    text = page([pairing(1.0, 1.1), found], 9)
    assert "not measured" in text and "- small, eager, fsdp2: its losses are not zerofleet's" in text


def test_losses_are_compared_step_by_step():
    assert largest_difference([2.0, 4.0], [2.0, 4.2]) == pytest.approx(0.05)


def test_peers_are_measured_as_many_at_a_time_as_fit():
    found = list(sessions(MODELS["medium"], ["a", "b", "c"]))
    assert found == [["a", "b"], ["c"]]


class Systems:
    """Stands in for `session`: a system's step takes its seconds, and every start a little longer."""

    def __init__(self, seconds: dict[str, list[float]], losses: dict[str, float], failed_at: dict[str, int]) -> None:
        self.seconds, self.losses, self.failed_at = seconds, losses, failed_at
        self.started: list[list[str]] = []

    @contextlib.contextmanager
    def session(self, task, systems, logs):
        start = len(self.started)
        self.started.append(list(systems))
        turns = {name: itertools.cycle(self.seconds[name]) for name in systems}

        def turn(name: str, steps: int) -> list[Turn]:
            step_s = next(turns[name]) * (1 + start / 10) if steps != COMPARED_STEPS else 100.0
            return [Turn(step_s * steps, step_s * steps, [self.losses[name]] * steps)] * WORLD_SIZE

        failed = {name: "it died" for name in systems if self.failed_at.get(name) == start}
        yield SimpleNamespace(failed=failed, turn=turn)


def measured(monkeypatch, systems: Systems, starts: int = 3) -> dict[str, Pairing]:
    monkeypatch.setattr(peer_throughput, "session", systems.session)
    task = Task("", 16, 4, steps=2, attention="sdpa", is_compiled=False)
    found = peer_throughput.measure(
        task, MODELS["small"], ["ddp", "fsdp2", "accelerate"], starts, 3, Random(0), Path("/x")
    )
    return {each.peer: each for each in found}


def test_a_start_is_one_pair_the_medians_of_its_rounds(monkeypatch):
    seconds = {"zerofleet": [1.0, 1.0, 9.0], "ddp": [9.0, 2.0, 2.0], "fsdp2": [3.0], "accelerate": [4.0]}
    systems = Systems(seconds, {"zerofleet": 8.0, "ddp": 8.01, "fsdp2": 8.0, "accelerate": 9.0}, {"fsdp2": 1})
    found = measured(monkeypatch, systems)
    assert found["ddp"].seconds == [pytest.approx((1.0 * slower, 2.0 * slower)) for slower in (1.0, 1.1, 1.2)]
    assert found["ddp"].processor_seconds == [pytest.approx((2.0 * slower, 4.0 * slower)) for slower in (1.0, 1.1, 1.2)]
    assert found["ddp"].loss_difference == pytest.approx(0.01 / 8) and not found["ddp"].error
    assert (found["fsdp2"].seconds, found["fsdp2"].error) == ([], "it died"), "in any start"
    assert found["accelerate"].seconds == [] and "its losses are not zerofleet's" in found["accelerate"].error
    assert [len(each) for each in systems.started] == [4, 3, 2], "who has failed is not started again"


def test_without_a_peer_that_is_left_nothing_more_is_started(monkeypatch):
    same = dict.fromkeys(("zerofleet", "ddp", "fsdp2", "accelerate"), 1.0)
    systems = Systems({name: [1.0] for name in same}, same, dict.fromkeys(("ddp", "fsdp2", "accelerate"), 0))
    assert {each.error for each in measured(monkeypatch, systems).values()} == {"it died"}
    assert len(systems.started) == 1
    ours = Systems({name: [1.0] for name in same}, same, {"zerofleet": 1})
    with pytest.raises(SystemFailed, match="it died"):
        measured(monkeypatch, ours)


def test_too_few_starts_have_no_interval(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--starts", "4", "--output", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit):
        peer_throughput.main()
    assert "fewer than 6 starts" in capsys.readouterr().err


def test_the_series_are_ratios_by_start():
    record = {
        "pairings": [json.loads(json.dumps({"model": "m", "is_compiled": False, "peer": "p", "seconds": [[1.0, 2.0]]}))]
    }
    (series,) = extracts.peer_throughput(record)
    assert (series.values, series.better) == ([2.0], "higher")


def test_ranks_take_blocks_in_turn():
    task = Task("", 16, 4, steps=2, attention="sdpa", is_compiled=False)
    assert task.accumulation == 2
    dealt = [task.blocks_of(rank) for rank in range(WORLD_SIZE)]
    assert [blocks[0].start for blocks in dealt] == [0, 4]
    assert sorted(index for blocks in dealt for block in blocks for index in block) == list(range(32))
    plan = BatchPlan.of(16, 4, WORLD_SIZE)
    for rank, blocks in enumerate(dealt):
        assert [block.start for block in blocks[: task.accumulation]] == [
            plan.slots_of(block).start for block in plan.blocks_of(rank)
        ]


def test_models_give_every_rank_as_many_full_blocks():
    for model in MODELS.values():
        config = job(model, Path("/x"), {})
        plan = BatchPlan.of(config.train.global_batch_size, config.train.micro_batch_size, WORLD_SIZE)
        assert plan.num_surplus_blocks == plan.num_padded_sequences == 0


@pytest.mark.integration
@pytest.mark.further
@pytest.mark.timeout(300)
def test_all_systems_train_the_same_model_on_the_same_samples(tmp_path):
    """But Ray Train, whose workers run the loop of `deepspeed`."""
    systems = ("zerofleet", "deepspeed", "hf_trainer", "accelerate", "ddp", "fsdp2")
    tiny = dataclasses.replace(MODELS["small"], global_batch_size=4, micro_batch_size=1)
    task = make_task(tiny, tmp_path / "task", 3, {"model.attn_implementation": "eager"})
    with session(task, systems, tmp_path / "logs") as found:
        assert found.failed == {}
        losses = {
            name: [statistics.fmean(each) for each in zip(*(turn.losses for turn in found.turn(name, 3)), strict=True)]
            for name in systems
        }
    for name in systems:
        assert losses[name] == pytest.approx(losses["zerofleet"], rel=2e-3), name
    with session(task, ["deepspeed"], tmp_path / "other") as found, pytest.raises(SystemFailed, match="has ended"):
        found.turn("deepspeed", 4)  # there are sequences for three
