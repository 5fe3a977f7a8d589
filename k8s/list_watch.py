"""The objects of one kind, as they are now: listed once, then watched from the list's version on, listed again when that is too old."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from zerofleet.k8s.api import Api, ApiError, Pauses
from zerofleet.k8s.forbidden import Forbidden
from zerofleet.k8s.paths import Kind

WATCH_S = 50
"""Seconds after which the server ends a watch: a bound for a connection that nobody noticed to be dead."""
_GONE = 410
_ABSENT = frozenset((403, 404))
"""Nobody may look, or there is no such kind in this cluster: nothing to watch."""

_log = logging.getLogger(__name__)


class Expired(Exception):
    """The version that the watch stands at is too old: list again."""


def fold(objects: dict[str, dict[str, Any]], change: Mapping[str, Any]) -> str:
    """Applies one line of a watch to `objects` by name. Returns the version that it brings. Raises Expired, ApiError."""
    body = change["object"]
    if change["type"] == "ERROR":
        if body.get("code") == _GONE:
            raise Expired
        raise ApiError(int(body.get("code") or 500), str(body.get("reason", "")), str(body.get("message", "")))
    metadata = body["metadata"]
    if change["type"] == "DELETED":
        objects.pop(metadata["name"], None)
    elif change["type"] != "BOOKMARK":
        objects[metadata["name"]] = body
    return str(metadata["resourceVersion"])


class ListWatch:
    """Keeps itself up to date in a thread of its own, whatever happens to the connection, until it is closed."""

    def __init__(
        self, api: Api, kind: Kind, namespace: str, selectors: Mapping[str, str], changed: Callable[[], None]
    ) -> None:
        """`selectors`: labelSelector or fieldSelector. `changed` is called, in the thread, after every change."""
        self._api, self._path, self._selectors, self._changed = api, kind.path(namespace), dict(selectors), changed
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._objects: dict[str, dict[str, Any]] = {}
        self._version = ""
        """Of what was seen last; empty: it is to be listed."""
        self.is_listed = False
        """Whether there was a list yet."""
        self.trouble: ApiError | None = None
        """Why there is no watch at the moment."""
        self._forbidden = Forbidden(api)
        self._thread = threading.Thread(target=self._run, name=f"watch {kind.plural}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns at once; a request that is under way ends by itself."""
        self._closing.set()

    def objects(self) -> tuple[dict[str, Any], ...]:
        """All of them, by name."""
        with self._lock:
            return tuple(self._objects[name] for name in sorted(self._objects))

    @property
    def is_forbidden(self) -> bool:
        """Whether nobody may look, and that is not going to pass."""
        return self._forbidden.is_final

    def _run(self) -> None:
        pauses = Pauses()
        while not self._closing.is_set():
            try:
                if not self._version:
                    self._list()
                self._watch()
                pauses = Pauses()
            except Expired:
                self._version = ""
            except ApiError as error:
                if error.status == _GONE:
                    self._version = ""
                    continue
                self._forbidden.failed(error)
                self._report(error)
                if error.status in _ABSENT and not self.is_listed:
                    return
                if not error.may_pass:
                    self._version = ""  # whatever it does not like about it
                self._closing.wait(pauses.next(error))

    def _report(self, error: ApiError) -> None:
        if self.trouble is None:
            _log.info("%s cannot be watched at the moment: %s", self._path, error)
        self.trouble = error
        self._changed()

    def _list(self) -> None:
        listing = self._api.get(self._path, self._selectors)
        with self._lock:
            self._objects = {item["metadata"]["name"]: item for item in listing["items"]}
        self._version = str(listing["metadata"]["resourceVersion"])
        self.is_listed, self.trouble = True, None
        self._forbidden.let_in()
        self._changed()

    def _watch(self) -> None:
        """Until the server ends it; goes on where the one before ended."""
        query = {
            **self._selectors,
            "watch": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(WATCH_S),
            "allowWatchBookmarks": "true",
        }
        for line in self._api.lines(self._path, query):
            if self._closing.is_set():
                return
            with self._lock:
                self._version = fold(self._objects, json.loads(line))
            self.trouble = None
            self._changed()
