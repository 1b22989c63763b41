"""A call without Flask: what limits and ledger record, however it ends."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

import chatapp
from chatapp import catalogue
from chatapp.calls.demand import HELD_TOKENS, Demand
from chatapp.calls.disconnect import Disconnect
from chatapp.calls.throttle import Throttle
from chatapp.calls.upstream_call import CallLimits, CallRequest, UpstreamCall
from chatapp.catalogue import Model
from chatapp.catalogue.usage import Usage
from chatapp.estimates.estimate import Estimate, Estimator
from chatapp.ledger.call import Call, new_call_id
from chatapp.upstreams import Bounds, Completion, ErrorKind, Progress, Quota, UpstreamError
from chatapp.upstreams.cancellation import Stream
from chatapp.upstreams.transport import NewStream
from tests.called import called
from tests.chatapp.ledger.recording_ledger import RecordingLedger

CATALOGUE = catalogue.load()
REQUESTED, FALLBACK = (CATALOGUE.model(n, "openai") for n in ("gpt-5.4-mini", "gpt-5.4-nano"))
ESTIMATE = Estimate(input_tokens=10, output_tokens=100)
USAGE = Usage(12, 34, cached_input_tokens=8)


@dataclass
class FakeLimits:
    """Limits that record. ``spendable`` is what the call may spend in dollar limits, and ``others``
    whether calls are in flight beside it; ``fallback_wait_s`` denies the fallback."""

    spendable: int | None = None
    others: bool = False
    renewal_is_due: bool = False
    fallback_wait_s: float | None = None
    settled: list[dict[str, Any]] = field(default_factory=list)
    renewed: list[dict[str, Any]] = field(default_factory=list)
    cooled: list[float] = field(default_factory=list)
    cancelled: int = 0
    unseen: int = 0

    def admit_attempt(self) -> None:
        return None

    def admit_fallback(self) -> float | None:
        return self.fallback_wait_s

    def budget(self) -> tuple[int, bool] | None:
        return None if self.spendable is None else (self.spendable, not self.others)

    def cool_down(self, for_s: float) -> None:
        self.cooled.append(for_s)

    def report(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        """test_retry tests quotas."""

    def renew(self, *, at_once: bool = False, **costs: Any) -> None:
        self.renewed.append(costs)

    def settle(self, *, unseen: bool = False, **costs: Any) -> None:
        self.settled.append(costs)
        self.unseen += unseen

    def cancel(self) -> None:
        self.cancelled += 1


def demand(model: Model, *, may_hide_output: bool = False) -> Demand:
    price = CATALOGUE.price(model.slug, ESTIMATE.usage)
    return Demand(model, ESTIMATE, price, None, may_hide_output=may_hide_output, quota_use={})


def begin(
    limits: CallLimits,
    ledger: RecordingLedger,
    *,
    fallback: Demand | None = None,
    may_hide_output: bool = False,
    wanted: Demand | None = None,
) -> UpstreamCall:
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
    wanted = wanted or demand(REQUESTED, may_hide_output=may_hide_output)
    others = lambda: fallback, lambda: None, Throttle(), time.monotonic()
    request = CallRequest(wanted, limits, Disconnect(None), *others)
    return UpstreamCall(
        new_record,
        request,
        catalogue=CATALOGUE,
        ledger=ledger,
        estimator=Estimator(CATALOGUE),
        most_attempts=1,
    )


class FakeUpstream:
    """Attempts that fail for these models, with these errors, and succeed for all others."""

    def __init__(self, **errors: ErrorKind) -> None:
        self.errors = {name.replace("_", "-"): kind for name, kind in errors.items()}
        self.called: list[tuple[str, int | None]] = []

    def __call__(self, model: Model, bounds: Bounds) -> Completion:
        self.called.append((model.name, bounds.output_tokens))
        if kind := self.errors.get(model.slug.replace(".", "-")):
            raise UpstreamError(kind, retry_after_s=9.0)
        return Completion("hello", model.name, USAGE, "stop")


def test_a_call_begins_in_the_ledger_as_its_estimate(ledger: RecordingLedger) -> None:
    """Marked as that, although it holds more beside other calls: if its worker dies, nothing else
    is known of it."""
    begin(FakeLimits(spendable=5_000_000, others=True), ledger)
    estimate = CATALOGUE.price(REQUESTED.slug, ESTIMATE.usage)
    [begun] = ledger.begun
    assert (begun.status, begun.cost_micro_usd, begun.estimated) == ("unfinished", estimate, True)


def test_an_answer_is_settled_and_recorded_once(ledger: RecordingLedger) -> None:
    """The ledger has the estimate at first; limits and ledger have the usage at the end."""
    limits, upstream = FakeLimits(), FakeUpstream()
    call = begin(limits, ledger)
    assert ledger.begun[0].cost_micro_usd == CATALOGUE.price(REQUESTED.slug, ESTIMATE.usage)
    reply = call.run(upstream)
    for _ in range(2):
        call.finish_answer(reply.usage, generated=["hello"])
    call.fail(UpstreamError("overloaded"))
    assert limits.cancelled == 0
    [record] = ledger.finished()
    cost = CATALOGUE.price(REQUESTED.slug, USAGE)
    assert (record.status, record.cost_micro_usd, record.attempts) == ("answered", cost, 1)
    assert record.basis is None
    assert limits.settled == [
        {
            "tokens": 12 - 8 + 34,
            "input_tokens": 12,
            "output_tokens": 34,
            "usd": Decimal(cost).scaleb(-6),
            "cached_input_tokens": 8,
        }
    ]
    assert upstream.called == [(REQUESTED.name, None)]


def test_the_fallback_answers_for_an_overloaded_model(ledger: RecordingLedger) -> None:
    """The record keeps the requested name, and has the price of the model that answered."""
    limits, upstream = FakeLimits(), FakeUpstream(gpt_5_4_mini="overloaded")
    call = begin(limits, ledger, fallback=demand(FALLBACK))
    call.finish_answer(call.run(upstream).usage, generated=["hello"])
    [record] = ledger.finished()
    assert (record.model, record.slug, record.attempts) == (REQUESTED.name, FALLBACK.slug, 2)
    assert record.cost_micro_usd == CATALOGUE.price(FALLBACK.slug, USAGE)
    assert [name for name, _ in upstream.called] == [REQUESTED.name, FALLBACK.name]
    assert limits.cooled == [9.0]


def test_limits_and_ledger_begin_again_with_the_fallback(ledger: RecordingLedger) -> None:
    """If its worker dies, both have the estimate of the model that was called last."""
    limits, upstream = FakeLimits(), FakeUpstream(gpt_5_4_mini="overloaded")
    begin(limits, ledger, fallback=demand(FALLBACK)).run(upstream)
    estimate = CATALOGUE.price(FALLBACK.slug, ESTIMATE.usage)
    begun = [(call.slug, call.cost_micro_usd) for call in ledger.begun]
    assert begun[1:] == [(FALLBACK.slug, estimate)]
    assert begun[0][0] == REQUESTED.slug
    assert [costs["usd"] for costs in limits.renewed] == [Decimal(estimate).scaleb(-6)]


@pytest.mark.parametrize("denied", [False, True], ids=["none", "denied"])
def test_without_a_fallback_the_call_is_refunded(ledger: RecordingLedger, denied: bool) -> None:
    """No fallback exists, or its limits deny it: the client gets the requested model's error."""
    limits, upstream = FakeLimits(fallback_wait_s=3.0), FakeUpstream(gpt_5_4_mini="overloaded")
    call = begin(limits, ledger, fallback=demand(FALLBACK) if denied else None)
    with pytest.raises(UpstreamError):
        call.run(upstream)
    [record] = ledger.finished()
    assert (record.status, record.slug, record.usage) == (
        "overloaded",
        REQUESTED.slug,
        Usage(0, 0, tiers=()),
    )
    assert (limits.cancelled, len(upstream.called)) == (1, 1)


