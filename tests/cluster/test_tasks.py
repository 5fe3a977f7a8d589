"""What the ranks' tasks say."""

from __future__ import annotations

from pathlib import Path

from tests.support.ranks import job
from zerofleet.cluster import tasks
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
