"""An S3 server (moto) in a process of its own: `with S3Server() as server:`, or `python -m zerofleet.benchmarks.s3.server BUCKET`.

The process says its port on stdout and ends when its stdin closes. It holds everything in memory.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from http.client import HTTPConnection
from typing import Any

BUCKET = "runs"

Start = Callable[..., Any]


class S3Server:
    """`port` on 127.0.0.1; `BUCKET` exists."""

    def __enter__(self) -> S3Server:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zerofleet.benchmarks.s3.server", BUCKET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said.startswith("port "), f"the S3 server did not start (exit code {self._process.poll()})"
        self.port = int(said.split()[1])
        return self

    def __exit__(self, *_: object) -> None:
        from zerofleet.trainer.s3 import S3  # needs the extra, which who only imports this may not have

        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        S3.clear_instance_cache()  # fsspec would give this process's next run in S3 a client of this server


def environment(port: int) -> dict[str, str]:
    """What makes s3fs use the server, or a proxy, at `port`, and leaves the user's own settings out."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def atomic(app: Callable[[dict[str, Any], Start], Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """One request at a time, as whole as S3 takes it: moto looks and writes in two steps, which would let two exclusive
    creates win, and it would store what came of a body whose connection was cut."""
    lock = threading.Lock()

    def whole(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        if len(body) < length:
            start_response("400 Bad Request", [("Content-Length", "0")])
            return [b""]
        if length:
            environ["wsgi.input"] = io.BytesIO(body)
        with lock:
            return list(app(environ, start_response))

    return whole


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing: a run makes thousands of requests."""

    app = atomic(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("PUT", f"/{sys.argv[1]}")
    assert connection.getresponse().status == 200
    print(f"port {server.port}", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
