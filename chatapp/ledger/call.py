"""One call of a provider, and the ledger as the code that makes calls sees it.

A call begins when its provider is called, and is finished exactly once, whatever its outcome.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import ErrorKind

Status = (
    Literal[
        "unfinished",  # it is running, or its worker died
        "answered",  # the answer is complete
        "cut_off",  # the stream ended before the answer was complete
        "credited",  # no call: an operator gave dollars back
    ]
    | ErrorKind  # why the provider did not answer
)


#: What an estimated usage was taken from: what was received, the time in which the model may also
#: have generated unseen, or all that was held for the call.
Basis = Literal["received", "time", "hold"]


class Call(NamedTuple):
    """One call of a provider.

    ``user`` is the identity that limits count (``user:alice``, or ``ip:198.51.100.7`` for a request
    without a user), ``key_id`` the public part of the API key, ``model`` the requested name and
    ``slug`` the model of the catalogue. ``usage`` is None while unknown; ``estimated`` if the
    provider did not report it, and by which ``basis``. ``cost_micro_usd`` begins as the price of
    the estimate. ``attempts`` counts the requests to the provider. ``tags`` are the caller's own
    words, by name.

    ``limits_ms`` is how long the limits took, ``waited_ms`` how long it waited for its turn,
    ``first_byte_ms`` how long the provider took to begin its answer, which is all of it unless it
    is ``streamed``, and ``total_ms`` the time from its request to its end. ``decisions`` are
    the limiter's, which have admitted it.
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
    basis: Basis | None = None
    status: Status = "unfinished"
    client_left: bool = False
    attempts: int = 1
    team: str | None = None
    tags: Mapping[str, str] = MappingProxyType({})
    streamed: bool = False
    limits_ms: float | None = None
    waited_ms: int | None = None
    first_byte_ms: int | None = None
    total_ms: int | None = None
    decisions: Sequence[Any] = ()

    @property
    def cost_usd(self) -> float:
        return self.cost_micro_usd / 1_000_000


def new_call_id() -> str:
    return uuid.uuid4().hex
