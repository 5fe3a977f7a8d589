"""A pod's log, each line once, over connections that break."""

from __future__ import annotations

import threading

import pytest

from zerofleet.k8s import forbidden, pod_log
from zerofleet.k8s.api import ApiError
from zerofleet.k8s.pod_log import PodLog

RUNNING = {"phase": "Running", "containerStatuses": [{"name": "c", "state": {"running": {}}}]}
ENDED = {
    "phase": "Running",
    "containerStatuses": [{"name": "other", "state": {"running": {}}}, {"name": "c", "state": {"terminated": {}}}],
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(pod_log, "_AGAIN_S", 0.001)


class FakeApi:
    """Answers reads of the log from a script, and gives the pod the next of `statuses`; the last one stays."""

    def __init__(self, *answers: list, statuses: tuple = (ENDED,)) -> None:
        self.answers, self.asked, self.statuses, self.renewals = list(answers), [], list(statuses), 0

    def renew(self):
        self.renewals += 1

    def get(self, path, query=None):
        assert path == "/api/v1/namespaces/training/pods/p"
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        return {"status": status}

    def lines(self, path, query, silence_s):
        self.asked.append(query)
        for line in self.answers.pop(0):
            if isinstance(line, Exception):
                raise line
            yield line


def test_what_comes_twice_is_given_out_once_however_the_kubelet_writes_fractions():
    again = [b"2026-11-22T10:00:01.1Z a", b"2026-11-22T10:00:01.12Z b", b"2026-11-22T10:00:02Z c"]
    api = FakeApi(
        [*again[:2], ApiError(0, "ConnectionLost", "")],
        [*again, ApiError(500, "InternalError", "")],
        [*again, b"2026-11-22T10:00:02.5Z d"],
        [b"2026-11-22T10:00:02.5Z d"],
    )
    log = PodLog(api, "training", "p", "c")
    assert list(log.follow(threading.Event())) == ["a", "b", "c", "d"]
    assert [query.get("sinceTime") for query in api.asked] == [
        None,
        "2026-11-22T10:00:01.12Z",
        "2026-11-22T10:00:02Z",
        "2026-11-22T10:00:02.5Z",
    ]


def test_a_stream_that_ends_is_no_end_of_the_log_while_the_container_runs():
    first, second = b"2026-11-22T10:00:01Z a", b"2026-11-22T10:00:02Z b"
    api = FakeApi([first], [], [first, second], [second], statuses=(RUNNING, RUNNING, ENDED))
    assert list(PodLog(api, "training", "p", "c").follow(threading.Event())) == ["a", "b"]
    assert [query.get("sinceTime", "")[17:] for query in api.asked] == ["", "01Z", "01Z", "02Z"] and not api.answers


def test_what_a_container_writes_between_its_streams_end_and_its_own_is_read():
    api = FakeApi([b"2026-11-22T10:00:01Z a"], [b"2026-11-22T10:00:02Z the last"])
    assert list(PodLog(api, "training", "p", "c").follow(threading.Event())) == ["a", "the last"]


@pytest.mark.parametrize("status", [{"phase": "Failed", "reason": "Evicted"}, ApiError(404, "NotFound", "")])
def test_a_pod_that_is_evicted_or_gone_ends_it(status):
    api = FakeApi([b"2026-11-22T10:00:01Z a"], [ApiError(404, "NotFound", "")], statuses=(status,))
    assert list(PodLog(api, "training", "p", "c").follow(threading.Event())) == ["a"]


def test_a_container_that_has_not_begun_is_waited_for_and_a_pod_that_is_gone_ends_it():
    api = FakeApi(
        [ApiError(400, "BadRequest", "waiting to start")],
        [b"2026-11-22T10:00:01Z a", ApiError(0, "", "")],
        [ApiError(404, "NotFound", "")],
    )
    assert list(PodLog(api, "training", "p", "c").follow(threading.Event())) == ["a"]
    assert api.answers == []


def test_a_tail():
    api = FakeApi([b"2026-11-22T10:00:01Z a\r"])
    assert list(PodLog(api, "training", "p", "c").read(follow=False, tail=7)) == ["a"]
    assert api.asked == [{"container": "c", "timestamps": "true", "tailLines": "7"}]


def test_expired_credentials_are_waited_for_and_a_missing_right_is_said_at_once():
    api = FakeApi(
        [ApiError(401, "Unauthorized", "log in again")],
        [b"2026-11-22T10:00:01Z a"],
        [],
    )
    assert list(PodLog(api, "training", "p", "c").follow(threading.Event())) == ["a"]
    api = FakeApi([ApiError(403, "Forbidden", "no pods/log")])
    with pytest.raises(ApiError, match="no pods/log"):
        list(PodLog(api, "training", "p", "c").follow(threading.Event()))
    assert api.renewals == 0


def test_a_log_that_could_be_read_and_is_forbidden_then_is_asked_for_with_fresh_credentials(monkeypatch):
    nobody = ApiError(403, "Forbidden", "system:anonymous")
    script = [[b"2026-11-22T10:00:01Z a", nobody], [nobody], [b"2026-11-22T10:00:02Z b"], []]
    api = FakeApi(*script)
    assert list(PodLog(api, "training", "p", "c").follow(threading.Event())) == ["a", "b"] and api.renewals == 2
    monkeypatch.setattr(forbidden, "PATIENCE_S", 0.0)
    lines = PodLog(FakeApi(*script), "training", "p", "c").follow(threading.Event())
    assert next(lines) == "a"
    with pytest.raises(ApiError, match="anonymous"):
        next(lines)
