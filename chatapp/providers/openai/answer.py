"""A whole chat completion. The SDK does not check what it received; these models do, for the fields
that we use."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatapp.providers import (
    TOKENS_MAX,
    Completion,
    FinishReason,
    Quota,
    Usage,
    generated_bytes,
)

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "refused",
}

#: Tiers that are billed by their own price, under one name for each. All others are standard.
TIERS: Final = {"priority": "priority", "fast": "priority", "flex": "flex"}
STANDARD: Final = frozenset({"", "auto", "default", "standard", "scale"})
#: What stands in a message and was not generated.
NOT_GENERATED: Final = frozenset({"role", "type", "id", "index"})

Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]


class Fields(BaseModel):
    """What we read of one object; fields that we do not know are ignored."""

    model_config = ConfigDict(from_attributes=True, strict=True)


class PromptDetails(Fields):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None


class CompletionDetails(Fields):
    reasoning_tokens: Tokens | None = None


class Bill(Fields):
    """What OpenAI calls usage."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    def usage(self, service_tier: str | None) -> Usage:
        prompt = self.prompt_tokens_details or PromptDetails()
        generated = self.completion_tokens_details or CompletionDetails()
        return Usage(
            input_tokens=self.prompt_tokens,
            output_tokens=self.completion_tokens,
            cached_input_tokens=prompt.cached_tokens or 0,
            cache_write_tokens=prompt.cache_write_tokens or 0,
            reasoning_tokens=generated.reasoning_tokens or 0,
            tiers=tiers_of(service_tier),
        )


class Text(Fields):
    content: str | None = None
    refusal: str | None = None


class Choice(Fields):
    finish_reason: str | None = None
    message: Text


class Billed(Fields):
    usage: Bill
    service_tier: str | None = None


class Answer(Fields):
    model: str
    choices: Annotated[list[Choice], Field(min_length=1)]

    def completion(self, usage: Usage | None, quotas: tuple[Quota, ...]) -> Completion:
        choice = self.choices[0]
        refused = choice.message.refusal
        return Completion(
            text=choice.message.content or refused or "",
            model=self.model,
            usage=usage,
            finish_reason="refused" if refused else finish_reason(choice.finish_reason),
            quotas=quotas,
        )


def usage_of(answer: object) -> Usage | None:
    """The usage that a whole answer reports; None if it reports none that can be read."""
    try:
        billed = Billed.model_validate(answer)
    except ValidationError:
        return None
    return billed.usage.usage(billed.service_tier)


def tiers_of(service_tier: str | None) -> tuple[str, ...] | None:
    """The tier that a call was served in, as prices have it; one that is not known by its name."""
    if service_tier is None:
        return None
    word = service_tier.lower()
    return () if word in STANDARD else (TIERS.get(word, word[:32]),)


def size_of(answer: object) -> int:
    """The bytes that were generated for all choices of a whole answer."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    messages = [c.get("message") for c in choices or () if isinstance(c, dict)]
    return generated_bytes(messages, without=NOT_GENERATED)


def finish_reason(word: str | None) -> FinishReason:
    """OpenAI's word in ours."""
    return FINISH_REASONS.get(word or "", "other")
