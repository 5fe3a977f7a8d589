import io

import pytest
from rich.console import Console

from zerofleet.launch.progress import Progress
from zerofleet.launch.screens import JsonScreen, LiveScreen, PlainScreen, choose_screen, event_line
from zerofleet.trainer.events import DRIVER, Event


def event(kind: str, step: int = 0, **data) -> Event:
    return Event(kind, 1, DRIVER, step, "step", 1.0e9 + step, 0.0, data)


def show(screen, progress: Progress, *events: Event) -> None:
    for each in events:
        progress.apply(each)
        screen.event(each, progress)


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (event("state", to="RUNNING", why="the first step is done", **{"from": ""}), "RUNNING: the first step is done"),
        (event("state", to="FAILED", why="said at the end", **{"from": ""}), "FAILED"),
        (event("eval", 7, loss=3.25), "step 7: held-out loss 3.2500"),
        (event("checkpoint", 7, path=""), "step 7: checkpoint written"),
        (event("loaded", 7), "step 7: state loaded"),
        (event("incident", message="rank 1 is slow", **{"class": "hang"}), "incident: rank 1 is slow"),
        (event("info", message="one\ntwo"), "one"),
        (event("verdict", sentence="rank 1 was killed\ntraceback"), "rank 1 was killed"),
        (event("round", round=3, tokens={"a": 1500, "b": 500}, is_step=True), "round 3: 2 silos, 2,000 tokens"),
        (event("round", round=4, tokens={}, is_step=False), "round 4: no outer step"),
        (event("export", path="/x"), "exported to /x"),
        (event("heartbeat"), ""),
        (event("error", type="E", message="said by the verdict"), ""),
    ],
)
def test_what_happens_once_is_one_line(shown, line):
    assert event_line(shown) == line


def test_plain_lines_about_steps_come_every_few_seconds_and_at_the_end(capsys):
    now = [100.0]
    screen, progress = PlainScreen(clock=lambda: now[0]), Progress(total_steps=30)
    for step in range(1, 31):
        show(screen, progress, event("step", step, loss=1.0, tokens=10))
        now[0] += 1.0
    steps = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["1/30", "6/30", "11/30", "16/30", "21/30", "26/30", "30/30"]


def test_plain_preparation_is_a_line_per_stage_and_quarter(capsys):
    screen, progress = PlainScreen(), Progress(10)
    for stage in ("list", "tokenize"):
        for percent in range(0, 101, 5):
            show(screen, progress, event("prepare", stage=stage, fraction=percent / 100, detail=""))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[1].endswith("preparing: list 25%")


def test_json_is_the_events_themselves(capsys):
    screen, progress = JsonScreen(), Progress(10)
    shown = [event("step", 1, loss=float("nan")), event("info", message="x\ny")]
    show(screen, progress, *shown, event("heartbeat"))
    assert [Event.from_json(line).kind for line in capsys.readouterr().out.splitlines()] == ["step", "info"]


def test_live_shows_state_step_and_what_happened():
    screen, progress = LiveScreen("my-run"), Progress(10)
    output = io.StringIO()
    screen._live.console = Console(file=output, force_terminal=True, width=120, color_system=None)
    with screen:
        show(screen, progress, event("state", to="PREPARING", why="", **{"from": ""}))
        show(screen, progress, event("prepare", stage="tokenize", fraction=0.5, detail="6 MB"))
        screen.tick(progress)
        show(screen, progress, event("state", to="RUNNING", why="go", **{"from": ""}))
        for step in (1, 2):
            show(screen, progress, event("step", step, loss=4.5, tokens=100, mfu=0.4))
        show(screen, progress, event("checkpoint", 2, path=""), event("incident", message="odd", **{"class": "x"}))
        screen.tick(progress)
    text = output.getvalue()
    for part in (
        "my-run  PREPARING",
        "preparing: tokenize 50%  6 MB",
        "my-run  RUNNING",
        "step 2/10  loss 4.5000  100 tokens/s  MFU 40.0%  ETA 8s",
        "last checkpoint: step 2  incidents: 1",
        "incident: odd",
    ):
        assert part in text, part


def test_the_screen_follows_from_where_the_output_goes(monkeypatch):
    assert isinstance(choose_screen("a", as_json=True), JsonScreen)
    assert isinstance(choose_screen("a", as_json=False), PlainScreen)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert isinstance(choose_screen("a", as_json=False), LiveScreen)
