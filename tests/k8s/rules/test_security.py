"""Secrets that a job would show to whoever may read it: planted, found, and not repeated."""

from __future__ import annotations

import pytest

from tests.k8s.support import CPU, changed_profile, workload
from zerofleet.k8s.lint import lint

PLANTED = [
    (
        ["data.files=[]", "data.stream.url=s3://key:PLANTED@bucket/corpus"],
        {},
        "error: data.stream.url: the URL holds credentials",
    ),
    (
        ["data.files=['https://b.s3.amazonaws.com/a.jsonl?X-Amz-Expires=9&X-Amz-Signature=PLANTED']"],
        {},
        "error: data.files.0: the URL holds a signature",
    ),
    (
        ["data.files=['https://a.blob.core.windows.net/b/a.jsonl?sv=2024&sig=PLANTED']"],
        {},
        "error: data.files.0: the URL holds a signature",
    ),
    (
        ["data.files=[]", "data.stream.url='https://cdn.example.com/corpus?Signature=PLANTED'"],
        {},
        "error: data.stream.url: the URL holds a signature",
    ),
    (
        [],
        {"env__HTTPS_PROXY": "http://kim:PLANTED@proxy.example.com:3128"},
        "error: env.HTTPS_PROXY: its value holds a URL with credentials",
    ),
    (
        [],
        {"env__INDEXES": "https://pypi.org/simple https://PLANTED@pypi.example.com/simple"},
        "error: env.INDEXES: its value holds a URL with credentials",
    ),
]


def found(overrides, changes) -> list[str]:
    profile = changed_profile(CPU, **changes)
    return [str(finding) for finding in lint(profile, workload(CPU, *overrides, profile=profile))]


@pytest.mark.parametrize(("overrides", "changes", "expected"), PLANTED)
def test_a_secret_is_found_and_not_repeated(overrides, changes, expected):
    said = found(overrides, changes)
    assert len([line for line in said if expected in line]) == 1, said
    assert all("Secret" in line for line in said if expected in line) and "PLANTED" not in " ".join(said)


def test_urls_without_secrets_are_right():
    changes = {"env__NO_PROXY": "a.example.com", "env__HTTPS_PROXY": "http://proxy.example.com:3128"}
    changes["env__REPOSITORY"] = "ssh://git@example.com/a"
    files = (
        "['abfss://container@account.dfs.core.windows.net/a.jsonl','https://example.com/a.jsonl?signature_version=4']"
    )
    assert found([f"data.files={files}"], changes) == []
