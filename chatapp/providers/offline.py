"""The provider that needs nobody: no key, no network, the same answer every time.

It is for trying the limits, not for testing a model: its token counts are a rule of thumb
(4 bytes a token) and its answer only says what it was asked.
"""

from __future__ import annotations

from typing import Final

from chatapp.providers import Completion, Prompt, Usage

QUOTED_CHARACTERS: Final = 200
BYTES_PER_TOKEN: Final = 4


class Offline:
    """Answers without a model, and says so."""

    name: Final = "offline"
    patterns: Final = ("offline",)
    missing: Final = None

    def serves(self, model: str) -> bool:
        return model in self.patterns

    def complete(self, prompt: Prompt) -> Completion:
        asked = prompt.messages[-1].text
        quoted = asked if len(asked) <= QUOTED_CHARACTERS else f"{asked[:QUOTED_CHARACTERS]}…"
        text = (
            f"I am offline: no model was asked. You said “{quoted}” ({len(asked)} characters). "
            "Set OPENAI_API_KEY or ANTHROPIC_API_KEY to talk to a model."
        )
        usage = Usage(
            input_tokens=sum(_tokens(message.text) for message in prompt.messages),
            output_tokens=_tokens(text),
        )
        return Completion(text=text, model=prompt.model, usage=usage, finish_reason="stop")


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)
