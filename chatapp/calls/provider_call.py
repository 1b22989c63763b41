"""One call of a provider: recorded in the ledger when it begins, and once when it ends.

Limits, ledger and estimates learn the real usage of a call from `ProviderCall` alone. Every call
ends there once: plain or streamed, answered, failed or abandoned by its client, with all attempts
at the requested model and at its fallback.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, Protocol

from chatapp.calls.disconnect import Disconnect
from chatapp.calls.retry import REFUSED_FOR_LOAD, RETRYABLE, A, AttemptLimits, Retry
from chatapp.calls.throttle import Throttle
from chatapp.calls.usage import (
    CallUsage,
    answer_usage,
    received_usage,
    stream_usage,
    usage_without_answer,
)
from chatapp.catalogue import Catalogue, Model
from chatapp.estimates.estimate import Estimate, Estimator
from chatapp.ledger.call import Call, Ledger, Status
from chatapp.providers import Progress, ProviderError, QuotaUnit, Usage
from chatapp.providers.cancellation import Wait, waiting

#: A connection that was idle for too long breaks at once; one that breaks later had the request.
STALE_S: Final = 1.0
#: Shorter pauses between two outputs are the usual pace of a model.
PAUSE_S: Final = 1.0
#: The most that is held for one answer to a caller whose recent calls were not billed.
MOST_HELD_TOKENS: Final = 16_384

#: Makes one attempt: at that model, with answers of at most so many tokens each (None: as many as
#: the request says).
Attempt = Callable[[Model, int | None], A]


class CallLimits(AttemptLimits, Protocol):
    """The limits of one request. Those that follow the call may be used after the request."""

    @property
    def was_not_billed(self) -> bool:
        """Whether a recent call of the caller was not billed as far as we know."""
        ...

    @property
    def renewal_is_due(self) -> bool:
        """Whether the reservation must be renewed before it expires."""
        ...

    def admit_fallback(self) -> float | None:
        """Charge the limits of the fallback model. Returns the wait in seconds if denied."""
        ...

    def hold(self, estimate: Estimate) -> bool:
        """Reserve this estimate instead of the smaller one; False if a limit denies it."""
        ...

    def budget_micro_usd(self) -> int | None:
        """What the caller's dollar limits have left for this call; None without such a limit."""
        ...

    def calls_in_flight(self) -> int:
        """Among how many calls in flight, with this one, the budget is divided."""
        ...

    def note_unbilled(self) -> None:
        """Record that this call may be billed although no usage was reported."""
        ...

    def renew(self, **costs: Any) -> None:
        """Keep at least these costs reserved, by unit."""
        ...

    def settle(self, **costs: Any) -> None:
        """Correct the reservation to these costs, by unit."""
        ...

    def cancel(self) -> None:
        """Refund the whole reservation."""
        ...


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of one model.

    ``bound`` is the longest single answer that the request allows, in tokens; ``may_hide_output``:
    the model may generate what is billed and not sent; ``quota_use`` is what its provider counts
    the request as.
    """

    model: Model
    estimate: Estimate
    bound: int | None
    may_hide_output: bool
    quota_use: Mapping[QuotaUnit, int]


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A request, as far as its call needs it.

    ``fallback`` switches the request to its fallback model, and returns None if it has none.
    ``other_key`` switches it to another key of the provider, and returns the model with that key,
    or None if none is left. ``throttle`` is that of all calls whose upstreams have the same load.
    """

    demand: Demand
    limits: CallLimits
    disconnect: Disconnect
    fallback: Callable[[], Demand | None]
    other_key: Callable[[], Model | None] = lambda: None
    throttle: Throttle = field(default_factory=Throttle)


