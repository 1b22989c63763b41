"""A request to a model, whatever the format of its body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chatapp.upstreams import Extras, RawRequest, Turn


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A valid request, in the CurrentRequest of every endpoint that calls a model.

    ``names_model``: the model is the requested one, and not the default. ``most_output_tokens``
    bounds its ``choices`` (answers) together, None if it has no bound. ``stream``: the answer is
    streamed. ``extras`` change the price.

    ``raw_request`` is the request in the upstream's own protocol, None for POST /chat. ``turn`` is
    for POST /chat and for the offline model, ``fields`` the body in a provider's protocol.
    ``user_id`` is that of POST /chat alone: the user that another body names is not an identity
    here. ``history_tokens`` are those of the conversation that the request continues without
    sending it, None if unknown. ``is_tied``: only the upstream and key of its model have what it
    continues.
    """

    turn: Turn
    fields: Mapping[str, object]
    most_output_tokens: int | None
    stream: bool = False
    user_id: str | None = None
    raw_request: RawRequest | None = None
    choices: int = 1
    extras: Extras = field(default_factory=Extras)
    history_tokens: int | None = 0
    is_tied: bool = False
    names_model: bool = True
