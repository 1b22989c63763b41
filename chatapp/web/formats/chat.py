"""The format of POST /chat: {"reply", "model", "usage", "cost_usd"}, or a stream of `delta` events
with text that ends with `done` or `error`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from chatapp.calls.upstream_call import UpstreamCall
from chatapp.catalogue.usage import Usage
from chatapp.upstreams import Completion, Part, Progress, UpstreamError
from chatapp.upstreams.event_stream import write
from chatapp.web.errors import upstream_report

#: The fields of a usage that a chat has: it has no tools and no tiers.
USAGE: Final = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


def usage_fields(usage: Usage | None) -> dict[str, int] | None:
    """Return a usage for a client; None if the provider reported no valid one."""
    return {name: getattr(usage, name) for name in USAGE} if usage else None


class ChatFormat:
    """Answers with the cost of their call, which has ended before they are written."""

    def __init__(self, call: UpstreamCall) -> None:
        self._call = call

    def answer_body(self, reply: Completion) -> dict[str, object]:
        return {
            "reply": reply.text,
            "model": reply.model,
            "usage": usage_fields(reply.usage),
            "cost_usd": self._call.record.cost_usd,
        }

    def events(
        self, parts: Iterable[Part], progress: Progress, fields: Mapping[str, object]
    ) -> Iterator[bytes]:
        for part in parts:
            if part.text:
                yield write({"text": part.text}, name="delta")
        yield write(
            {
                "model": progress.model,
                "usage": usage_fields(progress.usage),
                "finish_reason": progress.finish_reason,
                "cost_usd": self._call.record.cost_usd,
            },
            name="done",
        )

    def error_event(self, error: UpstreamError, *, number: int = 0) -> bytes:
        report = upstream_report(error)
        cost_usd = self._call.record.cost_usd
        return write(
            {"error": report.message, "code": report.code, "cost_usd": cost_usd}, name="error"
        )
