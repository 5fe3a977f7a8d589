"""`top`: what its board takes from events, what it draws, and how one leaves it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.support.histories import BEGAN, Story
from zerofleet.benchmarks.s3.server import BUCKET, S3Server, environment
from zerofleet.cluster.goodput.history import end_of
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.progress import Progress
from zerofleet.launch.top.board import Board
from zerofleet.launch.top.picture import MOST_RANKS, picture, silo_picture, sparkline
from zerofleet.trainer.events import Event
from zerofleet.trainer.storage import Storage

GIB = 2**30


def shown(drawing, width: int = 120) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(drawing)
    return text.getvalue()


def of(story: Story, total_steps: int = 100, more: tuple[Event, ...] = ()) -> tuple[Board, Progress]:
    """As `top` hears the run folder."""
    board, progress = Board(story.drivers, story.attempts), Progress(total_steps)
    for event in sorted([*story.events, *story.results, *more], key=end_of):
        progress.apply(event)
        board.hear(event)
    return board, progress


def killed(world_size: int = 2) -> Story:
    story = Story(world_size).driver()
    story.say("plan", attempt=1, memory_bytes=2 * GIB, parts={}, moment="loss", ranks=world_size)
    story.start().state("RUNNING").steps(10, 1.0, data_s=0.25)
    story.say("checkpoint", phase="save", bytes=2**20)
    story.kill().start(3.0, from_step=8).state("RUNNING").steps(4, 1.0)
    own_s = [0.5 + 0.001 * rank for rank in range(world_size - 1)]
    waits = [0.0] * world_size
    memory = {"memory_bytes": [GIB] * world_size, "snapshot_step": 11}
    return story.ranks([*own_s, 0.9], waits, waits, steps=4, **memory)


def test_everything_is_on_one_screen():
    story = killed()
    board, progress = of(story)
    text = shown(picture("first", "RUNNING", board, progress, story.at))
    for part in (
        "first  RUNNING",
        "attempt 2",
        "step 12 of 100",
        "ETA 1m28s",
        "loss  8.8800",
        "512 tokens/s",
        "40.0% MFU",
        "0.001 learning rate",
        "durable step 10  in memory step 11",
        "1 slow",
        "900.0",
        "50%",
        "was killed (SIGKILL)",
        "■ lost work",
    ):
        assert part in text, f"{part}\n{text}"
    assert all(len(line) <= 120 for line in text.splitlines()) and len(text.splitlines()) < 30


def test_the_time_is_the_ledgers():
    story = killed()
    board, _ = of(story)
    ledger, accounts = Ledger.of(story.history(now=story.at)), board.accounts(story.at)
    assert accounts.seconds == pytest.approx(ledger.labels) and accounts.goodput == pytest.approx(ledger.goodput())
    bar = next(line for line in shown(picture("a", "RUNNING", *of(story), story.at)).splitlines() if line[:4] == "time")
    assert bar.count("█") == 48


def test_a_claim_forgets_what_the_attempt_before_had():
    story = killed()
    data = {"start_step": 8, "from_memory": False, "world_size": 2, "quarantine": []}
    claim = Event("claimed", 3, -1, 8, "load", story.at + 1.0, data=data)
    board, _ = of(story, more=(claim,))
    assert board.ranks == [] and board.tiers.memory is None and board.tiers.durable is None


def test_the_slowest_of_many_ranks():
    board, progress = of(killed(world_size=64))
    text = shown(picture("a", "RUNNING", board, progress, BEGAN))
    assert f"the slowest {MOST_RANKS} of 64" in text
    ranks = [figures.rank for figures in board.ranks]
    assert ranks[0] == 63 and ranks[1:3] == [62, 61] and [f.rank for f in board.ranks if f.is_slow] == [63]


@pytest.mark.parametrize(
    "story", [Story(), Story().driver(), Story().driver().start()], ids=["nothing", "driver", "start"]
)
@pytest.mark.parametrize("width", [40, 120])
def test_a_run_that_has_hardly_begun(story, width):
    text = shown(picture("a", "PENDING", *of(story), story.at), width)
    assert "a  PENDING" in text and "step 0 of 100" in text and "loss" not in text


def test_preparation_and_storage_that_is_down():
    story = Story().driver()
    story.say("prepare", stage="tokenize", fraction=0.25, detail="12 MB")
    story.say("incident", message="storage is away", **{"class": "storage"})
    text = shown(picture("a", "PREPARING", *of(story), story.at))
    assert (
        "preparing: tokenize 25%  12 MB" in text and "storage is down" in text and "incident: storage is away" in text
    )


def test_silos_have_a_line_each():
    board, progress = of(killed())
    progress.outer = (3, "took part")
    text = shown(silo_picture([("north", "RUNNING", progress, board.accounts(1100.0))]))
    assert "north" in text and "12/100" in text and "round 3 took part" in text


def test_sparklines():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█" and sparkline([5.0]) == "" and sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(list(range(1000)))) <= 24


def test_a_pipe_gets_one_picture(zerofleet, drive):
    drive("recover")
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 0
    code, out, _ = zerofleet("top", "a")
    assert code == 0 and "a  FINISHED" in out and "step 3 of 3" in out and "rank 1 was killed" in out
    assert zerofleet("top", "b")[0] == 4


@pytest.mark.integration
@pytest.mark.further
@pytest.mark.timeout(120)
def test_a_run_in_an_object_store(zerofleet, drive, tmp_path, monkeypatch):
    pytest.importorskip("moto", reason="the S3 server of the tests is moto, of the dev extra")
    drive("recover")
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 0
    with S3Server() as server:
        for name, value in environment(server.port).items():
            monkeypatch.setenv(name, value)
        stored = Storage(f"s3://{BUCKET}/runs/a")
        for path in (tmp_path / "runs/a").rglob("*"):
            if path.is_file():
                stored.create(str(path.relative_to(tmp_path / "runs/a")), path.read_bytes())
        code, out, _ = zerofleet("top", f"s3://{BUCKET}/runs/a")
    assert code == 0 and "a  FINISHED" in out and "step 3 of 3" in out
