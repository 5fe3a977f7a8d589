import http.server
import threading

import pytest

from tests.support.job_api import TOKEN
from zerofleet.launch.backends.ray_jobs import ClusterUnreachable, JobApiError, RayJobs, api_url
from zerofleet.trainer.errors import UserError


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("10.0.0.1:8265", "http://10.0.0.1:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org/team/", "https://ray.example.org/team"),
        ("http://[fd00::1]:8265", "http://[fd00::1]:8265"),
    ],
)
def test_an_address(given, url):
    assert api_url(given) == url


@pytest.mark.parametrize("given", ["", "ray://head:10001", "http://head:port", "http://", "auto://x"])
def test_what_is_no_address(given):
    with pytest.raises(UserError, match=r"http\(s\)://HOST:8265"):
        api_url(given)


@pytest.mark.parametrize(
    "given", ["http://me:hush@head:8265", "http://hush@head", "http://head:8265/?token=hush", "head#hush"]
)
def test_an_address_with_a_secret_is_refused_without_showing_it(given):
    with pytest.raises(UserError) as refused:
        api_url(given)
    assert "hush" not in str(refused.value)


def test_a_job_from_its_submission_to_its_end(api):
    jobs = RayJobs(api.address)
    assert jobs.ray_version() == "2.60.0"
    assert jobs.job("a") is None and jobs.log("a") == ""
    jobs.submit("a", "exec python -m x", {"env_vars": {"A": "1"}})
    assert api.jobs["a"]["entrypoint"] == "exec python -m x" and api.jobs["a"]["runtime_env"] == {
        "env_vars": {"A": "1"}
    }
    assert not jobs.job("a").is_over
    api.finish("a", "FAILED", 3, "Job entrypoint command failed with exit code 3, last available logs\nsecond line")
    ended = jobs.job("a")
    assert ended.is_over and ended.exit_code == 3
    assert ended.said == "FAILED: Job entrypoint command failed with exit code 3, last available logs"
    jobs.forget("a")
    assert jobs.job("a") is None


def test_a_package_is_uploaded_once(api):
    jobs = RayJobs(api.address)
    uri = jobs.upload(b"zip")
    assert uri == jobs.upload(b"zip") and uri.startswith("gcs://_ray_pkg_") and uri.endswith(".zip")
    assert [method for method, path in api.requests if "packages" in path] == ["GET", "PUT", "GET"]


def test_an_id_that_is_taken_is_an_error(api):
    jobs = RayJobs(api.address)
    jobs.submit("a", "x", {})
    with pytest.raises(JobApiError, match=r"HTTP 500: ValueError: Job with submission_id a already exists\."):
        jobs.submit("a", "x", {})


def test_a_submission_whose_answer_was_lost_is_not_done_twice(api):
    api.drop = 1
    RayJobs(api.address).submit("a", "x", {})
    assert [method for method, path in api.requests if path == "/api/jobs/"] == ["POST", "POST"] and list(api.jobs) == [
        "a"
    ]


def test_without_a_token_and_with_a_wrong_one(api, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(UserError, match="wants a token and none was found: put it in RAY_AUTH_TOKEN"):
        RayJobs(api.address).ray_version()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wr0ng")
    with pytest.raises(UserError, match=r"refuses the token from RAY_AUTH_TOKEN \(HTTP 403\)") as refused:
        RayJobs(api.address).ray_version()
    assert "wr0ng" not in str(refused.value)


def test_nobody_there(api):
    address = api.address
    api.close()
    with pytest.raises(ClusterUnreachable, match=f"no Ray cluster answers at {address} .*refused.*: is its head up"):
        RayJobs(address).ray_version()


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/api/version":
            self.send_response(302)
            self.send_header("Location", self.server.target)
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>log in</html>")

    def log_message(self, *arguments):
        pass


def test_the_token_does_not_follow_a_redirect_and_a_page_is_no_api(api):
    with http.server.HTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        server.target = f"{api.address}/api/version"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        jobs = RayJobs(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match="sends requests elsewhere"):
            jobs.ray_version()
        with pytest.raises(UserError, match="is not Ray's job API"):
            jobs.job("a")
        server.shutdown()
    assert api.requests == []


def test_errors_do_not_hold_the_token(api):
    api.reply = lambda *asked: (500, b"Traceback\nKeyError: 'x'\n.")
    with pytest.raises(JobApiError) as failed:
        RayJobs(api.address).ray_version()
    assert TOKEN not in str(failed.value) and "KeyError: 'x'" in str(failed.value)