def test_a_timeout_is_charged_and_marks_the_budgets(ledger: RecordingLedger) -> None:
    """The upstream may bill everything that was held."""
    limits = FakeLimits()
    with pytest.raises(UpstreamError):
        begin(limits, ledger).run(FakeUpstream(gpt_5_4_mini="timeout"))
    [record] = ledger.finished()
    assert (record.status, record.estimated, limits.unseen) == ("timeout", True, 1)
    assert record.basis == "hold"
    assert (limits.cancelled, limits.settled[0]["output_tokens"]) == (0, 100)


def test_a_rejected_request_counts_without_a_cost(ledger: RecordingLedger) -> None:
    """It is the caller's mistake, so nothing but its tokens and dollars is refunded."""
    limits = FakeLimits()
    with pytest.raises(UpstreamError):
        begin(limits, ledger).run(FakeUpstream(gpt_5_4_mini="bad_request"))
    assert (limits.cancelled, limits.settled[0]["usd"], limits.unseen) == (0, 0, 0)


@pytest.mark.parametrize(
    ("stream", "status", "refunds"), [(NewStream, "unavailable", 1), (Stream, "cut_off", 0)]
)
def test_who_leaves_before_the_request_was_sent_pays_nothing(
    stream: type[Stream], status: str, refunds: int, ledger: RecordingLedger
) -> None:
    """A proxy was still connecting. If the upstream has the request, the call is charged."""

    class Silent:
        """A connection whose reads end when the client leaves."""

        close = None

        def get_extra_info(self, info: str) -> None:
            """It has no socket."""

        def read(self, max_bytes: int, timeout: float | None) -> bytes:
            call._leave()
            raise UpstreamError("unavailable")

    def attempt(model: Model, bounds: Bounds) -> Completion:
        stream(Silent()).read(1)
        raise AssertionError

    limits = FakeLimits()
    call = begin(limits, ledger)
    with pytest.raises(UpstreamError):
        call.run(attempt)
    assert ([each.status for each in ledger.finished()], limits.cancelled) == ([status], refunds)


