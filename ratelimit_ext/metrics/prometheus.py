"""Figures for Prometheus, through prometheus-client.

With several processes, set ``PROMETHEUS_MULTIPROC_DIR`` before they start, to a directory that is
empty then: each process keeps its figures there, and any of them answers for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from ratelimit_ext.metrics.measures import MEASURES, Measure, Measures

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
PREFIX: Final = "ratelimit"
MOST_SERIES: Final = 10_000
OTHER: Final = "other"
#: The client library's methods that take a figure.
ADD: Final = {"counter": "inc", "sum": "inc", "gauge": "set", "histogram": "observe"}


class PrometheusExporter:
    """An :class:`~ratelimit_ext.metrics.measures.Exporter` with a registry, its own or a given
    one. Beyond :data:`MOST_SERIES` series, labels are ``other``."""

    def __init__(
        self,
        measures: Sequence[Measure] = MEASURES,
        *,
        prefix: str = PREFIX,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self._metrics = {measure: _metric(measure, prefix, self.registry) for measure in measures}
        #: What adds a figure, by the measure and its labels; looking a child up there costs the
        #: client library a lock.
        self._children: dict[tuple[Measure, Sequence[str]], Callable[[float], None]] = {}

    def record(self, measure: Measure, labels: Sequence[str], figure: float = 1) -> None:
        key = measure, labels
        add_to_child = self._children.get(key)
        if add_to_child is None:
            metric, is_full = self._metrics[measure], len(self._children) >= MOST_SERIES
            if labels:
                metric = metric.labels(*([OTHER] * len(labels) if is_full else labels))
            add_to_child = getattr(metric, ADD[measure.kind])
            if not is_full:
                self._children[key] = add_to_child
        add_to_child(figure)

    def scrape(self) -> tuple[bytes, int, dict[str, str]]:
        """Return the answer of a view: all figures of all processes."""
        registry = self.registry
        if os.environ.get(DIRECTORY):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), 200, {"Content-Type": CONTENT_TYPE_LATEST}


def measure(limiter: Any, *, identity_label: Callable[[str], str] = str) -> PrometheusExporter:
    """Measure the events of an extension from now on. ``identity_label`` bounds the labels of
    identities that clients can invent."""
    exporter = PrometheusExporter()
    limiter.listen(Measures(exporter, identity_label))
    return exporter


def _metric(measure: Measure, prefix: str, registry: CollectorRegistry) -> Any:
    args = measure.name, measure.meaning, measure.labels
    if measure.kind == "counter":
        return Counter(*args, namespace=prefix, registry=registry)
    if measure.kind in ("gauge", "sum"):
        # What any process knows last is true of all of them, unless each has its part.
        mode: Any = "livesum" if measure.kind == "sum" else "livemostrecent"
        return Gauge(*args, namespace=prefix, registry=registry, multiprocess_mode=mode)
    return Histogram(*args, namespace=prefix, registry=registry, buckets=measure.buckets)
