"""One call of a provider under way: told to the ledger when it begins, and once when it is over.

Whatever has to follow what calls really used belongs into `Dispatch`; it is the one place that
every call passes, whole or streamed, answered, failed or left by its client.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, cast

from flask import current_app, g, request

from chatapp.catalogue import Model
from chatapp.conversation import Conversation
from chatapp.ledger.call import EXTENSION_KEY, Call, Ledger, Status, new_call_id
from chatapp.providers import Progress, ProviderError, Usage
from chatapp.spent import Spent, spent_by, spent_in_vain, spent_on
from ratelimit_ext import Limiter

LIMITER_KEY: Final = "chatapp.limiter"


class Dispatch:
    """A call that has begun. One of its methods ends it; what comes after that is ignored."""

    def __init__(self, call: Call, conversation: Conversation, ledger: Ledger | None) -> None:
        self.call = call
        self._conversation = conversation
        self._ledger = ledger
        self._lock = threading.Lock()
        self._is_over = False
        if ledger is not None:
            ledger.begin(call)

    def answered(self, usage: Usage | None, *, output_bytes: int) -> None:
        """The answer is whole, and has this usage, or this size where it tells none."""
        estimate = self.call.estimated_input_tokens
        spent = spent_on(usage, input_estimate=estimate, output_bytes=output_bytes)
        self._over(spent, "answered")

    def failed(self, error: ProviderError) -> None:
        """There is no answer, and why."""
        spent = spent_in_vain(error, input_estimate=self.call.estimated_input_tokens)
        self._over(spent, error.kind)

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
        self.call = replace(
            self.call,
            usage=spent.usage,
            estimated=spent.estimated,
            cost_micro_usd=self._conversation.price(self.call.slug, spent.usage),
            status=status,
            client_left=client_left,
        )
        if self._ledger is not None:
            self._ledger.finish(self.call)


def begin(
    conversation: Conversation, model: Model, *, input_tokens: int, output_tokens: int
) -> Dispatch:
    """A call of this model for the present request, with these estimates; its provider is asked
    next."""
    limiter = present_limiter()
    call = Call(
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user=limiter.identities["user"](),
        key_id=g.get("key_id"),
        plan=limiter.present_plan(),
        endpoint=request.endpoint or "",
        model=model.name,
        slug=model.slug,
        provider=model.provider,
        estimated_input_tokens=input_tokens,
        estimated_output_tokens=output_tokens,
        cost_micro_usd=conversation.price(model.slug, Usage(input_tokens, output_tokens)),
    )
    return Dispatch(call, conversation, current_app.extensions.get(EXTENSION_KEY))


def present_limiter() -> Limiter:
    """The extension of the present application, also where it is switched off."""
    return cast(Limiter, current_app.extensions[LIMITER_KEY])