def test_a_defect_ends_the_call(ledger: RecordingLedger) -> None:
    """Nothing was sent, so the call is refunded, and the exception is re-raised."""

    def attempt(model: Model, bounds: Bounds) -> Completion:
        raise ZeroDivisionError

    limits = FakeLimits()
    with pytest.raises(ZeroDivisionError):
        begin(limits, ledger).run(attempt)
    assert ([each.status for each in ledger.finished()], limits.cancelled) == (["unavailable"], 1)


def test_a_budget_bounds_the_answer(ledger: RecordingLedger) -> None:
    """An answer is no longer than the budget pays, and not shorter than what is held for it."""
    upstream = FakeUpstream()
    begin(FakeLimits(spendable=2_000), ledger).run(upstream)
    [(_, bound)] = upstream.called
    prompt = Usage(10, 0)
    assert bound == CATALOGUE.output_tokens_for(2_000, REQUESTED.slug, prompt)
    begin(FakeLimits(spendable=0), ledger).run(upstream)
    assert upstream.called[1][1] == ESTIMATE.output_tokens


def test_a_budget_bounds_the_fallback_by_its_price(ledger: RecordingLedger) -> None:
    """The cheaper model may write more for the same amount."""
    upstream = FakeUpstream(gpt_5_4_mini="overloaded")
    begin(FakeLimits(spendable=2_000), ledger, fallback=demand(FALLBACK)).run(upstream)
    bounds = [
        CATALOGUE.output_tokens_for(2_000, m.slug, Usage(10, 0)) for m in (REQUESTED, FALLBACK)
    ]
    assert [bound for _, bound in upstream.called] == bounds
    assert bounds[0] < bounds[1]


def test_a_call_beside_others_is_bounded_by_what_is_held(ledger: RecordingLedger) -> None:
    """The only call is as well by all that is left, and only that one may cost more unseen: what is
    held for another is charged if it times out."""
    upstream, bounds, outputs = FakeUpstream(gpt_5_4_mini="timeout"), [], []
    for others in (False, True):
        limits = FakeLimits(spendable=10_000, others=others)
        with pytest.raises(UpstreamError):
            begin(limits, ledger).run(upstream)
        bounds.append((limits.settled[0]["usd"], limits.unseen))
        outputs.append(limits.settled[0]["output_tokens"])
    paid = CATALOGUE.output_tokens_for(10_000, REQUESTED.slug, Usage(10, 0))
    assert [bound for _, bound in upstream.called] == [paid, paid]
    estimated = Decimal(CATALOGUE.price(REQUESTED.slug, ESTIMATE.usage)).scaleb(-6)
    assert bounds == [(estimated, 1), (Decimal("0.01"), 0)]
    assert outputs == [ESTIMATE.output_tokens, paid]


