"""One call of a provider, as the ledger keeps it, and what whoever dispatches calls sees of that.

A call is begun when its provider is dispatched and finished exactly once, whatever became of it::

    call = Call(id=new_call_id(), started_at=datetime.now(UTC), user=caller.user, …)
    ledger.begin(call)
    …
    ledger.finish(replace(call, usage=usage, cost_micro_usd=cost, status="answered"))
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from chatapp.providers import ErrorKind, Usage

Status = (
    Literal[
        "unfinished",  # begun, and not heard of since: it runs, or its worker died
        "answered",  # the answer is whole
        "cut_off",  # a stream that ended before its answer was whole, by whomever
    ]
    | ErrorKind  # the provider gave no answer, and why
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a provider.

    ``user`` is the identity that limits count (``user:alice``, or ``ip:198.51.100.7`` where nobody
    is named), ``key_id`` the public part of the API key, ``model`` what was asked for and ``slug``
    the model of the catalogue. ``usage`` is None until it is known, and ``estimated`` where it was
    never told and had to be guessed. ``cost_micro_usd`` is what the call costs as far as that is
    known: at its beginning the price of the estimate. ``attempts`` is how often the provider was
    asked for it.
    """

    id: str
    started_at: datetime
    user: str
    key_id: str | None
    plan: str
    endpoint: str
    model: str
    slug: str
    provider: str
    estimated_input_tokens: int
    estimated_output_tokens: int
    cost_micro_usd: int
    usage: Usage | None = None
    estimated: bool = False
    status: Status = "unfinished"
    client_left: bool = False
    attempts: int = 1


class Ledger(Protocol):
    """Where calls are kept. Neither method waits for a database, and neither raises."""

    def begin(self, call: Call) -> None:
        """The provider is being asked; from now on the call may cost."""
        ...

    def finish(self, call: Call) -> None:
        """What became of it: the same call by its ``id``, with usage, cost and status."""
        ...


def new_call_id() -> str:
    """A name for a call that no other call has."""
    return uuid.uuid4().hex
