"""Snapshots of the metrics as Prometheus text. Imported when somebody scrapes: a supervisor's workers never need it."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from extproc.records.metrics import FAMILIES, Snapshot


def expose(snapshot: Snapshot) -> bytes:
    """Prometheus text format (version 0.0.4), families in the order of `FAMILIES`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    return generate_latest(registry)


class _Once(Collector):
    """One snapshot's families, for one scrape."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        for family in FAMILIES.values():
            samples = self._snapshot.get(family.name, [])
            if family.kind == "histogram":
                histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                for labels, value in samples:
                    assert isinstance(value, (tuple, list))
                    histogram.add_metric(labels, _cumulative(family.bounds, value[0]), value[1])
                yield histogram
            else:
                kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                metric = kind(family.name, family.help, labels=family.labels)
                for labels, value in samples:
                    assert isinstance(value, (int, float))
                    metric.add_metric(labels, value)
                yield metric


def _cumulative(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(repr, bounds), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