def test_a_call_beside_others_has_an_uncached_prompt(ledger: RecordingLedger) -> None:
    """Its answer gets what the prompt leaves at worst. If one of its budgets has less, the answer
    may still be as long as estimated: after a timeout, that and the prompt are charged."""
    cached = replace(ESTIMATE, input_tokens=10_000, cached_input_tokens=9_000)
    wanted, upstream = demand(REQUESTED)._replace(estimate=cached), FakeUpstream()
    with called(chatapp) as codes:
        begin(FakeLimits(spendable=20_000, others=True), ledger, wanted=wanted).run(upstream)
    assert Demand.claim.__code__ not in codes  # the limits have asked for it already
    paid = CATALOGUE.output_tokens_for(20_000, REQUESTED.slug, Usage(10_000, 0))
    assert upstream.called == [(REQUESTED.name, paid)]
    limits = FakeLimits(spendable=1_000, others=True)
    with pytest.raises(UpstreamError):
        begin(limits, ledger, wanted=wanted).run(FakeUpstream(gpt_5_4_mini="timeout"))
    worst = CATALOGUE.price(REQUESTED.slug, Usage(10_000, ESTIMATE.output_tokens))
    assert limits.settled[0]["usd"] == Decimal(worst).scaleb(-6)


def test_what_a_budget_holds_for_a_call(ledger: RecordingLedger) -> None:
    """Its estimate if it is the only one; beside others an uncached prompt and the estimated answer
    at least, a long answer usually, and the longest that it can have at most."""
    cached = replace(ESTIMATE, input_tokens=10_000, cached_input_tokens=9_000)
    wanted = demand(REQUESTED)._replace(estimate=cached, cost_micro_usd=77)
    prices = [
        CATALOGUE.price(REQUESTED.slug, Usage(10_000, tokens))
        for tokens in (100, HELD_TOKENS, CATALOGUE.longest_answer(REQUESTED))
    ]
    assert wanted.claim(CATALOGUE) == pytest.approx((77, *prices), abs=1)
    short = wanted._replace(bound=100).claim(CATALOGUE)
    assert short == (77, prices[0], prices[0], prices[0])
    searches = wanted._replace(estimate=replace(cached, tools=("web_search",))).claim(CATALOGUE)
    assert searches.usual > 2 * prices[1]
    assert searches.beside > 2 * prices[0]
    assert searches.most > 2 * prices[2]


@pytest.mark.parametrize("kind", ["file", "compaction", "tools"])
def test_a_call_that_nothing_bounds_claims_its_worst_cost(kind: str) -> None:
    """The model's context, and its longest answer: not all that a budget has left."""
    context = CATALOGUE.entry(REQUESTED.slug).context
    assert context is not None
    longest = CATALOGUE.longest_answer(REQUESTED)
    estimate, worst = {
        "file": (replace(ESTIMATE, input_is_known=False), Usage(context, 100)),
        "compaction": (ESTIMATE, Usage(10, longest)),
        "tools": (replace(ESTIMATE, tools=("mcp",)), Usage(10 + context, 100)),
    }[kind]
    wanted = demand(REQUESTED)._replace(estimate=estimate, is_unbounded=kind == "compaction")
    claim, cost = wanted.claim(CATALOGUE), CATALOGUE.price(REQUESTED.slug, worst)
    assert claim.alone == claim.beside == pytest.approx(cost, abs=2)
    assert claim.usual > claim.beside or kind == "compaction"
    assert claim.most == pytest.approx(
        CATALOGUE.price(REQUESTED.slug, worst._replace(output_tokens=longest)), abs=2
    )


def rounds(results: int, tokens: int) -> Progress:
    """A stream in which the model goes on after so many results."""
    progress = Progress("m", generated=["a"], runs_tools=True, rereads=results)
    progress.results = [" word"] * tokens * results
    return progress


def test_results_of_tools_end_a_call_that_its_caller_cannot_pay(ledger: RecordingLedger) -> None:
    """Each is read again after the next one."""
    tools = demand(REQUESTED)._replace(estimate=replace(ESTIMATE, tools=("mcp",)))
    call = begin(FakeLimits(spendable=40_000), ledger, wanted=tools)
    call.run(FakeUpstream())
    overspent = []
    for count in range(1, 5):
        call.note_progress(rounds(count, 10_000))
        overspent.append(call.is_overspent)
    assert overspent == [False, False, True, True]


