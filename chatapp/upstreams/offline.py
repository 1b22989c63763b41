"""An upstream without a model, a key or a network, with the same answer every time.

It is for trying the limits. It counts 4 bytes as a token, and its answer quotes the question.
"""

from __future__ import annotations

from typing import Final

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import AnswerStream, Completion, Turn
from chatapp.upstreams.event_stream import WholeStream

QUOTED_CHARACTERS: Final = 200
BYTES_PER_TOKEN: Final = 4


class Offline:
    name: Final = "offline"
    patterns: Final = ("offline",)
    missing: Final = None
    quotas_by_direction: Final = False

    def serves(self, model: str) -> bool:
        return model in self.patterns

    def complete(self, turn: Turn, max_tokens: int) -> Completion:
        # JSON may contain a lone surrogate, which UTF-8 cannot.
        sent = turn.message.encode("utf-8", "replace").decode()
        quoted = sent if len(sent) <= QUOTED_CHARACTERS else f"{sent[:QUOTED_CHARACTERS]}…"
        characters = "1 character" if len(sent) == 1 else f"{len(sent)} characters"
        count = len(turn.files)
        files = f", {count} file{'s' * (count > 1)}" if count else ""
        text = (
            f"I am offline, so no model has answered. You said “{quoted}” ({characters}{files}). "
            "Set OPENAI_API_KEY or ANTHROPIC_API_KEY to talk to a model."
        )
        usage = Usage(
            input_tokens=sum(_tokens(message.text) for message in turn.messages),
            output_tokens=_tokens(text),
        )
        return Completion(text=text, model=turn.model.name, usage=usage, finish_reason="stop")

    def stream(self, turn: Turn, max_tokens: int) -> AnswerStream:
        return WholeStream(self.complete(turn, max_tokens))


def _tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
