"""What chatapp measures beside its limits: calls, tokens and dollars by model, and retries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from flask import has_request_context, request

from chatapp.ledger.call import Call
from chatapp.web.current_request import current_request
from ratelimit_ext import DecisionEvent, Event, Limiter
from ratelimit_ext.metrics.measures import Measure

MICRO: Final = 1_000_000
#: Of both providers' SDKs: 0 at the first attempt.
RETRY_COUNT: Final = "x-stainless-retry-count"

CALLS: Final = Measure("calls", "Calls to providers, by outcome", ("model", "status"))
TOKENS: Final = Measure("tokens", "Tokens as the providers bill them", ("model", "direction"))
DOLLARS: Final = Measure("cost_usd", "What calls cost, in dollars", ("model",))
IN_FLIGHT: Final = Measure("calls_in_flight", "Calls to providers in flight", (), "sum")
RETRIES: Final = Measure("client_retries", "Requests that are an SDK's further attempt")
MEASURES: Final = (CALLS, TOKENS, DOLLARS, IN_FLIGHT, RETRIES)


class Metrics:
    """The figures of one application."""

    def __init__(self, limiter: Limiter) -> None:
        from ratelimit_ext.metrics import prometheus  # noqa: PLC0415 - only if there are metrics

        limits = prometheus.measure(limiter, identity_label=_quota_label)
        self._exporter = prometheus.PrometheusExporter(
            MEASURES, prefix="chatapp", registry=limits.registry
        )
        self.scrape: Callable[[], tuple[bytes, int, dict[str, str]]] = limits.scrape
        self._in_flight: set[str] = set()
        limiter.listen(self._count_retries)

    def count_call(self, call: Call) -> None:
        exporter, model, ids = self._exporter, call.slug, self._in_flight
        if (runs := call.status == "unfinished") != (call.id in ids):  # it begins or ends
            exporter.record(IN_FLIGHT, (), 1 if runs else -1)
            ids ^= {call.id}
        if runs:
            return
        exporter.record(CALLS, (model, call.status))
        exporter.record(DOLLARS, (model,), call.cost_micro_usd / MICRO)
        if call.usage is not None:
            exporter.record(TOKENS, (model, "input"), call.usage.input_tokens)
            exporter.record(TOKENS, (model, "output"), call.usage.output_tokens)

    def _count_retries(self, event: Event) -> None:
        if not isinstance(event, DecisionEvent) or event.again or not has_request_context():
            return
        if request.headers.get(RETRY_COUNT, "0") != "0":
            self._exporter.record(RETRIES, ())


def _quota_label(identity: str) -> str:
    """Return the label of a quota. Unlisted models, whose names clients invent, share one."""
    wanted = current_request().model_request
    if wanted is None:
        return identity
    model = wanted.turn.model
    name = f"{model.upstream}/"
    return identity.replace(name + model.family, name + model.slug, 1)
