"""S3 as the run folder needs it: no request waits for ever, and a create whose answer was lost is not taken for somebody else's.

s3fs, botocore and aiohttp each repeat a request whose answer was lost. An exclusive create (`If-None-Match: *`) that is
repeated meets its own first try, and the server says that the object exists: a run would lose its claim to itself. So an
exclusive put carries a random tag, and a refusal is looked into: an object with that tag is ours. s3fs' and botocore's
repetitions are off, since they multiply (25 tries of 15 s in a black hole); this module's take their place. Outages longer
than a blip are for whoever calls (`cluster/policy/backoff.py`).

Timeouts that the user set (fsspec's configuration, `config_kwargs`) win over the ones here.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import ClientPayloadError
from botocore.exceptions import HTTPClientError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from urllib3.exceptions import IncompleteRead

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
"""Longest silence while an answer is awaited or read."""
SLOWEST_BYTES_PER_S = 1e6
"""A body that is sent may take so long beyond the timeouts. aiohttp itself waits for ever for a server that does not read it, or
does not say `100 Continue`."""
TRIES = 3
FIRST_PAUSE_S, PAUSE_FACTOR = 0.2, 4.0
"""Between tries: 0.2 s, then 0.8 s."""

_TAG = "zerofleet-create"
"""Key of the user metadata that tells one exclusive put from another."""
_PASSING = (HTTPClientError, ClientPayloadError, IncompleteRead, ResponseParserError, TimeoutError, ConnectionError)
_PASSING_STATUS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
"""409: another conditional request for this object was under way; AWS asks to try again."""


class S3(S3FileSystem):
    """s3fs with our timeouts and our repetitions. Any other refusal (4xx) is an answer, and never tried again."""

    connect_timeout, read_timeout = CONNECT_TIMEOUT_S, READ_TIMEOUT_S
    retries = 1

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        return {"retries": {"total_max_attempts": 1}, **super()._prepare_config_kwargs()}

    async def _call_s3(self, method: str, *positional: Any, **fields: Any) -> Any:
        """Every request to the server passes here."""

        timeouts = self._prepare_config_kwargs()
        limit_s = timeouts["connect_timeout"] + timeouts["read_timeout"]
        limit_s += len(fields.get("Body", b"")) / SLOWEST_BYTES_PER_S

        async def call() -> Any:
            request = super(S3, self)._call_s3(method, *positional, **fields)
            try:
                return await asyncio.wait_for(request, limit_s)
            except TimeoutError as error:  # fsspec would drop its message
                raise ConnectionError(f"no answer to {method} within {limit_s:.0f} s") from error

        if "IfNoneMatch" not in fields:
            # What reads an answer's body repeats the whole, request included.
            return await (call() if method == "get_object" else _insist(call))
        if method != "put_object":
            return await call()  # the end of a multipart upload: a second try could not tell whose object is there
        tag = os.urandom(8).hex()
        fields["Metadata"] = {_TAG: tag}
        try:
            return await _insist(call)
        except OSError as error:
            if not says_it_exists(error):
                raise
            there = await self._call_s3("head_object", Bucket=fields["Bucket"], Key=fields["Key"])
            if there["Metadata"].get(_TAG) != tag:
                raise
            return there

    call_s3 = sync_wrapper(_call_s3)  # s3fs binds its own when its class is made

    async def _cat_file(self, path: str, **fields: Any) -> Any:
        async def read() -> Any:
            # With one at a time s3fs asks for no size first; whole files that are read are small.
            return await super(S3, self)._cat_file(path, **{**fields, "max_concurrency": 1})

        return await _insist(read)


async def _insist(action: Callable[[], Awaitable[Any]]) -> Any:
    pause_s = FIRST_PAUSE_S
    for _ in range(TRIES - 1):
        try:
            return await action()
        except Exception as error:
            if not is_passing(error):
                raise
        await asyncio.sleep(pause_s)
        pause_s *= PAUSE_FACTOR
    return await action()


def http_status(error: BaseException | None) -> int | None:
    """The answer that an exception or its causes hold, as botocore's do. Not __context__: that may be an earlier refusal
    that the caller is just handling."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status
        error = error.__cause__
    return None


def is_passing(error: BaseException) -> bool:
    """Whether a request may go well when it is sent again: a lost connection, a timeout, a server under load."""
    status = http_status(error)
    if status is not None:
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING_STATUS
    return isinstance(error, _PASSING) or isinstance(error.__cause__, _PASSING)


def says_it_exists(error: OSError) -> bool:
    return error.errno == errno.EEXIST or isinstance(error, FileExistsError) or http_status(error) == 412
