"""The page of metrics, and the catalog by Prometheus's conventions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.launch.metrics.test_reading import FACTS, heard, story
from tests.support.histories import Story
from zerofleet.launch.metrics.catalog import INCIDENTS, METRICS, PREFIX, series_names
from zerofleet.launch.metrics.families import families
from zerofleet.launch.metrics.reading import Reading
from zerofleet.launch.metrics.reference import render

DOCS = Path(__file__).parents[3] / "docs"
RESERVED = {"job", "instance", "namespace", "pod", "container", "endpoint", "service", "le", "quantile", "run"}
"""Labels that Prometheus and its operator set, or that every series has."""


def test_the_page_is_up_to_date():
    module = "python -m zerofleet.launch.metrics.reference"
    assert (DOCS / "metrics.md").read_text() == render(), f"{module} > docs/metrics.md"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_are_prometheuss(metric):
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|minutes|mb|gib|percent|count|sum|bucket)$", metric.name), "base units only"
    assert not RESERVED & set(metric.labels) and metric.meaning.endswith(".")
    assert (metric.kind == "histogram") == bool(metric.buckets) and list(metric.buckets) == sorted(metric.buckets)


def test_what_is_shown_is_what_the_catalog_has():
    made = story().kill().start(from_step=8).steps(2)
    shown = list(families("a", heard(made).samples(made.at)))
    kinds = {metric.name: metric.kind for metric in METRICS}
    for family in shown:
        name = family.name.removeprefix(PREFIX) + ("_total" if family.type == "counter" else "")
        assert kinds[name] == family.type
        assert all(sample.labels["run"] == "a" for sample in family.samples)
    assert {sample.name for family in shown for sample in family.samples} <= series_names()


def test_a_histogram_counts_upwards_to_all_of_them():
    made = story()
    shown = {family.name: family for family in families("a", heard(made).samples(made.at))}
    samples = shown["zerofleet_step_duration_seconds"].samples
    counts = [sample.value for sample in samples if sample.name.endswith("_bucket")]
    assert counts == sorted(counts) and counts[-1] == 10
    whole = {s.name.rpartition("_")[2]: s.value for s in samples if not s.name.endswith("_bucket")}
    assert whole == {"count": 10.0, "sum": 20.0}
    assert [s.labels["le"] for s in samples if s.name.endswith("_bucket")][-1] == "+Inf"


def test_an_incident_of_a_kind_that_nobody_knew_is_shown_too():
    made = Story().driver().start()
    made.say("incident", message="?")
    made.say("incident", message="?", **{"class": "new"})
    found = {s.labels: s.value for s in heard(made).samples(made.at) if s.name == "incidents_total"}
    assert found["other",] == 1 and found["new",] == 1 and len(found) == len(INCIDENTS) + 1


def test_before_anything_has_happened_every_count_is_there_with_nothing_in_it():
    reading = Reading(FACTS, Story().driver().drivers[0], 1000.0)
    reading.begin()
    shown = {sample.name: sample.value for sample in reading.samples(2000.0)}
    counters = {metric.name for metric in METRICS if metric.kind == "counter"}
    assert counters <= shown.keys() and all(shown[name] == 0 for name in counters)