def test_a_call_is_read_on_if_that_costs_its_client_less(ledger: RecordingLedger) -> None:
    """A whole answer as expected, against what may be billed for a call that is cut off."""
    visible, silent = Progress("m", generated=["a"]), Progress("m")
    rich = FakeLimits(spendable=10**6)
    plain = begin(rich, ledger)
    assert not plain.reads_on(visible)
    assert plain.reads_on(silent)
    assert not begin(FakeLimits(), ledger).reads_on(silent)
    bounded = demand(REQUESTED)._replace(bound=100)
    assert not begin(rich, ledger, wanted=bounded).reads_on(silent)
    cached = replace(ESTIMATE, input_tokens=100_000, cached_input_tokens=99_000)
    assert begin(rich, ledger, wanted=bounded._replace(estimate=cached)).reads_on(visible)
    file = bounded._replace(estimate=replace(ESTIMATE, input_is_known=False))
    unknown = begin(rich, ledger, wanted=file)
    assert unknown.reads_on(visible)
    assert not unknown.reads_on(replace(visible, usage=Usage(10, 1)))
    assert plain.reads_on(replace(visible, usage=Usage(10, 1), runs_tools=True))
    assert not plain.reads_on(replace(silent, usage=Usage(10, 1), usage_is_final=True))


@pytest.mark.parametrize(("leaves", "hidden"), [(True, 250 * (9 + 60 + 30)), (False, 100 * 69)])
def test_pauses_of_a_reasoning_model_are_charged(
    ledger: RecordingLedger, monkeypatch: pytest.MonkeyPatch, leaves: bool, hidden: int
) -> None:
    """Before the first output and between two. At the end only until the client left, at the
    highest speed: an upstream that stalls is not charged to a client who waits for it."""
    now = 1000.0
    monkeypatch.setattr("chatapp.calls.upstream_call.time.monotonic", lambda: now)
    call = begin(FakeLimits(), ledger, may_hide_output=True)
    call.run(FakeUpstream())
    for pause_s, pieces in [(9, 1), (0.5, 2), (0.5, 2), (59.5, 3), (0.9, 4)]:
        now += pause_s
        call.note_progress(Progress("m", generated=[" word"] * pieces))
    now += 30
    call.finish_stream(Progress("m", generated=[" word"] * 40), client_left=leaves)
    record = ledger.billed()
    assert record.usage.output_tokens == 40 + hidden


@pytest.mark.parametrize(
    ("speed", "pieces", "output", "basis"),
    [
        (40, 0, 40 * 2 + 10, "time"),
        (40, 5, 40 // 2 + 10 + 5, "time"),
        (40_000, 0, 16_384, "hold"),
        (40_000, 5, 100, "hold"),
        (None, 0, 16_384, "hold"),
        (40, 200, 200, "received"),
    ],
)
def test_a_stop_costs_what_the_time_allows(
    ledger: RecordingLedger,
    monkeypatch: pytest.MonkeyPatch,
    speed: int | None,
    pieces: int,
    output: int,
    basis: str,
) -> None:
    """At the highest speed of the model, for the time before the first output or until the stop,
    and a quarter of a second in which the provider notices it. Without a speed, what was held."""
    now = 1000.0
    monkeypatch.setattr("chatapp.calls.upstream_call.time.monotonic", lambda: now)
    wanted = demand(REQUESTED, may_hide_output=True)._replace(speed=speed)
    call = begin(FakeLimits(), ledger, wanted=wanted)
    call.run(FakeUpstream())
    progress = Progress("m", generated=[" word"] * pieces)
    now += 0.5
    call.note_progress(progress)
    now += 0.9 if pieces else 1.5
    call.finish_stream(progress, client_left=True)
    record = ledger.billed()
    assert (record.usage.output_tokens, record.basis) == (output, basis)


def test_one_answer_may_think_while_another_is_written(
    ledger: RecordingLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two answers, the whole time counts for both, however steadily words arrive."""
    now = 1000.0
    monkeypatch.setattr("chatapp.calls.upstream_call.time.monotonic", lambda: now)
    wanted = demand(REQUESTED, may_hide_output=True)
    wanted = wanted._replace(estimate=replace(ESTIMATE, choices=2))
    call = begin(FakeLimits(), ledger, wanted=wanted)
    call.run(FakeUpstream())
    progress = Progress("m", generated=[" word"] * 5)
    now += 0.5
    call.note_progress(progress)
    now += 0.75
    call.finish_stream(progress, client_left=True)
    record = ledger.billed()
    assert record.usage.output_tokens == 5 + 2 * 250 * 1.25


def test_a_long_stream_is_renewed(ledger: RecordingLedger) -> None:
    """Limits and ledger get the usage so far, before the reservation expires."""
    limits = FakeLimits(renewal_is_due=True)
    call = begin(limits, ledger)
    call.note_progress(Progress("m", generated=[" word"] * 100))
    assert limits.renewed[0]["output_tokens"] == 100
    assert (len(ledger.begun), ledger.begun[1].estimated) == (2, True)
