"""When a 403 is believed."""

from __future__ import annotations

from zerofleet.k8s.api import PATIENCE_S, ApiError, NotAuthorized
from zerofleet.k8s.forbidden import Forbidden

REFUSED, BUSY = ApiError(403, "Forbidden", ""), ApiError(503, "", "")


class FakeApi:
    def __init__(self) -> None:
        self.renewals = 0

    def renew(self) -> None:
        self.renewals += 1
        raise NotAuthorized(401, "NoCredentials", "half written")


def test_a_first_refusal_is_final_and_a_later_one_when_it_lasts():
    now, api = [0.0], FakeApi()
    forbidden = Forbidden(api, lambda: now[0])
    assert not forbidden.is_final
    forbidden.failed(REFUSED)
    assert forbidden.is_final and api.renewals == 0
    forbidden.let_in()
    now[0] = 1000.0
    forbidden.failed(REFUSED)
    assert not forbidden.is_final and api.renewals == 1
    now[0] += PATIENCE_S
    assert forbidden.is_final
    forbidden.failed(BUSY)
    assert not forbidden.is_final
    forbidden.failed(REFUSED)
    assert not forbidden.is_final and api.renewals == 2
