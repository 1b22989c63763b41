"""What a vendor's protocol says in its own way, for an endpoint that speaks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from chatapp.blueprints.allowance import Allowance
from chatapp.blueprints.stream_answer import Rendering
from chatapp.blueprints.trouble import Trouble
from chatapp.conversation import Reply


class Shape(Protocol):
    """A vendor's way. ``provider`` is whose models the endpoint serves, besides the offline one."""

    @property
    def provider(self) -> str: ...

    @property
    def request_id_header(self) -> str:
        """Where the vendor's SDK looks for the id of a request."""
        ...

    def error(self, trouble: Trouble) -> dict[str, object]:
        """The body of an error."""
        ...

    def error_event(self, trouble: Trouble) -> bytes:
        """The event that ends a stream with an error."""
        ...

    def limit_headers(self, allowances: Sequence[Allowance]) -> dict[str, str]:
        """The headers that tell of limits."""
        ...

    def answer(self, reply: Reply) -> dict[str, object]:
        """The body of an answer that was made here."""
        ...

    def rendering(self, model: str, fields: Mapping[str, object]) -> Rendering:
        """How a stream is written that was made here, for a request with these fields."""
        ...
