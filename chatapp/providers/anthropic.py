"""Anthropic's models, over the messages of its official synchronous SDK."""

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
    import anthropic

KEY_VARIABLE: Final = "ANTHROPIC_API_KEY"
FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}
KINDS: Final[dict[int, ErrorKind]] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "unknown_model",
    408: "timeout",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}

Tokens = Annotated[int, Field(ge=0)]


class Anthropic:
    """Asks Anthropic, or whatever speaks its protocol at ANTHROPIC_BASE_URL."""

    name: Final = "anthropic"
    patterns: Final = ("claude-*",)

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._client = PerProcess(self._connect)
        self.missing: Final = None if os.environ.get(KEY_VARIABLE) else KEY_VARIABLE
        if self.missing is None:
            # The SDK takes about a second to import: at the start rather than in somebody's
            # request, and not at all for those who have no key.
            import anthropic  # noqa: F401, PLC0415

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)

    def complete(self, prompt: Prompt) -> Completion:
        import anthropic  # noqa: PLC0415

        # Instructions stand beside the conversation here, not in it.
        system = "\n\n".join(m.text for m in prompt.messages if m.role == "system")
        spoken = [m for m in prompt.messages if m.role != "system"]
        try:
            answer = self._client.get().messages.create(
                model=prompt.model,
                max_tokens=prompt.max_tokens,
                system=system or anthropic.omit,
                messages=[{"role": m.role, "content": m.text} for m in spoken],  # type: ignore[misc]
            )
        except anthropic.APITimeoutError as error:
            raise ProviderError(self.name, "timeout", message=error.message) from error
        except anthropic.APIStatusError as error:
            raise self._refusal(error) from error
        except anthropic.AnthropicError as error:
            raise ProviderError(self.name, "unavailable", message=str(error)) from error
        except ValueError as error:  # a body that is not the JSON it claims to be
            raise ProviderError(self.name, "malformed", message=str(error)) from error
        try:
            return _Answer.model_validate(answer).completion()
        except ValidationError as error:
            raise ProviderError(self.name, "malformed", message=str(error), status=200) from error

    def _connect(self) -> anthropic.Anthropic:
        import anthropic  # noqa: PLC0415
        import httpx2  # noqa: PLC0415

        # No retries of the SDK's own: a call that timed out may have been billed, and a retry
        # would be a call that no limit has seen.
        timeout = httpx2.Timeout(self._timeouts.read_s, connect=self._timeouts.connect_s)
        return anthropic.Anthropic(timeout=timeout, max_retries=0)

    def _refusal(self, error: anthropic.APIStatusError) -> ProviderError:
        kind = KINDS.get(error.status_code)
        if error.type == "billing_error" or "spend_limit_reached" in (error.error_code or ""):
            kind = "quota"  # may come as a 429 that no waiting mends
        elif error.type == "overloaded_error":
            kind = "overloaded"
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


class _Usage(_Part):
    input_tokens: Tokens
    output_tokens: Tokens
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None


class _Block(_Part):
    type: str
    text: str | None = None


class _Answer(_Part):
    model: str
    content: list[_Block]
    stop_reason: str | None = None
    usage: _Usage

    def completion(self) -> Completion:
        read = self.usage.cache_read_input_tokens or 0
        written = self.usage.cache_creation_input_tokens or 0
        return Completion(
            text="".join(b.text for b in self.content if b.type == "text" and b.text),
            model=self.model,
            usage=Usage(
                # Anthropic counts what it read from or wrote to its cache beside the input.
                input_tokens=self.usage.input_tokens + read + written,
                output_tokens=self.usage.output_tokens,
                cached_input_tokens=read,
                cache_write_tokens=written,
            ),
            finish_reason=FINISH_REASONS.get(self.stop_reason or "", "other"),
        )
