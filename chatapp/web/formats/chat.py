"""The stream of POST /chat: `delta` events with text, then one `done` or one `error`."""

from __future__ import annotations

from typing import Final

from chatapp.providers import Part, Progress, ProviderError, Usage
from chatapp.providers.event_stream import write
from chatapp.web import provider_errors

#: The fields of a usage that a chat has: it has no tools and no tiers.
USAGE: Final = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


def usage_fields(usage: Usage | None) -> dict[str, int] | None:
    """A usage as POST /chat shows it; None if the provider reported none that can be read."""
    return {name: getattr(usage, name) for name in USAGE} if usage else None


class ChatStreamWriter:
    """Writes the events of POST /chat."""

    def start(self) -> bytes:
        return b""

    def part(self, part: Part) -> bytes:
        return write({"text": part.text}, name="delta") if part.text else b""

    def end(self, progress: Progress) -> bytes:
        return write(
            {
                "model": progress.model,
                "usage": usage_fields(progress.usage),
                "finish_reason": progress.finish_reason,
            },
            name="done",
        )

    def error(self, error: ProviderError) -> bytes:
        report = provider_errors.report(error)
        return write({"error": report.message, "code": report.code}, name="error")
