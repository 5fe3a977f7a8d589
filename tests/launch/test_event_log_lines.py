"""The driver's own log, for people and for somebody far away."""

from __future__ import annotations

import json

from zerofleet.launch.event_log_lines import FORMAT, JsonLog, write_log_line
from zerofleet.launch.progress import Progress
from zerofleet.trainer.events import DRIVER, Event


def step(number: int) -> Event:
    return Event(
        "step", 1, 0, number, "step", 100.0 + number, data={"loss": 0.5, "tokens": 8, "ledger": {"ids": [1] * 1000}}
    )


def state(to: str) -> Event:
    return Event("state", 1, DRIVER, 0, "end", 200.0, data={"from": "RUNNING", "to": to, "exit_code": 0})


def test_steps_are_told_once_a_second_and_the_last_one_before_anything_else():
    now = [0.0]
    log = JsonLog(clock=lambda: now[0])
    told = []
    for number in range(1, 26):
        told += log.lines(step(number))
        now[0] += 0.125
    told += log.lines(Event("heartbeat", 1, DRIVER, 0, "step", 1.0))
    told += log.lines(state("FINISHED"))
    events = [Event.from_json(line) for line in told]
    assert [event.step for event in events if event.kind == "step"] == [1, 9, 17, 25]
    assert [event.kind for event in events][-2:] == ["step", "state"] and "heartbeat" not in {e.kind for e in events}
    assert all("ledger" not in event.data for event in events)
    progress = Progress(25)
    for event in events:
        progress.apply(event)
    assert (progress.step, progress.loss, progress.state, progress.exit_code) == (25, 0.5, "FINISHED", 0)


def test_a_pod_writes_json_and_a_machine_plain_lines(monkeypatch, capsys):
    write_log_line(state("RUNNING"))
    assert capsys.readouterr().out.endswith("  RUNNING\n")
    monkeypatch.setenv(FORMAT, "json")
    write_log_line(state("RUNNING"))
    assert json.loads(capsys.readouterr().out)["data"]["to"] == "RUNNING"
