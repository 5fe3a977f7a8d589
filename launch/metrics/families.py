"""Samples as `prometheus_client` wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from zerofleet.launch.metrics.catalog import BY_NAME, METRICS, PREFIX
from zerofleet.launch.metrics.histogram import Distribution
from zerofleet.launch.metrics.reading import Sample

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_CLASSES: dict[str, type[Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def families(run: str, samples: Iterable[Sample]) -> Iterator[Metric]:
    """In the catalog's order; what has no sample is left out."""
    found: dict[str, Family] = {}
    for sample in samples:
        metric = BY_NAME[sample.name]
        family = found.get(sample.name)
        if family is None:
            make = _CLASSES[metric.kind]
            family = found[sample.name] = make(PREFIX + metric.name, metric.meaning, labels=("run", *metric.labels))
        labels, value = (run, *sample.labels), sample.value
        if isinstance(value, Distribution):
            assert isinstance(family, HistogramMetricFamily)
            family.add_metric(labels, _buckets(value), value.total)
        else:
            assert not isinstance(family, HistogramMetricFamily)
            family.add_metric(labels, value)
    yield from (found[metric.name] for metric in METRICS if metric.name in found)


def _buckets(value: Distribution) -> list[tuple[str, float]]:
    counts = zip(map(repr, value.bounds), value.cumulative, strict=True)
    return [*((bound, float(count)) for bound, count in counts), ("+Inf", float(value.count))]


class RunCollector(Collector):
    """Reads at every scrape."""

    def __init__(self, run: str, read: Callable[[], list[Sample]]) -> None:
        self._run, self._read = run, read

    def collect(self) -> Iterator[Metric]:
        return families(self._run, self._read())
