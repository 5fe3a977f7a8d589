"""A client of Ray's job API: plain HTTP and the standard library, so that a laptop needs no Ray.

The routes are those of ray 2.60 (`dashboard/modules/job/job_head.py`). The token travels in a header only; nothing here puts
it, or a URL that may hold a secret, into a message.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

from zerofleet.launch.backends.ray_token import Token, find_token
from zerofleet.trainer.errors import UserError, ZerofleetError

_TIMEOUT_S = 20.0
_PACKAGE = "/api/packages/gcs/"
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")
_SUBMISSION_TRIES = 3


class ClusterUnreachable(UserError):
    """Nobody answers at the cluster's address."""


class JobApiError(ZerofleetError):
    """The job API answered that something is wrong at its side."""


@dataclass(frozen=True)
class Job:
    """How a job stands: Ray's status, its message, and the exit code of its entrypoint."""

    status: str
    message: str
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        return self.status in _OVER

    @property
    def said(self) -> str:
        """Its status, and the first line of Ray's message about a failure."""
        lines = self.message.strip().splitlines() if self.status == "FAILED" else []
        return f"{self.status}: {lines[0].strip().rstrip(',:')}" if lines else self.status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would take the token along to wherever it is sent."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def api_url(address: str) -> str:
    """`host:8265` or `http(s)://host:8265` without a trailing slash. Raises UserError, in which the address is named only when it can
    hold no secret."""
    remedy = "give the address of Ray's job API: http(s)://HOST:8265, the port of the dashboard on the cluster's head"
    parts = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"--address holds more than a place (a name, a password or a query): {remedy}; a token comes from RAY_AUTH_TOKEN, "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        )
    try:
        is_place = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_place = False
    if not is_place:
        raise UserError(f"--address {address!r} is no place of a job API: {remedy}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


class RayJobs:
    """The job API at one address."""

    def __init__(self, address: str, token: Token | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        """`token` is looked for where Ray looks when none is given. Raises UserError for a wrong address or an unreadable token file."""
        self.address = api_url(address)
        self._token = find_token() if token is None else token
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self._json("GET", "/api/version")["ray_version"])

    @property
    def token_source(self) -> str:
        """Where the token came from."""
        return self._token.source

    def is_open(self) -> bool:
        """Whether the API answers whoever asks, without a token."""
        if not self._token.value:
            return True  # it has answered
        try:
            RayJobs(self.address, Token("", ""), self._timeout_s).ray_version()
        except UserError:
            return False
        return True

    def submit(self, job: str, entrypoint: str, runtime_env: dict[str, Any]) -> None:
        """Starts a job under an id that the cluster has never had. An answer that was lost on its way back is no failure. Raises JobApiError."""
        request = {"submission_id": job, "entrypoint": entrypoint, "runtime_env": runtime_env}
        body, is_repeated = json.dumps(request).encode(), False
        for left in reversed(range(_SUBMISSION_TRIES)):
            try:
                self._call("POST", "/api/jobs/", body)
                return
            except ClusterUnreachable:
                if not left:
                    raise
                is_repeated = True
            except JobApiError:
                # The id is random: where it is taken although this is a repetition, the first try took it.
                if not is_repeated or self.job(job) is None:
                    raise
                return

    def job(self, job: str) -> Job | None:
        """None: the cluster knows no such job."""
        try:
            facts = self._json("GET", f"/api/jobs/{job}")
        except _NotFound:
            return None
        code = facts.get("driver_exit_code")
        return Job(str(facts["status"]), str(facts.get("message") or ""), None if code is None else int(code))

    def log(self, job: str) -> str:
        """What the job's entrypoint has written; empty for an unknown job."""
        try:
            return str(self._json("GET", f"/api/jobs/{job}/logs")["logs"] or "")
        except _NotFound:
            return ""

    def stop(self, job: str) -> None:
        """Asks the job to end; Ray kills it when it does not."""
        self._call("POST", f"/api/jobs/{job}/stop", b"{}")

    def forget(self, job: str) -> None:
        """Removes an ended job from the cluster's list."""
        self._call("DELETE", f"/api/jobs/{job}")

    def upload(self, package: bytes) -> str:
        """Leaves a zip with the cluster, unless it is there; returns its URI, which is made of its content."""
        name = f"_ray_pkg_{hashlib.sha1(package, usedforsecurity=False).hexdigest()}.zip"
        try:
            self._call("GET", _PACKAGE + name)
        except _NotFound:
            self._call("PUT", _PACKAGE + name, package)
        return f"gcs://{name}"

    # -- HTTP ------------------------------------------------------------------------------------------------------
    def _json(self, method: str, path: str) -> dict[str, Any]:
        answer = self._call(method, path)
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"what answers at {self.address} is not Ray's job API ({path} is no JSON): give http(s)://HOST:8265, the port of "
                "the dashboard on the cluster's head"
            ) from error

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        kind = "application/octet-stream" if path.startswith(_PACKAGE) else "application/json"
        request = urllib.request.Request(f"{self.address}{path}", body, {"Content-Type": kind}, method=method)
        if self._token.value:
            request.add_unredirected_header("Authorization", f"Bearer {self._token.value}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise self._refusal(error, path) from error
        except (OSError, http.client.HTTPException) as error:
            raise ClusterUnreachable(
                f"no Ray cluster answers at {self.address} ({_reason(error)}): is its head up, its dashboard reachable from here "
                "(ray start --dashboard-host=0.0.0.0), and the port the dashboard's (8265 unless changed)?"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError, path: str) -> ZerofleetError:
        if error.code == 404:
            return _NotFound(f"{self.address}{path} is not there")
        if error.code in (401, 403):
            return UserError(f"the Ray cluster at {self.address} {self._token.refused(error.code)}")
        if 300 <= error.code < 400:
            return UserError(
                f"{self.address} sends requests elsewhere (HTTP {error.code}), and a token must not follow: give the address that "
                "it leads to"
            )
        lines = [line for line in error.read().decode(errors="replace").splitlines() if line.strip(" .")]
        return JobApiError(
            f"Ray's job API at {self.address} says HTTP {error.code}: {lines[-1].strip() if lines else ''}"
        )


class _NotFound(JobApiError):
    """HTTP 404."""


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)
