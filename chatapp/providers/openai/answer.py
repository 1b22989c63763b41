"""A whole chat completion. The SDK does not check what it received; these models do, for the fields
that we use."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from chatapp.providers import TOKENS_MAX, Completion, FinishReason, Quota, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "refused",
}

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

    def usage(self) -> Usage:
        prompt = self.prompt_tokens_details or PromptDetails()
        generated = self.completion_tokens_details or CompletionDetails()
        return Usage(
            input_tokens=self.prompt_tokens,
            output_tokens=self.completion_tokens,
            cached_input_tokens=prompt.cached_tokens or 0,
            cache_write_tokens=prompt.cache_write_tokens or 0,
            reasoning_tokens=generated.reasoning_tokens or 0,
        )


class Text(Fields):
    content: str | None = None
    refusal: str | None = None


class Choice(Fields):
    finish_reason: str | None = None
    message: Text


class Billed(Fields):
    usage: Bill


class Answer(Billed):
    model: str
    choices: Annotated[list[Choice], Field(min_length=1)]

    def completion(self, quotas: tuple[Quota, ...]) -> Completion:
        choice = self.choices[0]
        refused = choice.message.refusal
        return Completion(
            text=choice.message.content or refused or "",
            model=self.model,
            usage=self.usage.usage(),
            finish_reason="refused" if refused else finish_reason(choice.finish_reason),
            quotas=quotas,
        )


def finish_reason(word: str | None) -> FinishReason:
    """OpenAI's word in ours."""
    return FINISH_REASONS.get(word or "", "other")
