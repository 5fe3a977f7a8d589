"""The Kubernetes API over HTTP, by the official client: its kubeconfig, its credentials, its TLS. Objects are plain JSON.

What may be over in a moment is tried again: 429, 5xx, connections that break, an API server that starts anew. A 401 has the
credentials read again, since tokens expire while a run trains. All else is the caller's to judge.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import yaml

from zerofleet.cluster.config import UserError, ZerofleetError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

REQUEST_TIMEOUT_S = 20.0
STREAM_SILENCE_S = 75.0
"""A stream that says nothing for longer is taken for dead: a watch ends, or has a bookmark, every minute."""
PATIENCE_S = 120.0
"""How long a request is tried again: longer than an API server takes to start."""
_SAID_AFTER_S = 5.0
"""Whoever waits at the command line for longer is told what for."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_CONNECT_TIMEOUT_S = 10.0
_PASSING = frozenset((429, 500, 502, 503, 504))

_log = logging.getLogger(__name__)

_ANY = "application/json, */*"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_LIST_OF_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
PATCHES = {"merge": "application/merge-patch+json", "json": "application/json-patch+json"}


class ApiError(ZerofleetError):
    """The API server's refusal. `status` is HTTP's, 0 when there was no answer; `reason` is one word of Kubernetes', such as
    AlreadyExists; `message` is for people."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message or reason or f"HTTP {status}")
        self.status, self.reason, self.message, self.retry_after_s = status, reason, message, retry_after_s

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.status == 0 or self.status in _PASSING


class NotAuthorized(ApiError, UserError):
    """401 with credentials that were just read, or none that can be read: the user has to log in again."""

    exit_code = UserError.exit_code


@dataclass
class Pauses:
    """Doubling pauses between tries, each a random half to whole of its bound. The server's own word (Retry-After) counts more."""

    failures: int = 0
    draw: random.Random = field(default_factory=random.Random)

    def next(self, error: ApiError) -> float:
        """Seconds to wait after another failure."""
        bound = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.failures, 16))
        self.failures += 1
        return max(error.retry_after_s, bound * self.draw.uniform(0.5, 1.0))


