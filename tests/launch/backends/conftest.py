"""A job API with a token, and no token of the user's own."""

import pytest

from tests.support.job_api import TOKEN, JobApi
from zerofleet.launch.backends import jobs


@pytest.fixture(autouse=True)
def no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jobs, "_unreachable", {})


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with JobApi() as found:
        yield found
