"""Whether a 403 is believed: not at once of who was let in before. Credentials that are renewed at that moment may be nobody's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from zerofleet.k8s.api import PATIENCE_S, Api, ApiError, NotAuthorized

_STATUS = 403


class Forbidden:
    """Told of every answer to the same question, in their order. Reads the credentials again after each 403 that may pass."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._clock = api, clock
        self._was_let_in = False
        self._since: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether whoever asks has no right to: 403 to the first question, or for longer than two minutes."""
        return self._since is not None and (not self._was_let_in or self._clock() - self._since >= PATIENCE_S)

    def let_in(self) -> None:
        self._was_let_in, self._since = True, None

    def failed(self, error: ApiError) -> None:
        if error.status != _STATUS:
            self._since = None
            return
        if self._since is None:
            self._since = self._clock()
        if not self.is_final:
            with contextlib.suppress(NotAuthorized):  # then the old ones stay, and the next answer says so
                self._api.renew()
