"""One call of a provider under way: told to the ledger when it begins, and once when it is over.

What follows from what a call really used, in limits, ledger and estimates, follows from `Dispatch`:
every call passes it once, whole or streamed, answered, failed or left by its client. So does every
attempt at it: of the model that was asked for, and of the one that is its second choice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from flask import current_app, g, request

from chatapp.blueprints import second_choice
from chatapp.blueprints.estimating import present_estimate, present_estimator, present_needs
from chatapp.blueprints.gate import LimiterGate
from chatapp.blueprints.present import present_attempts, present_limiter
from chatapp.catalogue import Model
from chatapp.client_watch import Departure
from chatapp.conversation import Conversation
from chatapp.estimates.estimate import Estimate
from chatapp.ledger.call import EXTENSION_KEY, Call, Ledger, Status, new_call_id
from chatapp.providers import Progress, ProviderError, Usage
from chatapp.spent import Spent, spent_by, spent_in_vain, spent_on
from chatapp.upstream.guard import TRIED_AGAIN, A, Guard
from chatapp.upstream_wait import Wait, waiting
from ratelimit_ext import Reservation

#: Under which names servers give the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")


class Dispatch:
    """A call that has begun: `ask` makes it. One of the other methods ends it; what comes after
    that is ignored."""

    def __init__(
        self,
        call: Call,
        model: Model,
        conversation: Conversation,
        *,
        ledger: Ledger | None,
        reservation: Reservation,
        gate: LimiterGate,
        departure: Departure,
        learn: Callable[[str, Estimate, Usage], None],
    ) -> None:
        self.call = call
        #: The model that is asked; another one after `ask`, where that was the second choice.
        self.model = model
        self._conversation = conversation
        self._ledger = ledger
        self._reservation = reservation
        self._gate = gate
        #: The leaving of the caller, where an answer is streamed.
        self.departure = departure
        self._guard = Guard(gate, most_attempts=present_attempts(), sleep=departure.wait)
        self._estimate = present_estimate()
        self._learn = learn
        self._lock = threading.Lock()
        self._is_over = False
        self._wait = Wait()
        if ledger is not None:
            ledger.begin(call)

    def ask(self, attempt: Callable[[Model], A]) -> A:
        """What the provider brings, within the bounded attempts; where it has no room, what that
        of the second choice does. Where nobody brings anything the call has failed, and the
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
            self.failed(ProviderError(self.model.provider, "malformed", message=repr(error)))
            raise

    def _asked(self, attempt: Callable[[Model], A]) -> A:
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
                raise error from second

    def _attempted(self, attempt: Callable[[Model], A]) -> A:
        if self.departure.has_happened:  # nobody is asked for one who has left
            raise ProviderError(self.model.provider, "unavailable", message="the caller has left")
        return attempt(self.model)

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
        self._estimate = present_estimate()
        self._gate.needs = present_needs()
        self.call = replace(
            self.call,
            slug=chosen.slug,
            provider=chosen.provider,
            estimated_input_tokens=self._estimate.input_tokens,
            estimated_output_tokens=self._estimate.output_tokens,
        )
        return True

    def broke_off(self, error: ProviderError) -> None:
        """The stream ended with this error; `streamed` tells what became of the call."""
        self._guard.met(error, asked_at=time.monotonic())

    def answered(self, usage: Usage | None, *, output_bytes: int) -> None:
        """The answer is whole, and has this usage, or this size where it tells none."""
        estimate = self.call.estimated_input_tokens
        spent = spent_on(usage, input_estimate=estimate, output_bytes=output_bytes)
        self._over(spent, "answered")

    def goes_on(self, progress: Progress) -> None:
        """The stream has come so far, and its charges are not to be given back yet."""
        if self._reservation.renewal_is_due:
            usage = spent_by(progress, input_estimate=self.call.estimated_input_tokens).usage
            self._reservation.renew(**self._costs(usage))
            if self._ledger is not None:
                # Should the worker die, the ledger knows what the limits know.
                cost = self._conversation.price(self.call.slug, usage)
                known = replace(self.call, usage=usage, estimated=True, cost_micro_usd=cost)
                self._ledger.begin(known)

    def failed(self, error: ProviderError) -> None:
        """There is no answer, and why. The caller gets the call back, with its tokens and dollars;
        what the provider bills for a prompt in vain is ours, and stands in the ledger. Who has left
        while his provider was silent pays for the prompt, which was sent; who has left before, or
        while no provider could be reached, does not."""
        if self._wait.hung_up and error.kind == "unavailable" and error.status is None:
            self.streamed(Progress(self.model.name), client_left=True)
            return
        self._reservation.cancel()
        spent = spent_in_vain(error, input_estimate=self.call.estimated_input_tokens)
        self._over(spent, error.kind, client_left=self.departure.has_happened)

    def streamed(self, progress: Progress, *, client_left: bool) -> None:
        """The stream has ended there, whole or not."""
        spent = spent_by(progress, input_estimate=self.call.estimated_input_tokens)
        whole = progress.finish_reason is not None
        self._over(spent, "answered" if whole else "cut_off", client_left=client_left)

    def _over(self, spent: Spent, status: Status, *, client_left: bool = False) -> None:
        """Everything that follows a call. May run after the request, without its context."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        self.departure.close()
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
        if self._ledger is not None:
            self._ledger.finish(self.call)
        if status == "answered" and not spent.estimated:
            self._learn(self.call.slug, self._estimate, spent.usage)

    def _costs(self, usage: Usage) -> dict[str, Any]:
        """What a usage is in each unit of a limit."""
        return {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "usd": Decimal(self._conversation.price(self.call.slug, usage)).scaleb(-6),
        }


def begin(conversation: Conversation, model: Model, *, streams: bool) -> Dispatch:
    """A call of this model for the present request; its provider is asked next.

    ``streams``: the answer is streamed, and nobody waits for one whose caller has left.
    """
    connections = filter(None, map(request.environ.get, CONNECTIONS))
    limiter, estimate = present_limiter(), present_estimate()
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
        estimated_input_tokens=estimate.input_tokens,
        estimated_output_tokens=estimate.output_tokens,
        cost_micro_usd=conversation.price(
            model.slug, Usage(estimate.input_tokens, estimate.output_tokens)
        ),
    )
    return Dispatch(
        call,
        model,
        conversation,
        ledger=current_app.extensions.get(EXTENSION_KEY),
        reservation=limiter.reservation,
        gate=LimiterGate(limiter, present_needs()),
        departure=Departure(next(connections, None) if streams else None),
        learn=present_estimator().observe,
    )
