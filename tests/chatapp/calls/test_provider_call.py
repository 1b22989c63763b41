"""A call without Flask: what limits and ledger record, however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from chatapp import catalogue
from chatapp.calls.disconnect import Disconnect
from chatapp.calls.provider_call import CallRequest, Demand, ProviderCall
from chatapp.catalogue import Model
from chatapp.conversation import Reply
from chatapp.estimates.estimate import Estimate, estimator_for
from chatapp.ledger.call import Call, new_call_id
from chatapp.providers import ErrorKind, Progress, ProviderError, Quota, Usage
from tests.chatapp.ledger.recording_ledger import RecordingLedger

CATALOGUE = catalogue.load()
REQUESTED, FALLBACK = (CATALOGUE.model(n, "openai") for n in ("gpt-5.4-mini", "gpt-5.4-nano"))
ESTIMATE = Estimate(input_tokens=10, output_tokens=100)
USAGE = Usage(12, 34, cached_input_tokens=8)


@dataclass
class FakeLimits:
    """Limits that record. ``budget`` is what dollar limits have left; ``fallback_wait_s`` denies
    the fallback."""

    budget: int | None = None
    was_not_billed: bool = False
    renewal_is_due: bool = False
    fallback_wait_s: float | None = None
    held: list[Estimate] = field(default_factory=list)
    settled: list[dict[str, Any]] = field(default_factory=list)
    renewed: list[dict[str, Any]] = field(default_factory=list)
    cooled: list[float] = field(default_factory=list)
    cancelled: int = 0
    unbilled: int = 0

    def admit_attempt(self) -> None:
        return None

    def admit_fallback(self) -> float | None:
        return self.fallback_wait_s

    def hold(self, estimate: Estimate) -> bool:
        self.held.append(estimate)
        return True

    def budget_micro_usd(self) -> int | None:
        return self.budget

    def calls_in_flight(self) -> int:
        return 1

    def cool_down(self, for_s: float) -> None:
        self.cooled.append(for_s)

    def report(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        """test_retry tests quotas."""

    def note_unbilled(self) -> None:
        self.unbilled += 1

    def renew(self, **costs: Any) -> None:
        self.renewed.append(costs)

    def settle(self, **costs: Any) -> None:
        self.settled.append(costs)

    def cancel(self) -> None:
        self.cancelled += 1


def demand(model: Model, *, may_hide_output: bool = False) -> Demand:
    return Demand(model, ESTIMATE, bound=None, may_hide_output=may_hide_output, quota_use={})


def begin(
    limits: FakeLimits,
    ledger: RecordingLedger,
    *,
    fallback: Demand | None = None,
    may_hide_output: bool = False,
) -> ProviderCall:
    new_record = partial(
        Call,
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user="user:alice",
        key_id=None,
        plan="starter",
        endpoint="chat.chat",
        model=REQUESTED.name,
    )
    wanted = demand(REQUESTED, may_hide_output=may_hide_output)
    request = CallRequest(wanted, limits, Disconnect(None), lambda: fallback)
    return ProviderCall(
        new_record,
        request,
        catalogue=CATALOGUE,
        ledger=ledger,
        estimator=estimator_for(None, CATALOGUE),
        most_attempts=1,
    )


class Provider:
    """Attempts that fail for these models, with these errors, and succeed for all others."""

    def __init__(self, **errors: ErrorKind) -> None:
        self.errors = {name.replace("_", "-"): kind for name, kind in errors.items()}
        self.called: list[tuple[str, int | None]] = []

    def __call__(self, model: Model, most: int | None) -> Reply:
        self.called.append((model.name, most))
        if kind := self.errors.get(model.slug.replace(".", "-")):
            raise ProviderError("openai", kind, retry_after_s=9.0)
        return Reply("hello", model.name, USAGE)


def test_an_answer_is_settled_and_recorded_once(ledger: RecordingLedger) -> None:
    """The ledger has the estimate at first; limits and ledger have the usage at the end."""
    limits, provider = FakeLimits(), Provider()
    call = begin(limits, ledger)
    assert ledger.begun[0].cost_micro_usd == CATALOGUE.price(REQUESTED.slug, ESTIMATE.usage)
    reply = call.run(provider)
    for _ in range(2):
        call.finish_answer(reply.usage, output_bytes=5)
    [record] = ledger.finished()
    cost = CATALOGUE.price(REQUESTED.slug, USAGE)
    assert (record.status, record.cost_micro_usd, record.attempts) == ("answered", cost, 1)
    assert limits.settled == [
        {
            "tokens": 12 - 8 + 34,
            "input_tokens": 12,
            "output_tokens": 34,
            "usd": Decimal(cost).scaleb(-6),
            "cached_input_tokens": 8,
        }
    ]
    assert provider.called == [(REQUESTED.name, None)]


def test_the_fallback_answers_for_an_overloaded_model(ledger: RecordingLedger) -> None:
    """The record keeps the requested name, and has the price of the model that answered."""
    limits, provider = FakeLimits(), Provider(gpt_5_4_mini="overloaded")
    call = begin(limits, ledger, fallback=demand(FALLBACK))
    call.finish_answer(call.run(provider).usage, output_bytes=5)
    [record] = ledger.finished()
    assert (record.model, record.slug, record.attempts) == (REQUESTED.name, FALLBACK.slug, 2)
    assert record.cost_micro_usd == CATALOGUE.price(FALLBACK.slug, USAGE)
    assert [name for name, _ in provider.called] == [REQUESTED.name, FALLBACK.name]
    assert limits.cooled == [9.0]


@pytest.mark.parametrize("denied", [False, True], ids=["none", "denied"])
def test_without_a_fallback_the_call_is_refunded(ledger: RecordingLedger, denied: bool) -> None:
    """No fallback exists, or its limits deny it: the client gets the requested model's error."""
    limits, provider = FakeLimits(fallback_wait_s=3.0), Provider(gpt_5_4_mini="overloaded")
    call = begin(limits, ledger, fallback=demand(FALLBACK) if denied else None)
    with pytest.raises(ProviderError):
        call.run(provider)
    [record] = ledger.finished()
    assert (record.status, record.slug, record.usage) == (
        "overloaded",
        REQUESTED.slug,
        Usage(0, 0, tiers=()),
    )
    assert (limits.cancelled, len(provider.called)) == (1, 1)


