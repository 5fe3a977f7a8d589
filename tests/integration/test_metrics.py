"""A real run, scraped by a real Prometheus while it trains, loses a rank and goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.support.cli import Cli, wait_for_end
from zerofleet.k8s.monitoring.alerts import alerts, rule_groups
from zerofleet.k8s.monitoring.dashboard import PANELS
from zerofleet.k8s.profile import LifecycleConfig, MonitoringConfig
from zerofleet.launch.drivers import driver_records
from zerofleet.launch.metrics.catalog import METRICS, PREFIX
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.world import free_port

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.further,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)"),
]
ENDLESS = 10**6
_DEADLINE_S = 240

T = TypeVar("T")


def wait_for(what: Callable[[], T], timeout_s: float = _DEADLINE_S) -> T:
    """The first answer that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


class Prometheus:
    """Scrapes one target every second, with our rules."""

    def __init__(self, folder: Path, target: str) -> None:
        folder.mkdir()
        rules = folder / "rules.json"
        rules.write_text(json.dumps(rule_groups(MonitoringConfig(), LifecycleConfig())))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "zerofleet", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._address, self._log = f"127.0.0.1:{free_port()}", (folder / "log").open("w")
        assert PROMETHEUS is not None
        command = [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        command += [f"--web.listen-address={self._address}"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, cwd=folder)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query; none while it is starting."""
        url = f"http://{self._address}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())["data"]["result"]
        except urllib.error.HTTPError as error:
            assert error.code == 503, error.read()
            return []
        except OSError:
            assert self._process.poll() is None, "prometheus has ended"
            return []

    def value(self, expr: str) -> float | None:
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_corpus, tiny_cache):
    """One rank is killed once; it is stopped in the end."""
    cli = Cli(tmp_path_factory.mktemp("metrics"), tiny_corpus)
    fault = {"kind": "kill", "rank": 1, "step": 5}
    settings = [f"train.steps={ENDLESS}", "train.eval_interval_steps=10", "metrics.port=0", "cluster.stop_timeout_s=60"]
    started = cli.submit("scraped", *settings, "--detach", ZEROFLEET_FAULTS=json.dumps([fault]))
    assert started.returncode == 0, started.stdout + started.stderr
    yield cli.run("scraped")
    cli("stop", "scraped")
    assert wait_for_end(cli, "scraped") == "STOPPED"


@pytest.fixture(scope="module")
def prometheus(run, tmp_path_factory):
    made = Prometheus(tmp_path_factory.mktemp("prometheus") / "server", target_of(run))
    yield made
    made.close()


def target_of(run: RunFolder) -> str:
    """As the run says it."""
    said = wait_for(lambda: [m for e in run.events() if "metrics for Prometheus" in (m := e.data.get("message", ""))])
    return urllib.parse.urlsplit(said[0].rpartition(" ")[2]).netloc


def test_every_family_has_a_sample(run, prometheus):
    def missing() -> set[str]:
        names = {series["metric"]["__name__"] for series in prometheus.query('{run="scraped"}')}
        return {m.name for m in METRICS if f"{PREFIX}{m.name}{'_count' * (m.kind == 'histogram')}" not in names}

    wait_for(lambda: missing() == set() or None)


def test_a_killed_rank_is_seen_as_a_verdict_another_attempt_and_lost_time(run, prometheus):
    wait_for(lambda: (prometheus.value("zerofleet_attempts_total") or 0) >= 2)
    wait_for(lambda: prometheus.value('zerofleet_state{state="RUNNING"}') == 1.0)
    assert prometheus.value('sum(zerofleet_verdicts_total{action="retry"})') >= 1
    assert prometheus.value('zerofleet_time_seconds{label="restart"}') > 0
    wait_for(lambda: prometheus.value("zerofleet_ranks") == 2.0)


def test_the_labels_are_all_of_the_wall_time(run, prometheus):
    """From the driver's start to within the scrape that Prometheus dated: both read this host's clock."""
    began, scraped = driver_records(run)[0].started_at, "scalar(max(timestamp(zerofleet_step)))"
    more = f"scalar(sum(zerofleet_time_seconds)) - ({scraped} - {began!r})"
    beyond = f"vector({more}) > -0.1 and vector({more} - scalar(max(scrape_duration_seconds))) < 0.1"
    assert prometheus.query(beyond), prometheus.query(f"vector({more})")


def test_every_query_of_the_dashboard_and_every_rule_is_answered(run, prometheus):
    chosen = {"$namespace": ".*", "$run": ".*", "$__rate_interval": "1m"}
    for query in (query for panel in PANELS for query in panel.queries):
        text = query.text
        for variable, value in chosen.items():
            text = text.replace(variable, value)
        prometheus.query(text)  # 400 for what is no query
    for alert in alerts(MonitoringConfig(), LifecycleConfig()):
        prometheus.query(alert.expr)
    waits = prometheus.query("ALERTS")
    assert not [alert for alert in waits if alert["metric"]["alertstate"] == "firing"], waits
