"""Figures for OpenTelemetry: ``pip install ratelimit-ext[opentelemetry]``, and a meter provider of
the application's own, which exports them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry import metrics

from ratelimit_ext.metrics.measures import MEASURES, Measure, Measures

NAME: Final = "ratelimit_ext"


class OpenTelemetryExporter:
    """An :class:`~ratelimit_ext.metrics.measures.Exporter` over a meter."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._instruments = {measure: _instrument(measure, meter) for measure in MEASURES}

    def record(self, measure: Measure, labels: Sequence[str], figure: float = 1) -> None:
        self._instruments[measure](figure, dict(zip(measure.labels, labels, strict=True)))


def measure(
    limiter: Any, *, meter: metrics.Meter | None = None, identity_label: Callable[[str], str] = str
) -> None:
    """Measure the events of an extension from now on, by the meter of the global provider or by
    ``meter``. ``identity_label`` bounds the attributes of identities that clients can invent."""
    exporter = OpenTelemetryExporter(meter or metrics.get_meter(NAME))
    limiter.listen(Measures(exporter, identity_label))


def _instrument(measure: Measure, meter: metrics.Meter) -> Callable[..., None]:
    """Return what adds a figure."""
    name, meaning = f"ratelimit.{measure.name}", measure.meaning
    if measure.kind == "counter":
        return meter.create_counter(name, description=meaning).add
    if measure.kind == "gauge":
        return meter.create_gauge(name, description=meaning).set
    return meter.create_histogram(
        name, description=meaning, explicit_bucket_boundaries_advisory=list(measure.buckets)
    ).record
