"""The figures of an extension's events, as Prometheus and OpenTelemetry get them."""

import pytest
from flask import Flask
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from ratelimit_ext import Limiter, client_ip
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.events import SettlementEvent, StorageEvent
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.metrics import opentelemetry, prometheus
from ratelimit_ext.metrics.measures import MEASURES, Measures
from ratelimit_ext.strategies.guards.block import new_block
from ratelimit_ext.strategies.guards.quota import quota_report
from tests.web.calls import serve


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(prometheus.DIRECTORY, raising=False)


def application() -> tuple[Flask, Limiter]:
    app = Flask("example")
    limiter = Limiter(client_ip, app=app, storage_uri="memory://")
    serve(
        app,
        limiter.limit("10/minute", name="pace", strategy="token-bucket"),
        limiter.limit("3/minute", name="shadow", mode="shadow"),
    )
    serve(app, limiter.limit("5/hour"), path="/unnamed")
    return app, limiter


def figures(exporter: prometheus.PrometheusExporter) -> dict[str, float]:
    """The figures of a scrape, by name and labels."""
    body, status, headers = exporter.scrape()
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def decided(limit: str, strategy: str, outcome: str) -> str:
    labels = f'limit="{limit}",outcome="{outcome}",strategy="{strategy}"'
    return f"ratelimit_decisions_total{{{labels}}}"


def test_requests_and_their_limits_are_counted() -> None:
    """By limit, strategy and outcome; a shadow is counted and denies nothing."""
    app, limiter = application()
    exporter, client = prometheus.measure(limiter), app.test_client()
    assert [client.get("/").status_code for _ in range(12)].count(429) == 2
    found = figures(exporter)
    assert found['ratelimit_requests_total{outcome="admitted"}'] == 10
    assert found['ratelimit_requests_total{outcome="limit"}'] == 2
    assert found[decided("pace", "token-bucket", "allowed")] == 10
    assert found[decided("pace", "token-bucket", "denied")] == 2
    assert found[decided("shadow", "fixed-window", "shadow")] == 9
    assert found["ratelimit_decision_seconds_count"] == 12
    assert found["ratelimit_storage_up"] == 1


def test_a_limit_that_is_nearly_used_up_is_noticed() -> None:
    """Less than a fifth of pace's ten is left after the ninth call and the tenth."""
    app, limiter = application()
    exporter, client = prometheus.measure(limiter), app.test_client()
    for _ in range(8):
        client.get("/")
    assert 'ratelimit_near_limit_total{limit="pace"}' not in figures(exporter)
    for _ in range(2):
        client.get("/")
    assert figures(exporter)['ratelimit_near_limit_total{limit="pace"}'] == 2


def test_a_limit_without_a_name_has_its_amount_as_label() -> None:
    """The same words as in headers."""
    app, limiter = application()
    exporter = prometheus.measure(limiter)
    app.test_client().get("/unnamed")
    assert figures(exporter)[decided("5-per-3600s", "fixed-window", "allowed")] == 1


def test_estimates_are_compared_with_costs() -> None:
    """A call that cost half of its estimate; dollars that were lost are shown in dollars."""
    exporter = prometheus.PrometheusExporter()
    measures = Measures(exporter)
    limit = Limit(5_000_000, 3_600_000_000, "fixed-window", unit="usd", name="budget")
    verdict = Verdict(Charge(limit, "key", 200_000), True, 1, 0, 0, 0)
    settled = Change.settle(verdict, Hold(1, 1), 100_000)
    measures(SettlementEvent((settled,), "sent", 0.001))
    measures(SettlementEvent((settled,), "lost", 0.001))
    found = figures(exporter)
    assert found['ratelimit_estimate_error_bucket{le="0.5",unit="usd"}'] == 1
    assert found['ratelimit_estimate_error_bucket{le="0.25",unit="usd"}'] == 0
    assert found['ratelimit_estimate_error_count{unit="usd"}'] == 1
    assert found['ratelimit_units_lost_total{unit="usd"}'] == 0.1
    assert found['ratelimit_settlements_total{outcome="lost"}'] == 1


def test_only_costs_are_lost_units() -> None:
    """As `lost_settlements()` counts them: a report, a block or a renewal that could not be sent
    would be out of date; a slot that was not released counts as one call."""
    exporter = prometheus.PrometheusExporter()
    slot = Charge(Limit(2, 120_000_000, "concurrency", unit="calls"), "key")
    quota = Charge(Limit(10**12, 60_000_000, "reported", unit="tokens"), "key", 500)
    block = Charge(Limit(1, 120_000_000, "block"), "key")
    verdict = Verdict(Charge(Limit(9, 1_000_000, "fixed-window"), "key", 5), True, 4, 0, 0, 7)
    out_of_date = quota_report(quota, 60, 58, 60_000_000), new_block(block, 10_000_000)
    renewal = Change.renew(verdict, Hold(2**47, 1), 3)
    refund, release = Change.adjust(verdict, -2), Change.release(slot, Hold(2**47, 1))
    lost = SettlementEvent((*out_of_date, renewal, refund, release), "lost", 0.001)
    Measures(exporter)(lost)
    found = {name: n for name, n in figures(exporter).items() if "units_lost_total" in name}
    assert found == {
        'ratelimit_units_lost_total{unit="requests"}': 2,
        'ratelimit_units_lost_total{unit="calls"}': 1,
    }


def test_outages_are_measured() -> None:
    """Whether the storage is up, how often it was not, and for how long."""
    exporter = prometheus.PrometheusExporter()
    measures = Measures(exporter)
    measures(StorageEvent(is_down=True, reason="refused", down_s=0))
    assert figures(exporter)["ratelimit_storage_up"] == 0
    measures(StorageEvent(is_down=False, reason="", down_s=2.5))
    found = figures(exporter)
    assert found["ratelimit_storage_up"] == 1
    assert found["ratelimit_storage_outages_total"] == 1
    assert found["ratelimit_storage_down_seconds_total"] == 2.5


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound, all other labels share one series."""
    monkeypatch.setattr(prometheus, "MOST_SERIES", 3)
    exporter = prometheus.PrometheusExporter()
    [requests] = [each for each in MEASURES if each.name == "requests"]
    for number in range(10):
        exporter.record(requests, (f"reason {number}",))
    found = {name: value for name, value in figures(exporter).items() if "requests_total" in name}
    assert len(found) == 4
    assert found['ratelimit_requests_total{outcome="other"}'] == 7


def test_open_telemetry_has_the_same_figures() -> None:
    """The same names and labels, by a meter of the application's."""
    app, limiter = application()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.measure(limiter, meter=provider.get_meter("test"))
    client = app.test_client()
    for _ in range(12):
        client.get("/")
    points = {
        (metric.name, *sorted(point.attributes.values())): point
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert points["ratelimit.requests", "admitted"].value == 10
    assert points["ratelimit.decisions", "denied", "pace", "token-bucket"].value == 2
    assert points["ratelimit.decision_seconds",].count == 12
    assert points["ratelimit.storage_up",].value == 1


def test_without_a_listener_nothing_is_measured() -> None:
    """An extension without a listener makes no events."""
    app, limiter = application()
    assert app.test_client().get("/").status_code == 200
    assert limiter._events.listeners == ()
