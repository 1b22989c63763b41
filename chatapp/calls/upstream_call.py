"""One call of an upstream: recorded in the ledger when it begins, and once when it ends.

Limits, ledger and estimates learn the real usage of a call from `UpstreamCall` alone. Every call
ends there once: plain or streamed, answered, failed or abandoned by its client, with all attempts
at the requested model and at its fallback.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, NamedTuple, Protocol

from chatapp.calls.demand import HELD_TOKENS, Demand
from chatapp.calls.disconnect import Disconnect
from chatapp.calls.retry import REFUSED_FOR_LOAD, RETRYABLE, A, AttemptLimits, Retry
from chatapp.calls.throttle import Throttle
from chatapp.calls.usage import (
    MOST_TOKENS_PER_S,
    TOKENS_PER_S,
    CallUsage,
    Meter,
    Received,
    answer_usage,
    stream_usage,
    usage_so_far,
    usage_without_answer,
)
from chatapp.catalogue import Catalogue, Model
from chatapp.catalogue.usage import Usage
from chatapp.estimates.estimate import Estimator
from chatapp.ledger.call import Call, Status
from chatapp.ledger.writer import BackgroundLedger
from chatapp.traces import UNTRACED, Traces
from chatapp.traces import Attempt as Span
from chatapp.upstreams import Bounds, Progress, UpstreamError
from chatapp.upstreams.cancellation import Wait

#: A connection that was idle for too long breaks at once; one that breaks later had the request.
STALE_S: Final = 1.0
#: Shorter pauses between two outputs are the usual pace of a model.
PAUSE_S: Final = 1.0
#: How long a provider may go on after a disconnect, at the highest speed.
NOTICE_S: Final = 0.25
#: How often a stream that goes on looks whether its reservation is to be renewed.
LOOK_S: Final = 0.05
#: What reading on has to save: a tenth of a cent.
WORTH_MICRO_USD: Final = 1_000
#: How long an answer is read to its end for a client that has left.
LEFT_S: Final = 60.0
#: How long a provider that is disconnected may take to send what it has billed until then.
OVERSPENT_S: Final = 2.0

#: Makes one attempt: at that model, within these bounds.
Attempt = Callable[[Model, Bounds], A]


class CallLimits(AttemptLimits, Protocol):
    """The limits of one request. Those that follow the call may be used after the request."""

    @property
    def renewal_is_due(self) -> bool:
        """Whether the reservation must be renewed before it expires."""

    def admit_fallback(self) -> float | None:
        """Charge the limits of the fallback model. Returns the wait in seconds if denied."""

    def budget(self) -> tuple[int, bool] | None:
        """Return what the call may cost in micro-dollars, and whether it is the only call in flight
        of each of its budgets, and may cost more than they hold; None without a budget."""

    def renew(self, *, at_once: bool = False, **costs: Any) -> None:
        """Keep at least these costs reserved, by unit; ``at_once``: also if it is not due."""

    def settle(self, *, unseen: bool = False, **costs: Any) -> None:
        """Correct the reservation to these costs, by unit. ``unseen``: more may be billed."""

    def cancel(self) -> None:
        """Refund the whole reservation."""


class CallRequest(NamedTuple):
    """A request, as far as its call needs it.

    ``fallback`` switches the request to its fallback model, and returns None if it has none.
    ``other_key`` switches it to another key of the upstream, and returns the model with that key,
    or None if none is left. ``throttle`` is that of all calls whose upstreams have the same load.
    ``began_s`` is when the request came, by the monotonic clock.
    """

    demand: Demand
    limits: CallLimits
    disconnect: Disconnect
    fallback: Callable[[], Demand | None]
    other_key: Callable[[], Model | None]
    throttle: Throttle
    began_s: float


class UpstreamCall:
    """A call that has begun: `run` makes it. The first of `finish_answer`, `finish_stream` and
    `fail` ends it.

    ``new_record`` makes the Call from its estimate.
    """

    def __init__(
        self,
        new_record: Callable[..., Call],
        request: CallRequest,
        *,
        catalogue: Catalogue,
        ledger: BackgroundLedger,
        estimator: Estimator,
        most_attempts: int,
        traces: Traces | None = None,
    ) -> None:
        self._demand = request.demand
        self._traces = traces
        #: Of the last attempt.
        self._span: Span | None = None
        self._limits = request.limits
        self._fallback = request.fallback
        self._other_key = request.other_key
        self._throttle = request.throttle
        self._began_s = request.began_s
        #: How long the answers of attempts took to begin.
        self.first_bytes_s: list[float] = []
        #: After the client's disconnect the upstream is not called any more.
        self.disconnect = request.disconnect
        self._catalogue = catalogue
        self._ledger = ledger
        self._estimator = estimator
        self._retry = Retry(
            request.limits,
            quota_use=request.demand.quota_use,
            most_attempts=most_attempts,
            sleep=request.disconnect.wait,
        )
        #: When the upstream was asked; when the last output came, in how many parts by then, and
        #: the pauses so far.
        self._asked_at = self._heard_at = time.monotonic()
        self._first_at = self._asked_at
        self._heard = 0
        self._silent_s = 0.0
        #: When to look next whether the reservation is to be renewed.
        self._look_at = 0.0
        #: Whether the tools of the provider have used up what the caller may spend.
        self.is_overspent = False
        self._metered: object = None
        self._timer: threading.Timer | None = None
        self._bound_to_budget()
        self._new_record = new_record
        self.record = self._row(self._demand.cost_micro_usd)
        self._lock = threading.Lock()
        self._is_over = False
        self._wait = Wait()
        ledger.begin(self.record)

    @property
    def model(self) -> Model:
        return self._demand.model

    def run(self, attempt: Attempt[A]) -> A:
        """Return the answer, within the bounded attempts, of the requested model or else of its
        fallback.

        Otherwise the call has failed, and the UpstreamError is the requested model's.
        """
        self.disconnect.on_disconnect(self._leave)
        try:
            with self._wait:
                return self._run(attempt)
        except UpstreamError:
            raise  # the call has ended already
        except Exception as error:
            # A defect of this application: the answer is unknown, and the call must not stay open.
            kind: Any = "malformed" if self._wait.was_asked else "unavailable"
            self.fail(UpstreamError(kind, message=repr(error)))
            raise

    def _leave(self) -> None:
        """The client has disconnected, and there is no answer yet."""
        if self.reads_on(Progress(self.model.name)):
            self.end_later(self._wait.end)
        else:
            self._wait.end()

    def end_later(self, end: Callable[[], None]) -> None:
        """Call this if the answer has not ended in LEFT_S, or soon if it costs more than the caller
        may spend; once each."""
        if self._timer is None or (self.is_overspent and self._timer.interval > OVERSPENT_S):
            if self._timer is not None:
                self._timer.cancel()
            after_s = OVERSPENT_S if self.is_overspent else LEFT_S
            self._timer = threading.Timer(after_s, end)
            self._timer.daemon = True
            self._timer.start()

    def _run(self, attempt: Attempt[A]) -> A:
        try:
            return self._retry.run(lambda: self._attempt(attempt), self._take_other_key)
        except UpstreamError as error:
            if not self._switch_to_fallback(error):
                self.fail(error)
                raise
            try:
                return self._retry.run_once(lambda: self._attempt(attempt), self._take_other_key)
            except UpstreamError as second:
                self.fail(second)
                raise error from second

    def _attempt(self, attempt: Attempt[A]) -> A:
        if self.disconnect.has_happened:
            raise UpstreamError("unavailable", message="client disconnected")
        if not self._throttle.admits(self._demand.model.quota_identity):
            raise UpstreamError("overloaded", message="not called: throttled")
        asked_at = self._asked_at = self._heard_at = time.monotonic()
        self._wait.was_asked = False
        try:
            with UNTRACED if self._traces is None else self._traced(self._traces):
                answer = attempt(self._demand.model, self._bounds)
        except UpstreamError as error:
            waited_s = time.monotonic() - asked_at
            is_cut = error.kind == "unavailable" and error.status is None and self._wait.was_asked
            if is_cut and waited_s > STALE_S and not self._wait.hung_up:
                error.kind = "timeout"  # the provider had the request, and may bill it
            self._note_refusal(error)
            if self._span is not None:
                self._span.fail(error.kind)
            raise
        self.first_bytes_s.append(time.monotonic() - asked_at)
        return answer

    def _traced(self, traces: Traces) -> AbstractContextManager[Any]:
        if self._span is not None:
            self._span.end()
        self._span = traces.attempt(self.model, self._retry.attempts - 1)
        return self._span.active()

    def _note_refusal(self, error: UpstreamError) -> None:
        if error.kind in REFUSED_FOR_LOAD and error.retry_after_s is None:
            self._throttle.note_refusal(self.model.quota_identity)

    def _take_other_key(self) -> bool:
        model = None if self.disconnect.has_happened else self._other_key()
        if model is None:
            return False
        self._demand = self._demand._replace(model=model)
        return True

    def _bound_to_budget(self) -> None:
        """Bound the call by what its budgets hold for it. The only call in flight may use all that
        is left: an excess is debt."""
        estimate, model = self._demand.estimate, self._demand.model
        slug = model.slug
        self._meter: Meter | None = None
        self._bounds = Bounds()
        self._unseen_tokens = estimate.output_tokens
        #: What the call may spend; None without a budget.
        self._spendable: int | None = None
        #: Whether it may spend more than is held.
        self._is_alone = True
        budget = self._limits.budget()
        if budget is None:
            return
        may_spend, self._is_alone = budget
        self._spendable = may_spend
        prompt = estimate.usage._replace(output_tokens=0)
        if not self._is_alone:
            prompt = self._demand.prompt(self._catalogue)
        tool_uses = result_tokens = None
        if estimate.tools:
            pot = may_spend // 2
            uncached = prompt._replace(cached_input_tokens=0, tool_calls={})
            tool_uses, result_tokens = self._catalogue.tools_for(
                pot, slug, uncached, estimate.tools
            )
            if not self._is_alone:
                may_spend -= pot
        paid = self._catalogue.output_tokens_for(may_spend, slug, prompt)
        paid = max(paid, estimate.output_tokens)
        if not self._is_alone:
            self._unseen_tokens = min(paid, self._longest())
        most = self._catalogue.bound(model, self._demand.bound, paid // estimate.choices)
        self._bounds = Bounds(most, tool_uses, result_tokens)

    def _longest(self) -> int:
        return self._demand.longest(self._catalogue, self._bounds.output_tokens)

    def _switch_to_fallback(self, error: UpstreamError) -> bool:
        """Call the fallback from now on; False if it cannot be called, or could not help. The
        requested model has used nothing."""
        if error.kind not in RETRYABLE or self.disconnect.has_happened:
            return False
        demand = self._fallback()
        if demand is None or self._limits.admit_fallback() is not None:
            return False
        # Another tokenizer and other answers: the estimate is another.
        self._demand = demand
        self._retry.quota_use = demand.quota_use
        self._bound_to_budget()
        self.record = self._row(demand.cost_micro_usd)
        # If this worker dies, limits and ledger have the estimate of the fallback.
        estimate = _costs(demand.estimate.usage, self.record.cost_micro_usd)
        self._limits.renew(at_once=True, **estimate)
        self._ledger.begin(self.record)
        return True

    def _row(self, cost_micro_usd: int, *, estimated: bool = True, **outcome: Any) -> Call:
        """Return the row of the call, with its ``outcome`` as far as it is known."""
        model, estimate = self._demand.model, self._demand.estimate
        return self._new_record(
            slug=model.slug,
            provider=model.upstream,
            estimated_input_tokens=estimate.input_tokens,
            estimated_output_tokens=estimate.output_tokens,
            cost_micro_usd=cost_micro_usd,
            estimated=estimated,
            **outcome,
        )

    def note_error(self, error: UpstreamError) -> None:
        """The stream broke off with this error; `finish_stream` ends the call."""
        self._note_refusal(error)
        self._retry.note(error, asked_at=time.monotonic())

    def note_progress(self, progress: Progress) -> None:
        """The stream goes on: renew what is reserved before it expires, and see whether the results
        of tools cost more than the caller may spend."""
        now = time.monotonic()
        if len(progress.generated) > self._heard:
            if not self._heard:
                self._first_at = now
            self._silent_s += self._pause_s(now)
            self._heard, self._heard_at = len(progress.generated), now
        if not progress.runs_tools and now < self._look_at:
            return
        self._look_at = now + LOOK_S
        read = progress.rereads, progress.has_result, len(progress.results)
        has_read = progress.runs_tools and read != self._metered
        if not (has_read or self._limits.renewal_is_due):
            return
        self._metered = read
        received = self._count(progress)
        usage = usage_so_far(
            progress, received, self._demand.estimate.usage, output_tokens=received.output_tokens
        )
        cost = self._catalogue.price(self.record.slug, usage)
        self.is_overspent = self._spendable is not None and cost > self._spendable
        if self._limits.renewal_is_due:
            self._limits.renew(**_costs(usage, cost))
            # If this worker dies, the ledger knows what the limits know.
            self._ledger.begin(self._row(cost, usage=usage))

    def _pause_s(self, now: float) -> float:
        """Return how long the upstream has sent no output by now, if that is unusual."""
        pause_s = now - self._heard_at
        return pause_s if pause_s > PAUSE_S else 0.0

    def reads_on(self, progress: Progress) -> bool:
        """Return whether the call goes on for its bill although its client has left: then a whole
        answer is expected to cost the client less than what may be billed if it is cut off."""
        if self._spendable is None or progress.usage_is_final or progress.failed:
            return False
        if progress.runs_tools or (progress.usage is None and self._demand.is_open):
            return True
        estimate, slug = self._demand.estimate, self.model.slug
        received = self._count(progress)
        output = max(received.output_tokens, estimate.output_tokens)
        whole = usage_so_far(progress, received, estimate.usage, output_tokens=output)
        # Not by the time that has passed: whether the provider has noticed is not known either.
        cut_off = self._used(progress, left=True, by_time=False).usage
        saved = self._catalogue.price(slug, cut_off) - self._catalogue.price(slug, whole)
        return saved > WORTH_MICRO_USD

    def _count(self, progress: Progress) -> Received:
        self._meter = self._meter or Meter(self.model)
        return self._meter.count(progress)

    def _used(self, progress: Progress, *, left: bool, by_time: bool = True) -> CallUsage:
        """Return what a stream may be billed that has ended. ``by_time``: no more than it can have
        generated by now."""
        now, choices, highest = time.monotonic(), self._demand.estimate.choices, self._demand.speed
        silent_s = self._silent_s + (self._pause_s(now) if left else 0.0)
        if choices > 1:  # one may write while others reason
            silent_s = now - self._asked_at
        # The wait for the first output counts, however short it was.
        first_s = (self._first_at if self._heard else now) - self._asked_at
        longest_s = silent_s + (first_s if first_s <= PAUSE_S else 0.0) + NOTICE_S
        speed, most, unseen = TOKENS_PER_S, self._longest(), self._unseen_tokens
        if left:
            speed = highest or MOST_TOKENS_PER_S
            unseen = max(unseen, min(most, HELD_TOKENS * choices))
        is_bounded = by_time and highest is not None and (left or progress.generated)
        return stream_usage(
            progress,
            self._count(progress),
            self._demand.estimate,
            hidden=int(choices * silent_s * speed) if self._demand.may_hide_output else None,
            possible=math.ceil(choices * longest_s * (highest or 0)) if is_bounded else None,
            unseen_tokens=unseen,
            most=most,
            left=left,
        )

    def finish_answer(self, usage: Usage | None, *, generated: Sequence[str]) -> None:
        """The answer is whole, with this usage, or these texts if the provider reports none."""
        used = answer_usage(usage, self._demand.estimate, self._demand.model, generated=generated)
        self._finish(used, "answered", client_left=self.disconnect.has_happened)

    def finish_stream(self, progress: Progress, *, client_left: bool) -> None:
        used = self._used(progress, left=client_left)
        whole = progress.finish_reason is not None
        self._finish(used, "answered" if whole else "cut_off", client_left=client_left)

    def fail(self, error: UpstreamError) -> None:
        """There is no answer.

        What may have been billed is charged: after a timeout, an unreadable answer, or a disconnect
        of the client while the provider worked. A request that the provider rejects counts, without
        tokens and dollars. Any other failure is not the caller's: everything is refunded.
        """
        if self._wait.hung_up and self._wait.was_asked and error.status in (None, 200):
            self.finish_stream(Progress(self.model.name), client_left=True)
            return
        may_be_billed = self._used(Progress(self.model.name), left=self.disconnect.has_happened)
        output_tokens = may_be_billed.usage.output_tokens
        estimate = replace(self._demand.estimate, output_tokens=output_tokens)
        used = replace(usage_without_answer(error, estimate), basis=may_be_billed.basis)
        is_free = not (used.estimated or error.is_callers)
        left = self.disconnect.has_happened
        self._finish(used, error.kind, client_left=left, is_free=is_free)

    def _finish(
        self, used: CallUsage, status: Status, *, client_left: bool, is_free: bool = False
    ) -> None:
        """Settle and record the call, once. May run after the request, without its context."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        self.disconnect.close()
        if self._timer is not None:
            self._timer.cancel()
        usage, estimate = used.usage, self._demand.estimate
        if usage.tiers is None:  # not reported: as requested
            usage = usage._replace(tiers=estimate.tiers)
        cost_micro_usd = self._catalogue.price(self.record.slug, usage)
        if used.unseen and not self._is_alone:
            # One of its budgets may have less, of which it is the only call.
            beside = self._demand.claim(self._catalogue).beside
            cost_micro_usd = max(cost_micro_usd, self._spendable or 0, beside)
        self.record = self._row(
            cost_micro_usd,
            usage=usage,
            estimated=used.estimated,
            basis=used.basis if used.estimated else None,
            status=status,
            client_left=client_left,
            attempts=self._retry.attempts,
            first_byte_ms=round(self.first_bytes_s[-1] * 1000) if self.first_bytes_s else None,
            total_ms=round((time.monotonic() - self._began_s) * 1000),
        )
        if is_free:
            self._limits.cancel()
        self._limits.settle(
            unseen=used.unseen and self._is_alone,
            **_costs(usage, cost_micro_usd),
            cached_input_tokens=usage.cached_input_tokens,
        )
        self._ledger.finish(self.record)
        if self._span is not None:
            self._span.end(self.record)
        if status == "answered" and not used.estimated:
            self._estimator.observe(self.record.slug, estimate, usage, self.record.user)


def _costs(usage: Usage, micro_usd: int) -> dict[str, Any]:
    return {
        "tokens": usage.counted_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": Decimal(micro_usd).scaleb(-6),
    }
