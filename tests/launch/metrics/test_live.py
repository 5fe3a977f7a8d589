"""The server: it answers, says when it cannot, and nothing of it ends the run."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.request

import pytest

from tests.launch.test_driver import JOB
from zerofleet.launch.claims import claim
from zerofleet.launch.drivers import effective_job
from zerofleet.launch.metrics.config import VARIABLE, MetricsConfig, listening
from zerofleet.launch.metrics.live import Metrics
from zerofleet.launch.metrics.reading import Reading
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(str(tmp_path), "a")
    folder.create(JOB)
    return folder


@pytest.fixture
def make_metrics(run, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    made = []

    def make(port: int | None) -> Metrics:
        number = claim(run, [])
        job = effective_job(run)
        made.append(Metrics(run, job, number, listening(MetricsConfig(port=port))))
        return made[-1]

    yield make
    for metrics in made:
        metrics.close()


def scrape(told: Event) -> str:
    url = told.data["message"].rpartition(" ")[2]
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return answer.read().decode()


def scrape_until(told: Event, line: str) -> str:
    deadline = time.monotonic() + 20
    while line not in (text := scrape(told)):
        assert time.monotonic() < deadline, text
        time.sleep(0.01)
    return text


def step(number: int) -> Event:
    return Event("step", 1, 0, number, "step", time.time(), 0.5, {"loss": 3.5, "tokens": 64})


def test_a_driver_without_a_port_answers_nobody_and_keeps_nothing(make_metrics):
    metrics = make_metrics(None)
    assert metrics.start() is None
    metrics.hear(step(1))
    assert metrics._queue.empty()


def test_what_is_heard_is_shown(make_metrics):
    metrics = make_metrics(0)
    told = metrics.start()
    assert told is not None and told.kind == "info" and "127.0.0.1" in told.data["message"]
    metrics.hear(step(7))
    text = scrape_until(told, 'zerofleet_step{run="a"} 7.0')
    assert 'zerofleet_loss{run="a"} 3.5' in text and "# TYPE zerofleet_tokens_total counter" in text
    assert 'zerofleet_step_duration_seconds_bucket{le="0.5",run="a"} 1.0' in text


def test_a_port_that_is_taken_is_said_and_the_run_goes_on(make_metrics):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        metrics = make_metrics(port)
        told = metrics.start()
    assert told is not None and told.kind == "incident" and told.data["class"] == "metrics"
    assert (
        f"127.0.0.1:{port} cannot be listened at" in told.data["message"] and "metrics.port=0" in told.data["message"]
    )
    metrics.hear(step(1))
    assert metrics._queue.empty(), "nobody would take it out again"


def test_an_event_that_makes_no_sense_is_left_out(make_metrics, caplog):
    metrics = make_metrics(0)
    told = metrics.start()
    metrics.hear(Event("eval", 1, 0, 7, "eval", time.time(), data={}))
    metrics.hear(step(8))
    scrape_until(told, 'zerofleet_step{run="a"} 8.0')
    assert "an event is not in the metrics" in caplog.text


def test_a_run_that_was_driven_before_goes_on_counting(make_metrics, run):
    before = json.dumps(vars(step(5)) | {"start": time.time() - 100})
    writer = run.writer("metrics", 1)
    writer.append(before)
    writer.close()
    metrics = make_metrics(0)
    told = metrics.start()
    metrics.hear(step(6))
    scrape_until(told, 'zerofleet_steps_total{run="a"} 2.0')


def test_what_was_before_and_cannot_be_read_is_said_and_the_rest_shown(make_metrics, run, caplog):
    writer = run.writer("events", 1)
    writer.append("no event")
    writer.close()
    metrics = make_metrics(0)
    told = metrics.start()
    metrics.hear(step(6))
    scrape_until(told, 'zerofleet_step{run="a"} 6.0')
    assert "not all of what the run did before" in caplog.text


def test_before_the_past_is_read_nothing_is_counted(make_metrics, monkeypatch):
    metrics, may_read = make_metrics(0), threading.Event()
    monkeypatch.setattr(Reading, "recall", lambda *arguments: may_read.wait(20))
    told = metrics.start()
    shown = set(re.findall(r"^(zerofleet_\w+)\{", scrape(told), re.MULTILINE))
    assert shown == {"zerofleet_run_info", "zerofleet_state", "zerofleet_state_age_seconds"}
    may_read.set()
    scrape_until(told, 'zerofleet_attempts_total{run="a"} 0.0')


def test_storage_that_is_down_costs_the_metrics_and_not_the_run(make_metrics, run, monkeypatch, caplog):
    def fail(path: str = "") -> list[str]:
        raise StorageError("no answer")

    metrics = make_metrics(0)
    monkeypatch.setattr(run.storage, "list", fail)
    assert metrics.start() is None and "no metrics: no answer" in caplog.text
    metrics.hear(step(1))
    metrics.close()


def test_a_driver_that_nobody_asks_reads_nothing(make_metrics, run, monkeypatch):
    metrics = make_metrics(None)
    monkeypatch.setattr(run.storage, "list", None)
    assert metrics.start() is None


@pytest.mark.parametrize(
    ("said", "found"),
    [("", None), ("0.0.0.0:8090", ("0.0.0.0", 8090)), (":8090", ("0.0.0.0", 8090)), ("[::]:1", ("::", 1))],
)
def test_the_environment_says_where(monkeypatch, said, found):
    monkeypatch.setenv(VARIABLE, said)
    assert listening(MetricsConfig()) == found


def test_the_environment_is_stronger_than_the_job(monkeypatch):
    monkeypatch.setenv(VARIABLE, ":8090")
    assert listening(MetricsConfig(port=1)) == ("0.0.0.0", 8090)
    monkeypatch.delenv(VARIABLE)
    assert listening(MetricsConfig(port=1)) == ("127.0.0.1", 1)


@pytest.mark.parametrize("said", ["8090", "host:", "host:x", "host:70000"])
def test_a_place_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv(VARIABLE, said)
    with pytest.raises(UserError, match=VARIABLE):
        listening(MetricsConfig())
