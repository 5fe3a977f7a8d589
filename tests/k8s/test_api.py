"""One request, over what happens to requests: against a small HTTP server with a script."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from zerofleet.cluster.config import UserError
from zerofleet.k8s.api import Api, ApiError, NotAuthorized, Pauses, refusal

pytestmark = pytest.mark.timeout(30)
PATH = "/api/v1/namespaces/training/pods"


class Server:
    """Answers with what `script` holds: (status, body or its chunks), or None for a connection that breaks."""

    def __init__(self) -> None:
        self.script: list = []
        self.seen: list[tuple[str, str, str, object]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                outer.seen.append(
                    (self.command, self.path, token, json.loads(body) if body else self.headers.get("Content-Type"))
                )
                answer = outer.script.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                status, said, *headers = answer
                if isinstance(said, list):
                    return self.stream(status, said)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, status: int, chunks: list[bytes]) -> None:
                """An empty chunk ends it; without one it is cut off."""
                self.send_response(status)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in chunks:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                self.close_connection = bool(
                    chunks[-1]
                )  # closed unannounced after its end, it would break the next request

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def login(server, tmp_path, monkeypatch):
    """`login("token")` writes the kubeconfig that the client reads."""
    path = tmp_path / "kubeconfig"

    def write(token: str) -> None:
        url = f"http://127.0.0.1:{server.http.server_address[1]}"
        config = {
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "training"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config))

    write("first")
    write.path = path
    monkeypatch.setenv("KUBECONFIG", str(path))
    return write


@pytest.fixture
def api(login, monkeypatch):
    monkeypatch.setattr(Pauses, "next", lambda self, error: 0.001)
    return Api(None, patience_s=5)


def test_a_request_and_its_answer(api, server):
    server.script = [(200, {"items": []}), (201, {"kind": "Pod"}), (200, {"kind": "Pod"})]
    assert api.namespace == "training"
    assert api.get(PATH, {"labelSelector": "a=b,c=d"}) == {"items": []}
    assert api.create(PATH, {"kind": "Pod"}) == {"kind": "Pod"}
    api.patch(f"{PATH}/a", {"spec": None})
    assert server.seen == [
        ("GET", f"{PATH}?labelSelector=a%3Db%2Cc%3Dd", "first", None),
        ("POST", PATH, "first", {"kind": "Pod"}),
        ("PATCH", f"{PATH}/a", "first", {"spec": None}),
    ]


@pytest.mark.parametrize(
    "trouble", [None, (429, {"reason": "TooManyRequests"}), (500, {}), (503, b"<html>busy</html>")]
)
def test_what_may_pass_is_tried_again(api, server, trouble):
    server.script = [trouble, trouble, (201, {"kind": "Pod"})]
    assert api.create(PATH, {}) == {"kind": "Pod"} and len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422])
def test_a_refusal_is_the_callers_and_is_not_repeated(api, server, status):
    server.script = [(status, {"reason": "Why", "message": "since it is so"})]
    with pytest.raises(ApiError, match="since it is so") as refused:
        api.get(PATH)
    assert (refused.value.status, refused.value.reason, refused.value.may_pass) == (status, "Why", False)
    assert len(server.seen) == 1


def test_an_expired_token_is_read_again(api, server, login):
    server.script = [(401, {}), (200, {"items": []}), (200, {"items": []})]
    login("second")
    assert api.get(PATH) == {"items": []}
    api.get(PATH)
    assert [token for _, _, token, _ in server.seen] == ["first", "second", "second"]


def test_a_token_that_is_refused_again_is_the_users_mistake(api, server):
    server.script = [(401, {}), (401, {})]
    with pytest.raises(NotAuthorized, match="log in again") as refused:
        api.get(PATH)
    assert refused.value.exit_code == 2 and "first" not in str(refused.value)


@pytest.mark.parametrize("kubeconfig", ["", "clusters:\n- name: c\n  clus", "users: half"])
def test_a_kubeconfig_that_is_half_written_is_the_users_and_the_old_credentials_stay(api, server, login, kubeconfig):
    whole = login.path.read_text()
    login.path.write_text(kubeconfig)
    server.script = [(401, {}), (401, {}), (200, {"items": []})]
    with pytest.raises(NotAuthorized, match="no cluster can be reached") as refused:
        api.get(PATH)
    assert refused.value.exit_code == 2
    login.path.write_text(whole.replace("first", "second"))
    assert api.get(PATH) == {"items": []}
    assert [token for _, _, token, _ in server.seen] == ["first", "first", "second"]


def test_a_plugin_that_fails_leaves_nobody_in_the_users_place(api, server, login):
    config = yaml.safe_load(login.path.read_text())
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "false", "interactiveMode": "Never"}
    config["users"] = [{"name": "u", "user": {"exec": plugin}}]
    login.path.write_text(yaml.safe_dump(config))
    server.script = [(401, {}), (200, {"items": []})]
    with pytest.raises(NotAuthorized, match="gives no credentials any more: log in again"):
        api.get(PATH)
    api.get(PATH)
    assert [token for _, _, token, _ in server.seen] == ["first", "first"]


def test_lines_come_until_the_server_ends_them_or_the_connection_breaks(api, server):
    server.script = [(200, [b"a\nb", b"\nc", b""]), (200, [b"cut off\n", b"ha"]), (410, {"reason": "Expired"})]
    assert list(api.lines(PATH, {"watch": "true"})) == [b"a", b"b", b"c"]
    stream = api.lines(PATH, {})
    assert next(stream) == b"cut off"
    with pytest.raises(ApiError) as broken:
        next(stream)
    assert broken.value.status == 0 and broken.value.may_pass
    with pytest.raises(ApiError) as expired:
        list(api.lines(PATH, {}))
    assert expired.value.status == 410


def test_deleting_what_is_gone_is_no_error(api, server):
    server.script = [(404, {"reason": "NotFound"})]
    api.delete(f"{PATH}/a")
    assert server.seen[0][:2] == ("DELETE", f"{PATH}/a")


def test_patience_has_an_end(login, server, monkeypatch):
    monkeypatch.setattr(Pauses, "next", lambda self, error: 0.02)
    server.script = [(503, {})] * 1000
    with pytest.raises(ApiError):
        Api(None, patience_s=0.1).get(PATH)
    assert 2 <= len(server.seen) <= 10


def test_a_wrong_context_is_the_users_mistake(login):
    with pytest.raises(UserError, match=r"with context 'nowhere'.*--context"):
        Api("nowhere")


def test_what_a_proxy_says_is_shown_and_the_servers_word_on_waiting_counts():
    error = refusal(503, "Service Unavailable", {"Retry-After": "7"}, b"<html>no healthy upstream</html>")
    assert "no healthy upstream" in str(error) and error.retry_after_s == 7
    pauses = Pauses()
    assert pauses.next(error) == 7
    quick = ApiError(500, "", "")
    waits = [pauses.next(quick) for _ in range(12)]
    assert all(0.25 <= wait <= 10 for wait in waits) and waits[-1] >= 5
