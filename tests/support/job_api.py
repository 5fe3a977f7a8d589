"""A stand-in for Ray's job API: the routes that zerofleet uses, as ray 2.60 answers them, and a record of what came in."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "planted-5e1f77c0ffee"


class JobApi:
    """`with JobApi() as api:` Jobs are PENDING until a test says something else."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token, self.ray_version = token, "2.60.0"
        self.jobs: dict[str, dict] = {}
        self.packages: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.answer = lambda job: None
        """Called with each job that is submitted."""
        self.drop = 0
        """So many submissions are taken and not answered."""
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> JobApi:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Again on the same port, after `close`."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"api": self}))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def finish(self, job: str, status: str, exit_code: int | None = None, message: str = "") -> None:
        self.jobs[job] |= {"status": status, "driver_exit_code": exit_code, "message": message}

    # -- what came in and goes out ---------------------------------------------------------------------------------
    def reply(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        parts = path.strip("/").split("/")
        if path == "/api/version":
            return 200, json.dumps({"version": "4", "ray_version": self.ray_version}).encode()
        if parts[1] == "packages":
            if method == "PUT":
                self.packages[parts[3]] = body
            return (200, b"") if parts[3] in self.packages else (404, b"Package does not exist")
        if method == "POST" and path == "/api/jobs/":
            return self._submit(json.loads(body))
        if parts[2] not in self.jobs:
            return 404, b"Job does not exist"
        job = self.jobs[parts[2]]
        if method == "DELETE":
            del self.jobs[parts[2]]
        if parts[3:] == ["stop"]:
            job["status"] = "STOPPED"
        return 200, json.dumps({"logs": job["log"]} if parts[3:] == ["logs"] else job).encode()

    def _submit(self, asked: dict) -> tuple[int, bytes]:
        name = asked["submission_id"]
        if name in self.jobs:
            error = f"ValueError: Job with submission_id {name} already exists."
            return 500, f"Traceback:\n  File x\n{error}\n.\n".encode()
        self.jobs[name] = {**asked, "status": "PENDING", "driver_exit_code": None, "message": "", "log": ""}
        self.answer(self.jobs[name])
        return 200, json.dumps({"submission_id": name}).encode()


class _Handler(BaseHTTPRequestHandler):
    api: JobApi

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.api.requests.append((self.command, self.path))
        given = self.headers.get("Authorization")
        if self.api.token and given != f"Bearer {self.api.token}":
            status, answer = (403, b"Forbidden: Invalid token") if given else (401, b"Unauthorized: Missing token")
        else:
            status, answer = self.api.reply(self.command, self.path, body)
        if self.command == "POST" and self.api.drop:
            self.api.drop -= 1
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""
