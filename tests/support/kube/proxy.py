"""Between a client and the API server: what a network, a load balancer or a busy server does to requests, on demand.

Plain HTTP towards the client. It also carries policy/v1 to the v1beta1 of an old server.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

Answer = tuple[int, dict[str, object]]


@dataclass
class Request:
    """One request, as it came."""

    method: str
    path: str
    token: str

    @property
    def is_watch(self) -> bool:
        return "watch=true" in self.path


@dataclass
class Fault:
    """`when` says which requests it meets, `count` how many of them. `answer` goes back in place of the server's; without one, the connection is
    dropped. With `after`, the server gets the request all the same: its answer is lost."""

    when: Callable[[Request], bool]
    count: int
    answer: Answer | None = None
    after: bool = False
    met: list[str] = field(default_factory=list)


class Proxy:
    """`with Proxy(control_plane.url) as proxy: proxy.faults.append(...)`"""

    def __init__(self, port: int) -> None:
        self._port, self._lock = port, threading.Lock()
        self.faults: list[Fault] = []
        self.seen: list[Request] = []
        self._streams: set[http.client.HTTPConnection] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, path: Path, original: Path, namespace: str, user: str) -> str:
        """For a client of the proxy, as this user of the original. Returns the user's token."""
        config = yaml.safe_load(original.read_text())
        (token,) = [each["user"]["token"] for each in config["users"] if each["name"] == user]
        config |= {
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "user", "context": {"cluster": "test", "user": "user", "namespace": namespace}}],
            "current-context": "user",
        }
        new = path.with_suffix(".new")
        new.write_text(yaml.safe_dump(config))
        new.rename(path)
        return token

    def drop_streams(self) -> int:
        """Breaks every watch and log that is open. Returns how many there were."""
        with self._lock:
            streams, self._streams = self._streams, set()
        for stream in streams:
            with contextlib.suppress(OSError, AttributeError):  # it has just ended
                stream.sock.shutdown(socket.SHUT_RDWR)
        return len(streams)

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, request: Request) -> Fault | None:
        with self._lock:
            self.seen.append(request)
            for fault in self.faults:
                if len(fault.met) < fault.count and fault.when(request):
                    fault.met.append(f"{request.method} {request.path}")
                    return fault
        return None

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _carry(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, self.headers.get("Authorization", ""))
                fault = proxy._fault(request)
                if fault is not None and not fault.after:
                    self._instead(fault)
                    return
                path = self.path.replace("/apis/policy/v1/", "/apis/policy/v1beta1/")
                body = body.replace(b'"policy/v1"', b'"policy/v1beta1"')
                connection = http.client.HTTPSConnection("127.0.0.1", proxy._port, context=context, timeout=300)
                try:
                    connection.request(
                        self.command,
                        path,
                        body or None,
                        {k: v for k, v in self.headers.items() if k not in ("Host", "Content-Length")},
                    )
                    answer = connection.getresponse()
                except OSError:
                    self.close_connection = True
                    return
                if fault is not None:
                    answer.read()
                    self._instead(fault)
                    return
                self._pass_on(answer, connection, request)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _carry

            def _instead(self, fault: Fault) -> None:
                if fault.answer is None:
                    self.close_connection = True
                    return
                status, said = fault.answer
                data = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _pass_on(
                self, answer: http.client.HTTPResponse, connection: http.client.HTTPConnection, request: Request
            ) -> None:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                if after := answer.headers.get("Retry-After"):
                    self.send_header("Retry-After", after)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                is_stream = request.is_watch or "follow=true" in request.path
                if is_stream:
                    with proxy._lock:
                        proxy._streams.add(connection)
                while data := self._some(answer):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    self.wfile.flush()
                if is_stream:
                    with proxy._lock:
                        was_dropped = connection not in proxy._streams
                        proxy._streams.discard(connection)
                    if was_dropped:
                        self.close_connection = True
                        self.connection.close()
                        return
                self.wfile.write(b"0\r\n\r\n")
                connection.close()

            def _some(self, answer: http.client.HTTPResponse) -> bytes:
                try:
                    return answer.read1(65536)
                except (OSError, ValueError, http.client.HTTPException):
                    self.close_connection = True
                    raise ConnectionAbortedError from None

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        return Handler
