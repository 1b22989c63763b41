"""The stream of POST /chat: `delta` events with text, then one `done` or one `error`."""

from __future__ import annotations

from dataclasses import asdict

from chatapp.blueprints import provider_trouble
from chatapp.providers import Part, Progress, ProviderError
from chatapp.server_sent_events import write


class ChatRendering:
    """Our own events."""

    def start(self) -> bytes:
        return b""

    def part(self, part: Part) -> bytes:
        return write({"text": part.text}, name="delta") if part.text else b""

    def end(self, progress: Progress) -> bytes:
        return write(
            {
                "model": progress.model,
                "usage": asdict(progress.usage) if progress.usage else None,
                "finish_reason": progress.finish_reason,
            },
            name="done",
        )

    def error(self, error: ProviderError) -> bytes:
        trouble = provider_trouble.told(error)
        return write({"error": trouble.sentence, "code": trouble.code}, name="error")
