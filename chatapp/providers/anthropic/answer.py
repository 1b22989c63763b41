"""A whole message. The SDK does not check what it received; these models do, for the fields that we
use."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from chatapp.providers import TOKENS_MAX, Completion, FinishReason, Quota, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}

Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]


class Fields(BaseModel):
    """What we read of one object; fields that we do not know are ignored."""

    model_config = ConfigDict(from_attributes=True, strict=True)


class Bill(Fields):
    """What Anthropic calls usage."""

    input_tokens: Tokens
    output_tokens: Tokens
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None

    def usage(self) -> Usage:
        read = self.cache_read_input_tokens or 0
        written = self.cache_creation_input_tokens or 0
        return Usage(
            # Anthropic counts what it read from or wrote to its cache beside the input.
            input_tokens=self.input_tokens + read + written,
            output_tokens=self.output_tokens,
            cached_input_tokens=read,
            cache_write_tokens=written,
        )


class Block(Fields):
    type: str
    text: str | None = None


class Billed(Fields):
    usage: Bill


class Answer(Billed):
    model: str
    content: list[Block]
    stop_reason: str | None = None

    def completion(self, quotas: tuple[Quota, ...]) -> Completion:
        return Completion(
            text="".join(b.text for b in self.content if b.type == "text" and b.text),
            model=self.model,
            usage=self.usage.usage(),
            finish_reason=finish_reason(self.stop_reason),
            quotas=quotas,
        )


def finish_reason(word: str | None) -> FinishReason:
    """Anthropic's word in ours."""
    return FINISH_REASONS.get(word or "", "other")