class Api:
    """One cluster, as a context of the kubeconfig names it. Safe to be used by several threads."""

    def __init__(self, context: str | None = None, patience_s: float = PATIENCE_S) -> None:
        """Raises UserError when there is no such context, or no kubeconfig."""
        self._context, self._patience_s = context, patience_s
        self._lock = threading.Lock()
        self._client, self.namespace = load_client(context)
        """`namespace`: the context's own."""

    @property
    def url(self) -> str:
        """Where the API server is."""
        return str(self._client.configuration.host)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._json("GET", path, query)

    def get_metadata(self, path: str) -> dict[str, Any]:
        """An object's metadata without its content: what a Secret holds stays on the server."""
        return self._json("GET", path, None, accept=_METADATA)

    def list_metadata(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The same of all objects, as a list's `items`."""
        return self._json("GET", path, query, accept=_LIST_OF_METADATA)

    def create(self, path: str, body: dict[str, Any], query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A create whose answer was lost is tried again, and then finds its own object: ApiError 409."""
        return self._json("POST", path, query, body)

    def patch(self, path: str, body: Any, kind: str = "merge") -> dict[str, Any]:
        """`kind`: `merge` (a part of the object) or `json` (operations)."""
        return self._json("PATCH", path, None, body, PATCHES[kind])

    def delete(self, path: str, body: dict[str, Any] | None = None) -> None:
        """What is not there is deleted."""
        try:
            self._json("DELETE", path, None, body or {})
        except ApiError as error:
            if error.status != 404:
                raise

    def lines(self, path: str, query: Mapping[str, str], silence_s: float = STREAM_SILENCE_S) -> Iterator[bytes]:
        """Lines of an answer as they come, until the server ends it. Not tried again: the caller knows how far it got. Raises ApiError, with status
        0 when the connection breaks or is silent for `silence_s` seconds."""
        from urllib3.exceptions import HTTPError

        response = self._fresh(lambda: self._send("GET", path, query, None, "", (_CONNECT_TIMEOUT_S, silence_s)))
        rest = b""
        try:
            for chunk in response.response.stream(2**16):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
        except (HTTPError, OSError) as error:
            raise ApiError(0, "ConnectionLost", f"the connection to the API server broke: {error}") from error
        finally:
            response.response.close()  # not given back: the server may still be sending
        if rest:
            yield rest

    # -- one request -----------------------------------------------------------------------------------------------
    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any = None,
        content: str = "application/json",
        accept: str = _ANY,
    ) -> dict[str, Any]:
        pauses, began, is_said = Pauses(), time.monotonic(), False
        deadline = began + self._patience_s
        while True:
            try:
                response = self._fresh(
                    lambda: self._send(method, path, query, body, content, REQUEST_TIMEOUT_S, accept)
                )
                return dict(json.loads(response.read() or b"{}"))
            except ApiError as error:
                pause_s = pauses.next(error)
                if not error.may_pass or time.monotonic() + pause_s > deadline:
                    raise
                if not is_said and time.monotonic() + pause_s > began + _SAID_AFTER_S:
                    _log.warning("%s; it is tried again for %.0f s", error, deadline - time.monotonic())
                    is_said = True
                time.sleep(pause_s)

    def _fresh(self, send: Callable[[], Any]) -> Any:
        """`send`, and once more with credentials read anew when they are refused."""
        try:
            return send()
        except ApiError as error:
            if error.status != 401:
                raise
        self.renew()
        try:
            return send()
        except ApiError as error:
            if error.status != 401:
                raise
            raise NotAuthorized(
                401,
                error.reason,
                f"{self.url} refuses the credentials of the kubeconfig: log in again (context {self._context or 'current'})",
            ) from error

    def renew(self) -> None:
        """Reads the credentials again. Raises NotAuthorized when there are none, and keeps those that there were: the kubeconfig may be half written,
        and of a plugin that fails the official client makes a client without credentials, whom the server refuses as nobody (403)."""
        try:
            client, _ = load_client(self._context)
        except UserError as error:
            raise NotAuthorized(401, "NoCredentials", str(error)) from error
        with self._lock:
            if _has_credentials(self._client) and not _has_credentials(client):
                raise NotAuthorized(
                    401,
                    "NoCredentials",
                    f"the kubeconfig gives no credentials any more: log in again (context {self._context or 'current'})",
                )
            self._client = client

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content: str,
        timeout: float | tuple[float, float],
        accept: str = _ANY,
    ) -> Any:
        """The client's response, of a success. Raises ApiError."""
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException
        from urllib3.exceptions import HTTPError

        with self._lock:
            client = self._client
        headers = {"Accept": accept, "User-Agent": "zerofleet"}
        if body is not None:
            headers["Content-Type"] = content
        url = f"{client.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            response = client.rest_client.request(method, url, headers=headers, body=body, _request_timeout=timeout)
            if 200 <= response.status < 300:
                return response
            raise refusal(response.status, response.reason, response.headers, response.read())
        except ApiException as error:  # TLS: the client wraps nothing else
            raise ApiError(495, "TLS", f"{client.configuration.host}: {error.reason}") from error
        except ConfigException as error:  # a token that has expired is read again by the client itself
            raise ApiError(401, "NoCredentials", f"no credentials for {client.configuration.host}: {error}") from error
        except (HTTPError, OSError) as error:
            raise ApiError(0, "NoAnswer", f"no answer from {client.configuration.host}: {error}") from error


def refusal(status: int, reason: str, headers: Mapping[str, str], body: bytes) -> ApiError:
    """What the server said: a `Status` object, or whatever a proxy puts in its place."""
    try:
        said = json.loads(body)
        reason, message = said.get("reason") or reason, str(said.get("message") or "")
    except (ValueError, AttributeError):
        message = body[:200].decode(errors="replace").strip()
    after = headers.get("Retry-After", "")
    return ApiError(status, reason, message or reason, float(after) if after.isdecimal() else 0.0)


def load_client(context: str | None) -> tuple[ApiClient, str]:
    """A client, and the namespace of its context. Raises UserError."""
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise UserError("the Kubernetes client is not installed: pip install 'zerofleet[k8s]'") from error
    configuration = client.Configuration()
    half_written = yaml.YAMLError, TypeError, KeyError, AttributeError
    try:
        if context is None and not _has_kubeconfig() and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            return _client(configuration), _own_namespace()
        file = os.environ.get("KUBECONFIG") or None  # the client's own default is read once, at its import
        config.load_kube_config(config_file=file, context=context, client_configuration=configuration)
        contexts, current = config.list_kube_config_contexts(config_file=file)
    except (config.ConfigException, OSError, ValueError, *half_written) as error:
        named = f" with context {context!r}" if context else ""
        raise UserError(f"no cluster can be reached{named}: {error}. Set KUBECONFIG, or give --context") from error
    chosen = next((entry for entry in contexts if entry["name"] == context), current)
    return _client(configuration), str(chosen["context"].get("namespace") or "default")


def _has_credentials(client: ApiClient) -> bool:
    configuration = client.configuration
    return bool(configuration.api_key or configuration.cert_file or configuration.username)


def _client(configuration: Any) -> ApiClient:
    from kubernetes.client import ApiClient

    configuration.retries = False  # tried again here, where it is known what for
    return ApiClient(configuration)


def _has_kubeconfig() -> bool:
    return "KUBECONFIG" in os.environ or os.path.exists(os.path.expanduser("~/.kube/config"))  # noqa: PTH110, PTH111


def _own_namespace() -> str:
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:  # noqa: PTH123
        return file.read().strip()