def test_a_timeout_is_charged_and_makes_the_caller_unbilled(ledger: RecordingLedger) -> None:
    """The provider may bill everything that was held."""
    limits = FakeLimits()
    with pytest.raises(ProviderError):
        begin(limits, ledger).run(Provider(gpt_5_4_mini="timeout"))
    [record] = ledger.finished()
    assert (record.status, record.estimated, limits.unbilled) == ("timeout", True, 1)
    assert (limits.cancelled, limits.settled[0]["output_tokens"]) == (0, 100)


def test_a_defect_ends_the_call(ledger: RecordingLedger) -> None:
    """Nothing was sent, so the call is refunded, and the exception is re-raised."""

    def attempt(model: Model, most: int | None) -> Reply:
        raise ZeroDivisionError

    limits = FakeLimits()
    with pytest.raises(ZeroDivisionError):
        begin(limits, ledger).run(attempt)
    assert ([each.status for each in ledger.finished()], limits.cancelled) == (["unavailable"], 1)


def test_a_budget_bounds_the_answer(ledger: RecordingLedger) -> None:
    """An answer is no longer than the budget pays, and not shorter than what is held for it."""
    provider = Provider()
    begin(FakeLimits(budget=2_000), ledger).run(provider)
    [(_, bound)] = provider.called
    prompt = Usage(10, 0)
    assert bound == CATALOGUE.output_tokens_for(2_000, REQUESTED.slug, prompt)
    begin(FakeLimits(budget=0), ledger).run(provider)
    assert provider.called[1][1] == ESTIMATE.output_tokens


def test_a_caller_with_unbilled_calls_has_more_held(ledger: RecordingLedger) -> None:
    """Up to half of the budget, and the answer is bounded by it."""
    limits, provider = FakeLimits(budget=10_000, was_not_billed=True), Provider()
    begin(limits, ledger).run(provider)
    [held] = limits.held
    half = CATALOGUE.output_tokens_for(5_000, REQUESTED.slug, Usage(10, 0))
    assert (held.output_tokens, provider.called[0][1]) == (half, half)


@pytest.mark.parametrize(("leaves", "silent_s"), [(True, 9 + 60 + 30), (False, 9 + 60)])
def test_pauses_of_a_reasoning_model_are_charged(
    ledger: RecordingLedger, monkeypatch: pytest.MonkeyPatch, leaves: bool, silent_s: int
) -> None:
    """Before the first output and between two. At the end only until the client left: a provider
    that stalls is not charged to a client who waits for it."""
    now = 1000.0
    monkeypatch.setattr("chatapp.calls.provider_call.time.monotonic", lambda: now)
    call = begin(FakeLimits(), ledger, may_hide_output=True)
    call.run(Provider())
    for pause_s, output_bytes in [(9, 30), (0.5, 60), (0.5, 60), (59.5, 90), (0.9, 120)]:
        now += pause_s
        call.note_progress(Progress("m", output_bytes=output_bytes))
    now += 30
    call.finish_stream(Progress("m", output_bytes=120), client_left=leaves)
    [record] = ledger.finished()
    assert record.usage is not None
    assert record.usage.output_tokens == 40 + 100 * silent_s


def test_a_long_stream_is_renewed(ledger: RecordingLedger) -> None:
    """Limits and ledger get the usage so far, before the reservation expires."""
    limits = FakeLimits(renewal_is_due=True)
    call = begin(limits, ledger)
    call.note_progress(Progress("m", output_bytes=300))
    assert limits.renewed[0]["output_tokens"] == 100
    assert (len(ledger.begun), ledger.begun[1].estimated) == (2, True)