class ProviderCall:
    """A call that has begun: `run` makes it. The first of `finish_answer`, `finish_stream` and
    `fail` ends it.

    ``new_record`` makes the Call from what is held for it, and for which model.
    """

    def __init__(
        self,
        new_record: Callable[..., Call],
        request: CallRequest,
        *,
        catalogue: Catalogue,
        ledger: Ledger,
        estimator: Estimator,
        most_attempts: int,
    ) -> None:
        self._demand = request.demand
        self._limits = request.limits
        self._fallback = request.fallback
        self._other_key = request.other_key
        self._throttle = request.throttle
        #: After the client's disconnect the provider is not called any more.
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
        #: What is held for the call; what is expected of it is the demand's.
        self._held = request.demand.estimate
        #: When the last output came, or the provider was asked; how much there is by then, and the
        #: pauses so far.
        self._heard_at = time.monotonic()
        self._heard_bytes = 0
        self._silent_s = 0.0
        self._bound_to_budget()
        self._new_record = new_record
        self.record = self._begun()
        self._lock = threading.Lock()
        self._is_over = False
        self._wait = Wait()
        ledger.begin(self.record)

    @property
    def model(self) -> Model:
        """The model that is called: the requested one, or its fallback."""
        return self._demand.model

    def run(self, attempt: Attempt[A]) -> A:
        """The answer, within the bounded attempts, of the requested model or else of its fallback.

        Otherwise the call has failed, and the ProviderError is the requested model's.
        """
        self.disconnect.on_disconnect(self._wait.end)
        try:
            with waiting(self._wait):
                return self._run(attempt)
        except ProviderError:
            raise  # the call has ended already
        except Exception as error:
            # A defect of this application: the answer is unknown, and the call must not stay open.
            kind: Any = "malformed" if self._wait.was_asked else "unavailable"
            self.fail(ProviderError(self.model.provider, kind, message=repr(error)))
            raise

    def _run(self, attempt: Attempt[A]) -> A:
        try:
            return self._retry.run(lambda: self._attempt(attempt), self._take_other_key)
        except ProviderError as error:
            if not self._switch_to_fallback(error):
                self.fail(error)
                raise
            try:
                return self._retry.run_once(lambda: self._attempt(attempt), self._take_other_key)
            except ProviderError as second:
                self.fail(second)
                raise error from second

    def _attempt(self, attempt: Attempt[A]) -> A:
        if self.disconnect.has_happened:
            raise ProviderError(self.model.provider, "unavailable", message="client disconnected")
        if not self._throttle.admits(self.model.quota_identity):
            raise ProviderError(self.model.provider, "overloaded", message="not called: throttled")
        asked_at = self._heard_at = time.monotonic()
        self._wait.was_asked = False
        try:
            return attempt(self.model, self._most_output_tokens)
        except ProviderError as error:
            waited_s = time.monotonic() - asked_at
            is_cut = error.kind == "unavailable" and error.status is None and self._wait.was_asked
            if is_cut and waited_s > STALE_S and not self._wait.hung_up:
                error.kind = "timeout"  # the provider had the request, and may bill it
            self._note_refusal(error)
            raise

    def _note_refusal(self, error: ProviderError) -> None:
        if error.kind in REFUSED_FOR_LOAD and error.retry_after_s is None:
            self._throttle.note_refusal(self.model.quota_identity)

    def _take_other_key(self) -> bool:
        model = None if self.disconnect.has_happened else self._other_key()
        if model is None:
            return False
        self._demand = replace(self._demand, model=model)
        return True

    def _bound_to_budget(self) -> None:
        """Bound each answer by what the caller's budget pays, if one could cost more.

        Calls in flight share what is left of a budget. If a recent call of the caller had no bill,
        hold up to half of the remaining budget for this one, and bound its answer by that.
        """
        #: The bound of each answer that is sent to the provider; None: the request's own.
        self._most_output_tokens: int | None = None
        budget = self._limits.budget_micro_usd()
        if budget is None:
            return
        choices = self._held.choices
        if self._limits.was_not_billed:
            self._hold(min(MOST_HELD_TOKENS * choices, self._paid_by(budget // 2)))
            paid = self._held.output_tokens
        else:
            paid = self._paid_by(budget) // max(1, self._limits.calls_in_flight())
            paid = max(paid, self._held.output_tokens)
        self._most_output_tokens = self._catalogue.bound(
            self.model, self._demand.bound, paid // choices
        )

    def _paid_by(self, micro_usd: int) -> int:
        """The output tokens of all answers that an amount pays."""
        prompt = replace(self._held.usage, output_tokens=0)
        return self._catalogue.output_tokens_for(micro_usd, self.model.slug, prompt)

    def _longest(self) -> int:
        """The most output tokens that all answers together can have."""
        bound = self._most_output_tokens or self._demand.bound
        return self._held.choices * self._catalogue.longest_answer(self.model, bound)

    def _hold(self, output_tokens: int) -> None:
        """Hold so many output tokens if that is more than is held, and the limits admit it."""
        output_tokens = min(output_tokens, self._longest())
        if output_tokens <= self._held.output_tokens:
            return
        estimate = replace(self._held, output_tokens=output_tokens)
        if self._limits.hold(estimate):
            self._held = estimate

    def _switch_to_fallback(self, error: ProviderError) -> bool:
        """Call the fallback from now on; False if it cannot be called, or could not help. The
        requested model has used nothing."""
        if error.kind not in RETRYABLE or self.disconnect.has_happened:
            return False
        demand = self._fallback()
        if demand is None or self._limits.admit_fallback() is not None:
            return False
        # Another tokenizer and other answers: the estimate is another.
        self._demand, self._held = demand, demand.estimate
        self._retry.quota_use = demand.quota_use
        self._bound_to_budget()
        self.record = self._begun()
        return True

    def _begun(self) -> Call:
        """The record of the call as it begins."""
        return self._new_record(
            slug=self.model.slug,
            provider=self.model.provider,
            estimated_input_tokens=self._held.input_tokens,
            estimated_output_tokens=self._held.output_tokens,
            cost_micro_usd=self._catalogue.price(self.model.slug, self._held.usage),
        )

    def note_error(self, error: ProviderError) -> None:
        """The stream broke off with this error; `finish_stream` ends the call."""
        self._note_refusal(error)
        self._retry.note(error, asked_at=time.monotonic())

    def note_progress(self, progress: Progress) -> None:
        """The stream goes on: renew what is reserved before it expires."""
        if progress.output_bytes > self._heard_bytes:
            self._heard_bytes = progress.output_bytes
            self._end_pause()
        if self._limits.renewal_is_due:
            usage = received_usage(progress, self._held)
            cost = self._catalogue.price(self.record.slug, usage)
            self._limits.renew(**_costs(usage, cost))
            # If this worker dies, the ledger knows what the limits know.
            self._ledger.begin(
                replace(self.record, usage=usage, estimated=True, cost_micro_usd=cost)
            )

    def _end_pause(self) -> None:
        now = time.monotonic()
        if now - self._heard_at > PAUSE_S:
            self._silent_s += now - self._heard_at
        self._heard_at = now

    def finish_answer(self, usage: Usage | None, *, output_bytes: int) -> None:
        """The answer is whole, with this usage, or of this size if the provider reports none."""
        self._finish(answer_usage(usage, self._held, output_bytes=output_bytes), "answered")

    def finish_stream(self, progress: Progress, *, client_left: bool) -> None:
        """The stream has ended, whole or not."""
        if client_left:
            self._end_pause()
        used = stream_usage(
            progress,
            self._held,
            expected=self._demand.estimate,
            silent_s=self._silent_s if self._demand.may_hide_output else None,
            most=self._longest(),
        )
        whole = progress.finish_reason is not None
        self._finish(used, "answered" if whole else "cut_off", client_left=client_left)

    def fail(self, error: ProviderError) -> None:
        """There is no answer.

        What may have been billed is charged: after a timeout, an unreadable answer, or a disconnect
        of the client while the provider worked. A provider that rejects this request has done
        nothing, but the call counts, without tokens and dollars. Any other failure is not the
        caller's: everything is refunded.
        """
        if self._wait.hung_up and error.status in (None, 200):
            self.finish_stream(Progress(self.model.name), client_left=True)
            return
        used = usage_without_answer(error, self._held)
        if not (used.estimated or error.is_callers):
            self._limits.cancel()
        self._finish(used, error.kind, client_left=self.disconnect.has_happened)

    def _finish(self, used: CallUsage, status: Status, *, client_left: bool = False) -> None:
        """Settle and record the call, once. May run after the request, without its context."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        self.disconnect.close()
        usage = used.usage
        if usage.tiers is None:  # not reported: as requested
            usage = replace(usage, tiers=self._held.tiers)
        cost_micro_usd = self._catalogue.price(self.record.slug, usage)
        self.record = replace(
            self.record,
            usage=usage,
            estimated=used.estimated,
            cost_micro_usd=cost_micro_usd,
            status=status,
            client_left=client_left,
            attempts=self._retry.attempts,
        )
        costs = _costs(usage, cost_micro_usd)
        self._limits.settle(**costs, cached_input_tokens=usage.cached_input_tokens)
        self._ledger.finish(self.record)
        if used.unseen:
            self._limits.note_unbilled()
        elif status == "answered" and not used.estimated:
            self._estimator.observe(self.record.slug, self._held, usage, self.record.user)


def _costs(usage: Usage, micro_usd: int) -> dict[str, Any]:
    """A usage in each unit of a limit. Limits in tokens do not count what was read from the
    provider's cache; the providers' own limits do not either."""
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    return {
        "tokens": usage.input_tokens - cached + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": Decimal(micro_usd).scaleb(-6),
    }
