"""One call of a provider under way: recorded in the ledger at its beginning, and once at its end.

What follows from a call's real usage, in limits, ledger and estimates, follows from `Dispatch`:
every call passes it once, plain or streamed, answered, failed or abandoned by its client. So does
every attempt at it: of the model that was asked for, and of the one that is its second choice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from flask import g, request

from chatapp.blueprints import second_choice
from chatapp.blueprints.estimating import (
    may_hide_output,
    present_estimate,
    present_needs,
    present_tiers,
)
from chatapp.blueprints.gate import LimiterGate
from chatapp.catalogue import Model
from chatapp.client_watch import Departure
from chatapp.conversation import Conversation
from chatapp.estimates.estimate import Estimator
from chatapp.ledger.call import Call, Ledger, Status, new_call_id
from chatapp.providers import Progress, ProviderError, Usage
from chatapp.services import current_services
from chatapp.spent import Spent, received_by, spent_by, spent_on, spent_without_answer
from chatapp.upstream.guard import TRIED_AGAIN, A, Guard
from chatapp.upstream_wait import Wait, waiting
from ratelimit_ext import Limiter

#: Under which names servers give the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")

#: A connection that was idle for too long breaks at once; one that breaks later had the request.
STALE_S: Final = 1.0
#: What is held at most for an answer to a caller whose calls were lately not billed.
MOST_HELD_TOKENS: Final = 16_384

#: Makes one attempt: of that model, whose answers have at most so many tokens each (None: as many
#: as the request says).
Attempt = Callable[[Model, int | None], A]


class Dispatch:
    """A call that has begun: `ask` makes it. One of the other methods ends it; what comes after
    that is ignored."""

    def __init__(
        self,
        call: Call,
        model: Model,
        conversation: Conversation,
        *,
        ledger: Ledger,
        limiter: Limiter,
        departure: Departure,
        estimator: Estimator,
    ) -> None:
        #: The model that is asked; another one after `ask`, where that was the second choice.
        self.model = model
        self._conversation = conversation
        self._ledger = ledger
        self._limiter = limiter
        self._reservation = limiter.reservation
        self._gate = LimiterGate(limiter, present_needs(), shares_pauses=not present_tiers())
        #: The leaving of the caller, after which nothing is asked for it.
        self.departure = departure
        self._guard = Guard(
            self._gate,
            most_attempts=current_services().settings.provider_attempts,
            sleep=departure.wait,
        )
        #: What is held for the call, and what was expected of it.
        self._estimate = self._expected = present_estimate()
        self._may_hide_output = may_hide_output()
        self._asked_at = self._began_at = time.monotonic()
        #: The bound of each answer that is sent upstream, and what all of them can have together.
        self._most_output_tokens: int | None = None
        self._most = 0
        self._bound_to_budget()
        self.call = self._as_estimated(call)
        self._estimator = estimator
        self._lock = threading.Lock()
        self._is_over = False
        self._wait = Wait()
        ledger.begin(self.call)

    def ask(self, attempt: Attempt[A]) -> A:
        """What the provider brings, within the bounded attempts; where it has no room, what that
        of the second choice does. If no attempt brings anything the call has failed, and the
        ProviderError is that of the model that was asked for.
        """
        self.departure.ends(self._wait.end)
        try:
            with waiting(self._wait):
                return self._asked(attempt)
        except ProviderError:
            raise  # it has been dealt with
        except Exception as error:
            # A mistake of ours: nothing of the answer is known, and no call stays open for it.
            kind: Any = "malformed" if self._wait.was_asked else "unavailable"
            self.failed(ProviderError(self.model.provider, kind, message=repr(error)))
            raise

    def _asked(self, attempt: Attempt[A]) -> A:
        try:
            return self._guard.ask(lambda: self._attempted(attempt))
        except ProviderError as error:
            if not self._may_turn(error):
                self.failed(error)
                raise
            try:
                return self._guard.ask_once(lambda: self._attempted(attempt))
            except ProviderError as second:
                self.failed(second)
                error.was_retried = True
                raise error from second

    def _attempted(self, attempt: Attempt[A]) -> A:
        if self.departure.has_happened:  # nothing is asked for a client that has left
            raise ProviderError(self.model.provider, "unavailable", message="the client has left")
        self._asked_at = self._began_at = time.monotonic()
        self._wait.was_asked = False
        try:
            return attempt(self.model, self._most_output_tokens)
        except ProviderError as error:
            waited_s = time.monotonic() - self._asked_at
            is_cut = error.kind == "unavailable" and error.status is None and self._wait.was_asked
            if is_cut and waited_s > STALE_S and not self._wait.hung_up:
                error.kind = "timeout"  # it had the request, and may bill it
            raise

    def _bound_to_budget(self) -> None:
        """Bound each answer by what the caller's budget pays, where one could cost more.

        Calls in flight share what is left of a budget. If a recent call of the user had no bill,
        hold up to half of the remaining budget for this one, and bound its answer by that.
        """
        self._most_output_tokens, self._most = None, self._longest()
        budget = self._limiter.remaining_budget()
        if budget is None:
            return
        left = int(budget.scaleb(6))
        if self._gate.was_not_billed:
            most = MOST_HELD_TOKENS * self._estimate.choices
            self._hold(output_tokens=min(most, self._paid_by(left // 2)))
            paid = self._estimate.output_tokens
        else:
            paid = self._paid_by(left) // max(1, self._limiter.calls_in_flight())
            paid = max(paid, self._estimate.output_tokens)
        choices = self._estimate.choices
        bound = self._conversation.catalogue.bound(self.model, self._asked_bound(), paid // choices)
        if bound is not None:
            self._most_output_tokens, self._most = bound, bound * choices

    def _paid_by(self, micro_usd: int) -> int:
        """The output tokens of all answers that an amount pays."""
        prompt = replace(self._estimate.usage, output_tokens=0)
        return self._conversation.catalogue.output_tokens_for(micro_usd, self.model.slug, prompt)

    def _longest(self) -> int:
        """The most that all answers together can have."""
        catalogue = self._conversation.catalogue
        return self._estimate.choices * catalogue.longest_answer(self.model, self._asked_bound())

    def _asked_bound(self) -> int | None:
        """The bound of each answer that the request states."""
        asked: int | None = g.chat_request.most_output_tokens
        return asked and asked // self._estimate.choices

    def _hold(self, *, output_tokens: int) -> None:
        """Hold so many output tokens, if that is more than is held, and there is enough for it."""
        output_tokens = min(output_tokens, self._longest())
        if output_tokens <= self._estimate.output_tokens:
            return
        g.held = replace(self._estimate, output_tokens=output_tokens)
        if self._gate.hold_more():
            self._estimate = g.held
        else:
            g.pop("held")

    def _may_turn(self, error: ProviderError) -> bool:
        """Whether the second choice is asked now."""
        wanted = error.kind in TRIED_AGAIN and not self.departure.has_happened
        return wanted and self._turns_to_second_choice()

    def _turns_to_second_choice(self) -> bool:
        """Whether another model is asked from now on. Of the first, nothing was used."""
        chosen = second_choice.take(self._conversation)
        if chosen is None or self._gate.admit_model() is not None:
            return False
        self.model = chosen
        # Another tokenizer, other answers: something else is expected of the call.
        self._estimate = self._expected = present_estimate()
        self._may_hide_output = may_hide_output()
        self._gate.needs = present_needs()
        self._bound_to_budget()
        self.call = self._as_estimated(self.call)
        return True

    def _as_estimated(self, call: Call) -> Call:
        """The call with the model that is asked, and what is held for it."""
        return replace(
            call,
            slug=self.model.slug,
            provider=self.model.provider,
            estimated_input_tokens=self._estimate.input_tokens,
            estimated_output_tokens=self._estimate.output_tokens,
            cost_micro_usd=self._conversation.price(self.model.slug, self._estimate.usage),
        )

    def broke_off(self, error: ProviderError) -> None:
        """The stream ended with this error; `streamed` records what became of the call."""
        self._guard.met(error, asked_at=time.monotonic())

    def answered(self, usage: Usage | None, *, output_bytes: int) -> None:
        """The answer is whole, and has this usage, or this size if it reports none."""
        self._over(spent_on(usage, self._estimate, output_bytes=output_bytes), "answered")

    def goes_on(self, progress: Progress) -> None:
        """The stream has come so far, and its charges are not to be given back yet."""
        if self._began_at == self._asked_at and progress.output_bytes:
            self._began_at = time.monotonic()
        if self._reservation.renewal_is_due:
            usage = received_by(progress, self._estimate)
            self._reservation.renew(**self._costs(usage))
            # Should the worker die, the ledger knows what the limits know.
            cost = self._conversation.price(self.call.slug, usage)
            known = replace(self.call, usage=usage, estimated=True, cost_micro_usd=cost)
            self._ledger.begin(known)

    def failed(self, error: ProviderError) -> None:
        """There is no answer, and why.

        What may have been billed is charged: of a provider that was late or not readable, and of
        one that was asked and whose client left. A provider that refuses this request has done
        nothing, but was asked: the call counts, and no tokens or dollars do. Any other failure is
        not the caller's: everything is given back.
        """
        if self._wait.hung_up and error.kind == "unavailable" and error.status is None:
            self.streamed(Progress(self.model.name), client_left=True)
            return
        spent = spent_without_answer(error, self._estimate)
        if not (spent.estimated or error.is_callers):
            self._reservation.cancel()
        self._over(spent, error.kind, client_left=self.departure.has_happened)

    def streamed(self, progress: Progress, *, client_left: bool) -> None:
        """The stream has ended there, whole or not."""
        silent_s = self._began_at - self._asked_at if self._may_hide_output else None
        spent = spent_by(
            progress,
            self._estimate,
            expected=self._expected,
            silent_s=silent_s,
            most=self._most,
        )
        whole = progress.finish_reason is not None
        self._over(spent, "answered" if whole else "cut_off", client_left=client_left)

    def _over(self, spent: Spent, status: Status, *, client_left: bool = False) -> None:
        """Everything that follows a call. May run after the request, without its context."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        self.departure.close()
        if spent.usage.tiers is None:  # not reported: as it was asked for
            spent = replace(spent, usage=replace(spent.usage, tiers=self._estimate.tiers))
        self.call = replace(
            self.call,
            usage=spent.usage,
            estimated=spent.estimated,
            cost_micro_usd=self._conversation.price(self.call.slug, spent.usage),
            status=status,
            client_left=client_left,
            attempts=self._guard.attempts,
        )
        self._reservation.settle(
            **self._costs(spent.usage), cached_input_tokens=spent.usage.cached_input_tokens
        )
        self._ledger.finish(self.call)
        if spent.unseen:
            self._gate.note_unbilled()
        elif status == "answered" and not spent.estimated:
            self._estimator.observe(self.call.slug, self._estimate, spent.usage, self.call.user)

    def _costs(self, usage: Usage) -> dict[str, Any]:
        """What a usage is in each unit of a limit. Limits in tokens do not count what was read from
        the provider's cache, as the providers' own do not."""
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        return {
            "tokens": usage.input_tokens - cached + usage.output_tokens,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "usd": Decimal(self._conversation.price(self.call.slug, usage)).scaleb(-6),
        }


def begin(conversation: Conversation, model: Model) -> Dispatch:
    """A call of this model for the present request; its provider is asked next."""
    connections = filter(None, map(request.environ.get, CONNECTIONS))
    services = current_services()
    limiter = services.limiter
    call = Call(
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user=limiter.identities["user"](),
        key_id=g.get("key_id"),
        plan=limiter.present_plan(),
        endpoint=request.endpoint or "",
        model=second_choice.asked_for(model),
        slug=model.slug,
        provider=model.provider,
        estimated_input_tokens=0,  # what is held for it, Dispatch knows
        estimated_output_tokens=0,
        cost_micro_usd=0,
    )
    return Dispatch(
        call,
        model,
        conversation,
        ledger=services.ledger,
        limiter=limiter,
        departure=Departure(next(connections, None)),
        estimator=services.estimator,
    )
