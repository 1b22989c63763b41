"""OpenAI's models, over the chat completions of its official synchronous SDK."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatapp.providers import (
    Completion,
    ErrorKind,
    FinishReason,
    PerProcess,
    Prompt,
    ProviderError,
    Timeouts,
    Usage,
    retry_after_s,
)

if TYPE_CHECKING:
    import openai

KEY_VARIABLE: Final = "OPENAI_API_KEY"
FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "refused",
}
KINDS: Final[dict[int, ErrorKind]] = {
    401: "auth",
    403: "auth",
    404: "unknown_model",
    408: "timeout",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
}

Tokens = Annotated[int, Field(ge=0)]


class OpenAI:
    """Asks OpenAI, or whatever speaks its protocol at OPENAI_BASE_URL."""

    name: Final = "openai"
    patterns: Final = ("gpt-*", "chatgpt-*", "o1", "o1-*", "o3", "o3-*", "o4-*")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._client = PerProcess(self._connect)
        self.missing: Final = None if os.environ.get(KEY_VARIABLE) else KEY_VARIABLE
        if self.missing is None:
            # The SDK takes about half a second to import: at the start rather than in somebody's
            # request, and not at all for those who have no key.
            import openai  # noqa: F401, PLC0415

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)

    def complete(self, prompt: Prompt) -> Completion:
        import openai  # noqa: PLC0415

        try:
            answer = self._client.get().chat.completions.create(
                model=prompt.model,
                messages=[{"role": m.role, "content": m.text} for m in prompt.messages],  # type: ignore[misc]
                max_completion_tokens=prompt.max_tokens,
            )
        except openai.APITimeoutError as error:
            raise ProviderError(self.name, "timeout", message=error.message) from error
        except openai.APIStatusError as error:
            raise self._refusal(error) from error
        except openai.OpenAIError as error:
            raise ProviderError(self.name, "unavailable", message=str(error)) from error
        except ValueError as error:  # a body that is not the JSON it claims to be
            raise ProviderError(self.name, "malformed", message=str(error)) from error
        try:
            return _Answer.model_validate(answer).completion()
        except ValidationError as error:
            raise ProviderError(self.name, "malformed", message=str(error), status=200) from error

    def _connect(self) -> openai.OpenAI:
        import httpx2  # noqa: PLC0415
        import openai  # noqa: PLC0415

        # No retries of the SDK's own: a call that timed out may have been billed, and a retry
        # would be a call that no limit has seen.
        timeout = httpx2.Timeout(self._timeouts.read_s, connect=self._timeouts.connect_s)
        return openai.OpenAI(timeout=timeout, max_retries=0)

    def _refusal(self, error: openai.APIStatusError) -> ProviderError:
        kind = KINDS.get(error.status_code)
        if error.code == "insufficient_quota" or error.status_code == 402:
            kind = "quota"  # a 429 that no waiting mends
        if kind is None:
            kind = "unavailable" if error.status_code >= 500 else "bad_request"
        return ProviderError(
            self.name,
            kind,
            message=error.message,
            status=error.status_code,
            retry_after_s=retry_after_s(error.response.headers),
        )


class _Part(BaseModel):
    """The SDK does not check what it received; these models do, for the fields that we use."""

    model_config = ConfigDict(from_attributes=True, strict=True)


class _PromptDetails(_Part):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None


class _CompletionDetails(_Part):
    reasoning_tokens: Tokens | None = None


class _Usage(_Part):
    prompt_tokens: Tokens
    completion_tokens: Tokens
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Text(_Part):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Part):
    finish_reason: str | None = None
    message: _Text


class _Answer(_Part):
    model: str
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage

    def completion(self) -> Completion:
        choice = self.choices[0]
        refused = choice.message.refusal
        prompt = self.usage.prompt_tokens_details or _PromptDetails()
        generated = self.usage.completion_tokens_details or _CompletionDetails()
        return Completion(
            text=choice.message.content or refused or "",
            model=self.model,
            usage=Usage(
                input_tokens=self.usage.prompt_tokens,
                output_tokens=self.usage.completion_tokens,
                cached_input_tokens=prompt.cached_tokens or 0,
                cache_write_tokens=prompt.cache_write_tokens or 0,
                reasoning_tokens=generated.reasoning_tokens or 0,
            ),
            finish_reason="refused"
            if refused
            else FINISH_REASONS.get(choice.finish_reason or "", "other"),
        )
