"""Listed, watched from there, listed again when that is too old; whatever else happens is tried again."""

from __future__ import annotations

import json
import threading
import time

import pytest

from zerofleet.k8s import forbidden
from zerofleet.k8s.api import ApiError, NotAuthorized
from zerofleet.k8s.list_watch import Expired, ListWatch, fold
from zerofleet.k8s.paths import POD

pytestmark = pytest.mark.timeout(20)


def named(name: str, version: int) -> dict:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def change(kind: str, name: str, version: int) -> dict:
    return {"type": kind, "object": named(name, version)}


def test_changes_are_applied_and_the_version_goes_on():
    objects = {"a": named("a", 1)}
    assert fold(objects, change("ADDED", "b", 2)) == "2" and sorted(objects) == ["a", "b"]
    assert fold(objects, change("MODIFIED", "a", 3)) == "3" and objects["a"]["metadata"]["resourceVersion"] == "3"
    assert fold(objects, change("DELETED", "b", 4)) == "4" and sorted(objects) == ["a"]
    assert fold(objects, {"type": "BOOKMARK", "object": {"metadata": {"name": "", "resourceVersion": "9"}}}) == "9"
    assert sorted(objects) == ["a"]
    with pytest.raises(Expired):
        fold(objects, {"type": "ERROR", "object": {"code": 410, "reason": "Expired"}})
    with pytest.raises(ApiError, match="too many") as refused:
        fold(objects, {"type": "ERROR", "object": {"code": 429, "reason": "TooManyRequests", "message": "too many"}})
    assert refused.value.may_pass


class FakeApi:
    """Answers lists and watches from scripts; the last watch stays open."""

    def __init__(self, lists: list, watches: list) -> None:
        self.lists, self.watches, self.asked = lists, watches, []
        self.renewals: list = []
        self.closing = threading.Event()

    def renew(self):
        self.asked.append("renew")
        if self.renewals and (trouble := self.renewals.pop(0)):
            raise trouble

    def get(self, path, query=None):
        self.asked.append("list")
        found = self.lists.pop(0)
        if isinstance(found, Exception):
            raise found
        names, version = found
        return {"metadata": {"resourceVersion": str(version)}, "items": [named(name, version) for name in names]}

    def lines(self, path, query, *rest):
        self.asked.append(f"watch {query['resourceVersion']}")
        assert int(query["timeoutSeconds"]) > 0
        if not self.watches:
            self.closing.wait(20)
            return
        for line in self.watches.pop(0):
            if isinstance(line, Exception):
                raise line
            yield json.dumps(line).encode()


def watched(lists: list, watches: list, until: str) -> tuple[list[str], list[str]]:
    """Names at the moment when `until` was asked, and everything that was asked."""
    api, changed = FakeApi(lists, watches), threading.Event()
    watch = ListWatch(api, POD, "training", {"labelSelector": "a=b"}, changed.set)
    watch.start()
    deadline = time.monotonic() + 15
    while until not in api.asked:
        assert time.monotonic() < deadline, api.asked
        time.sleep(0.01)
    names = [each["metadata"]["name"] for each in watch.objects()]
    watch.close()
    api.closing.set()
    return names, api.asked


def test_a_watch_that_ends_goes_on_where_it_was():
    names, asked = watched([(["a"], 5)], [[change("ADDED", "b", 6)], [change("DELETED", "a", 7)]], until="watch 7")
    assert (names, asked) == (["b"], ["list", "watch 5", "watch 6", "watch 7"])


def test_a_version_that_is_too_old_is_listed_anew_whether_the_stream_says_so_or_the_answer():
    gone = {"type": "ERROR", "object": {"code": 410}}
    names, asked = watched(
        [(["a"], 5), (["c"], 50), (["d"], 60)], [[gone], [ApiError(410, "Gone", "")]], until="watch 60"
    )
    assert (names, asked) == (["d"], ["list", "watch 5", "list", "watch 50", "list", "watch 60"])


def test_a_dropped_connection_and_a_busy_server_cost_nothing_that_was_seen():
    drop = [change("ADDED", "b", 6), ApiError(0, "ConnectionLost", "")]
    names, asked = watched([(["a"], 5)], [drop, [ApiError(429, "TooManyRequests", "", 0.0)]], until="watch 6")
    assert names == ["a", "b"] and asked[:3] == ["list", "watch 5", "watch 6"]


def test_a_kind_that_this_cluster_does_not_have_is_empty_and_left_alone():
    api = FakeApi([ApiError(404, "NotFound", "no such kind")], [])
    watch = ListWatch(api, POD, "training", {}, lambda: None)
    watch.start()
    watch._thread.join(5)
    assert not watch._thread.is_alive() and watch.objects() == () and not watch.is_listed
    assert watch.trouble is not None and watch.trouble.status == 404
    assert not watch.is_forbidden


def test_who_has_looked_and_is_forbidden_then_reads_the_credentials_again():
    nobody = ApiError(403, "Forbidden", "system:anonymous")
    names, asked = watched([(["a"], 5), nobody, (["b"], 9)], [[nobody]], until="watch 9")
    assert (names, asked) == (["b"], ["list", "watch 5", "renew", "list", "renew", "list", "watch 9"])


def test_a_kubeconfig_that_cannot_be_read_at_the_moment_ends_no_watch():
    missing = NotAuthorized(401, "NoCredentials", "half written")
    names, asked = watched([(["a"], 5), missing, (["b"], 9)], [[missing]], until="watch 9")
    assert (names, asked) == (["b"], ["list", "watch 5", "list", "list", "watch 9"])


@pytest.mark.parametrize(
    ("lists", "watches"),
    [([ApiError(403, "Forbidden", "")], []), ([(["a"], 5)] + 99 * [ApiError(403, "Forbidden", "")], [[]])],
)
def test_a_right_that_is_missing_at_first_or_for_long_is_said(lists, watches, monkeypatch):
    monkeypatch.setattr(forbidden, "PATIENCE_S", 0.1)
    api = FakeApi(lists, [*watches, [ApiError(403, "Forbidden", "")]] if watches else [])
    watch = ListWatch(api, POD, "training", {}, lambda: None)
    watch.start()
    deadline = time.monotonic() + 15
    while not watch.is_forbidden:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert watch.trouble is not None and watch.trouble.status == 403
    watch.close()
