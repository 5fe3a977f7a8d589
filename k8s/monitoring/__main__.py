"""`python -m zerofleet.k8s.monitoring rules|dashboard`: the rule file and the dashboard for a Prometheus and a Grafana without operators."""

from __future__ import annotations

import argparse
import sys

from zerofleet.k8s.monitoring.alerts import rule_groups
from zerofleet.k8s.monitoring.dashboard import dashboard_json
from zerofleet.k8s.profile import LifecycleConfig, MonitoringConfig
from zerofleet.k8s.to_yaml import to_yaml


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m zerofleet.k8s.monitoring", description=__doc__)
    parser.add_argument("what", choices=("rules", "dashboard"))
    is_rules = parser.parse_args(arguments).what == "rules"
    rules = rule_groups(MonitoringConfig(), LifecycleConfig())
    sys.stdout.write(to_yaml([rules]) if is_rules else dashboard_json())


if __name__ == "__main__":
    main()
