"""A whole message. The SDK does not check what it received; these models do, for the fields that we
use."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from chatapp.providers import (
    TOKENS_MAX,
    Completion,
    FinishReason,
    Quota,
    Usage,
    generated_bytes,
)

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}

#: Speeds and places of inference at the usual price.
STANDARD: Final = frozenset({"", "standard", "global", "not_available"})
#: What stands in a block or its delta and was not generated.
NOT_GENERATED: Final = frozenset(
    {"type", "id", "tool_use_id", "signature", "citation", "citations"}
)

Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]


class Fields(BaseModel):
    """What we read of one object; fields that we do not know are ignored."""

    model_config = ConfigDict(from_attributes=True, strict=True)


class CacheWrites(Fields):
    ephemeral_1h_input_tokens: Tokens | None = None


class ServerTools(Fields):
    web_search_requests: Tokens | None = None


class Counted(Fields):
    """Tokens of one generation. Anthropic counts what it read from or wrote to its cache beside the
    input."""

    type: str | None = None
    input_tokens: Tokens
    output_tokens: Tokens
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    cache_creation: CacheWrites | None = None


class Bill(Counted):
    """What Anthropic calls usage."""

    server_tool_use: ServerTools | None = None
    speed: str | None = None
    inference_geo: str | None = None
    iterations: list[Counted] | None = None

    @field_validator("iterations", mode="before")
    @classmethod
    def _compactions(cls, found: object) -> object:
        """All others are in the sums already, whatever they are."""
        if not isinstance(found, list):
            return None
        return [each for each in found if _kind(each) == "compaction"]

    def usage(self) -> Usage:
        # The sums leave out what it took to compact the context.
        parts = [self, *(self.iterations or ())]
        read = sum(part.cache_read_input_tokens or 0 for part in parts)
        written = sum(part.cache_creation_input_tokens or 0 for part in parts)
        hour = (part.cache_creation or CacheWrites() for part in parts)
        tools = self.server_tool_use or ServerTools()
        return Usage(
            input_tokens=sum(part.input_tokens for part in parts) + read + written,
            output_tokens=sum(part.output_tokens for part in parts),
            cached_input_tokens=read,
            cache_write_tokens=written,
            cache_write_1h_tokens=sum(part.ephemeral_1h_input_tokens or 0 for part in hour),
            web_searches=tools.web_search_requests or 0,
            tiers=tiers_of(self.speed, self.inference_geo),
        )


class Block(Fields):
    type: str
    text: str | None = None


class Billed(Fields):
    usage: Bill


class Answer(Fields):
    model: str
    content: list[Block]
    stop_reason: str | None = None

    def completion(self, usage: Usage | None, quotas: tuple[Quota, ...]) -> Completion:
        return Completion(
            text="".join(b.text for b in self.content if b.type == "text" and b.text),
            model=self.model,
            usage=usage,
            finish_reason=finish_reason(self.stop_reason),
            quotas=quotas,
        )


def _kind(part: object) -> object:
    return part.get("type") if isinstance(part, dict) else getattr(part, "type", None)


def usage_of(answer: object) -> Usage | None:
    """The usage that a whole answer reports; None if it reports none that can be read."""
    try:
        return Billed.model_validate(answer).usage.usage()
    except ValidationError:
        return None


def tiers_of(speed: str | None, inference_geo: str | None) -> tuple[str, ...] | None:
    """What changes the price of a call, as prices have it."""
    if speed is None and inference_geo is None:
        return None
    words = ((speed or "").lower(), (inference_geo or "").lower())
    return tuple(word[:32] for word in words if word not in STANDARD)


def size_of(answer: object) -> int:
    """The bytes that were generated for a whole answer; results of tools were not."""
    blocks = answer.get("content") if isinstance(answer, dict) else None
    return generated_bytes([b for b in blocks or () if is_generated(b)], without=NOT_GENERATED)


def is_generated(block: object) -> bool:
    """Whether the model has made this block, and not a tool that the provider runs."""
    return isinstance(block, dict) and not str(block.get("type")).endswith("_result")


def finish_reason(word: str | None) -> FinishReason:
    """Anthropic's word in ours."""
    return FINISH_REASONS.get(word or "", "other")
