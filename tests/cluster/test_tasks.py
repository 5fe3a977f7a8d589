"""What the ranks' tasks say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.ranks import job
from zerofleet.cluster import tasks
from zerofleet.cluster.tasks import WrongResult, judge_network
from zerofleet.trainer.checkpoint import export as exporting
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.world import World


def test_a_checkpoint_that_the_last_export_skipped_is_an_incident(tmp_path, monkeypatch):
    def export(run, checkpoint, target, dtype, say) -> str:
        say("the checkpoint of step 6 (attempt 1) was skipped: block 0")
        return "/export"

    monkeypatch.setattr(exporting, "export", export)
    heard: list[Event] = []
    config = job(tmp_path, tmp_path)
    world = World(rank=0, local_rank=0, node_rank=0, world_size=1, node_name="n", attempt=3)
    tasks.export(config, world, Path(), heard.append, Control, None, None)
    assert [(event.kind, event.attempt) for event in heard] == [("incident", 3), ("export", 3)]
    assert heard[0].data == {
        "class": "checkpoint",
        "message": "the checkpoint of step 6 (attempt 1) was skipped: block 0",
    }
    assert heard[1].data["path"] == "/export"


NUMBERS = torch.arange(10, dtype=torch.int32)


def sent_by(world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    gathered = torch.stack([NUMBERS + rank for rank in range(world_size)])
    return gathered, gathered.sum(0).to(torch.int32)


def test_a_network_that_carries_what_it_is_given():
    judge_network(*sent_by(5), NUMBERS)


def test_a_rank_whose_numbers_arrive_changed_is_named():
    gathered, summed = sent_by(5)
    gathered[3, 7] ^= 1 << 20
    with pytest.raises(WrongResult, match="what rank 3 sent to the others arrived changed") as raised:
        judge_network(gathered, summed, NUMBERS)
    assert raised.value.ranks == [3]


def test_a_wrong_sum_of_right_numbers_accuses_nobody():
    gathered, summed = sent_by(5)
    summed[0] += 1
    with pytest.raises(WrongResult, match="an all-reduce over 5 ranks gave a wrong sum") as raised:
        judge_network(gathered, summed, NUMBERS)
    assert raised.value.ranks == []
