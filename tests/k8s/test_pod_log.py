"""A pod's log, each line once, over connections that break."""

from __future__ import annotations

import threading

import pytest

from zerofleet.k8s.api import ApiError
from zerofleet.k8s.pod_log import PodLog


class FakeApi:
    def __init__(self, *answers: list) -> None:
        self.answers, self.asked = list(answers), []

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
    )
    log = PodLog(api, "training", "p", "c")
    assert list(log.follow(threading.Event())) == ["a", "b", "c", "d"]
    assert [query.get("sinceTime") for query in api.asked] == [None, "2026-11-22T10:00:01.12Z", "2026-11-22T10:00:02Z"]


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


def test_expired_credentials_are_waited_for_and_a_missing_right_is_said():
    api = FakeApi(
        [ApiError(401, "Unauthorized", "log in again")],
        [b"2026-11-22T10:00:01Z a", ApiError(403, "Forbidden", "no pods/log")],
    )
    lines = PodLog(api, "training", "p", "c").follow(threading.Event())
    assert next(lines) == "a"
    with pytest.raises(ApiError, match="no pods/log"):
        next(lines)
