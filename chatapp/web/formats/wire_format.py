"""What differs between the vendors' protocols, for endpoints that speak one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from chatapp.conversation import Reply
from chatapp.web.error_report import ErrorReport
from chatapp.web.limit_summary import LimitSummary
from chatapp.web.streaming import StreamWriter


class WireFormat(Protocol):
    """A vendor's wire format. The endpoint serves the models of ``provider`` and the offline
    model."""

    @property
    def provider(self) -> str: ...

    @property
    def request_id_header(self) -> str:
        """The header in which the vendor's SDK looks for a request id."""
        ...

    def error_body(self, report: ErrorReport) -> dict[str, object]: ...

    def error_event(self, report: ErrorReport) -> bytes:
        """The event that ends a stream with an error."""
        ...

    def limit_headers(self, summaries: Sequence[LimitSummary]) -> dict[str, str]:
        """The vendor's headers for the state of limits."""
        ...

    def answer_body(self, reply: Reply) -> dict[str, object]:
        """The body of an answer of the offline model."""
        ...

    def stream_writer(self, model: str, fields: Mapping[str, object]) -> StreamWriter:
        """The writer of a stream of the offline model, for a request with these fields."""
        ...
