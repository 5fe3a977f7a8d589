import time

import pytest

from zerofleet.launch.follow import EventTail
from zerofleet.trainer import storage
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import RunFolder


def event(kind: str, step: int, attempt: int = 1) -> Event:
    return Event(kind, attempt, DRIVER, step, "step", time.time())


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events]


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    return RunFolder(str(tmp_path) if request.param == "local" else f"memory:/{tmp_path}", "a")


def test_a_run_without_events(run):
    assert EventTail(run).poll() == []


def test_each_event_comes_once_from_all_streams_segments_and_attempts(run, monkeypatch):
    monkeypatch.setattr(storage, "SEGMENT_BYTES", 300)
    tail, seen, number = EventTail(run), [], 0
    for attempt in (1, 2):
        events, metrics = run.writer("events", attempt), run.writer("metrics", attempt)
        for _ in range(10):
            number += 1
            writer = metrics if number % 3 else events
            writer.append(event("step", number, attempt).to_json())
            writer.flush()
            if number % 4 == 0:
                seen += steps(tail.poll())
        events.close()
        metrics.close()
    seen += steps(tail.poll())
    assert seen == list(range(1, 21))
    assert tail.poll() == []
    assert steps(EventTail(run).poll()) == list(range(1, 21))


def test_a_line_that_is_not_whole_waits(tmp_path):
    run = RunFolder(str(tmp_path), "a")
    folder = tmp_path / "a/events/attempt-0001"
    folder.mkdir(parents=True)
    line = event("info", 7).to_json()
    with (folder / "segment-00000.jsonl").open("w") as file:
        tail = EventTail(run)
        file.write(line[:20])
        file.flush()
        assert tail.poll() == []
        file.write(line[20:] + "\n" + line[:5])
        file.flush()
        assert steps(tail.poll()) == [7]


def test_only_new_bytes_are_read(tmp_path, monkeypatch):
    run = RunFolder(str(tmp_path), "a")
    writer, tail = run.writer("events", 1), EventTail(run)
    first = event("info", 1).to_json()
    writer.append(first)
    tail.poll()
    starts = []
    read = storage.Storage.read
    monkeypatch.setattr(
        storage.Storage, "read", lambda self, path, a=None, b=None: starts.append(a) or read(self, path, a, b)
    )
    writer.append(event("info", 2).to_json())
    assert steps(tail.poll()) == [2]
    assert starts == [len(first) + 1]


def test_phases_are_left_out(tmp_path):
    run = RunFolder(str(tmp_path), "a")
    writer = run.writer("events", 1)
    for kind in ("phase", "info", "phase"):
        writer.append(event(kind, 3).to_json())
    assert [found.kind for found in EventTail(run).poll()] == ["info"]


@pytest.mark.parametrize("line", ["garbage", "[]", '{"kind":"info"}', "\udcff"])
def test_a_line_that_is_no_event_names_its_file(tmp_path, line):
    folder = tmp_path / "a/events/attempt-0001"
    folder.mkdir(parents=True)
    (folder / "segment-00000.jsonl").write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(
        StorageError, match=r"attempt-0001/segment-00000.jsonl is damaged: the line .* Restore the file"
    ):
        EventTail(RunFolder(str(tmp_path), "a")).poll()
