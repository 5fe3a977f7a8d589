"""A server on this machine that answers as the Hugging Face hub does for one dataset, `team/rows`, of one jsonl file."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

COMMIT = "a" * 40
FILE = "train.jsonl"


def handler(data: bytes) -> type[http.server.BaseHTTPRequestHandler]:
    info = {
        "id": "team/rows",
        "sha": COMMIT,
        "siblings": [{"rfilename": FILE}],
        "private": False,
        "gated": False,
        "tags": [],
    }
    tree = [{"type": "file", "path": FILE, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}]

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            api = "/api/datasets/team/rows"
            if path == api or path.startswith(f"{api}/revision/"):
                self.send(json.dumps(info).encode())
            elif path.startswith(f"{api}/tree/"):
                self.send(json.dumps(tree).encode())
            elif path.endswith(f"/{FILE}"):
                self.send(data)
            else:
                self.send(b"{}", 404, "EntryNotFound" if "/team/rows/resolve/" in path else "RepoNotFound")

        do_GET = do_HEAD = do_POST = answer

        def send(self, body: bytes, status: int = 200, code: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not worth a line."""

    return Handler


@contextlib.contextmanager
def hub_server(data: bytes) -> Iterator[str]:
    """The address to put into HF_ENDPOINT."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(data))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
