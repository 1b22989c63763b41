"""The chunks of a streamed chat completion."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field

from chatapp.providers import ErrorKind, Part, Progress, ProviderError, generated_bytes
from chatapp.providers.openai.answer import NOT_GENERATED, Bill, Fields, finish_reason
from chatapp.server_sent_events import Event

DONE: Final = "[DONE]"
# By an error's code, or else its type. OpenAI has words for both; others send the status as code.
KINDS: Final[dict[str, ErrorKind]] = {
    "rate_limit_exceeded": "rate_limited",
    "slow_down": "rate_limited",
    "rate_limit_error": "rate_limited",
    "requests": "rate_limited",
    "tokens": "rate_limited",
    "429": "rate_limited",
    "server_is_overloaded": "overloaded",
    "service_unavailable_error": "overloaded",
    "503": "overloaded",
    "insufficient_quota": "quota",
}


class _Delta(Fields):
    """What a chunk adds; besides text, whatever else is generated (calls of tools, reasoning)."""

    model_config = ConfigDict(extra="allow", strict=True)

    content: str | None = None
    refusal: str | None = None


class _Choice(Fields):
    index: int | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Fields):
    model: str | None = None
    choices: Annotated[list[_Choice], Field(default_factory=list)]
    usage: Bill | None = None
    service_tier: str | None = None
    error: object = None  # of whatever form: it is one


class ChunkReader:
    """Reads chunks of so many ``choices``. ``hides_usage``: the caller did not ask for the chunk
    that has it, so it does not get it; a loop that takes `choices[0]` of every chunk would fail on
    it."""

    def __init__(self, model: str, *, hides_usage: bool, choices: int = 1) -> None:
        self.progress = Progress(model=model)
        self._choices = choices
        self._finished: set[int] = set()
        self.over = False
        self._hides_usage = hides_usage
        self._service_tier: str | None = None

    def read(self, event: Event) -> Part:
        if not event.data:
            return Part("", event.raw)
        if event.data.startswith(DONE):
            if not self._finished:
                raise ProviderError("openai", "unavailable", message="done, and not finished")
            self.progress.finish_reason = self.progress.finish_reason or "other"
            self.over = True
            return Part("", event.raw)
        chunk = _Chunk.model_validate_json(event.data)
        if chunk.error:
            self.progress.failed = True
            raise _failure(chunk.error)
        progress = self.progress
        progress.model = chunk.model or progress.model
        text = "".join([self._text(choice) for choice in chunk.choices])
        self._service_tier = chunk.service_tier or self._service_tier
        if chunk.usage is not None:
            progress.usage = chunk.usage.usage(self._service_tier)
            progress.usage_is_final = True
            if self._hides_usage and not chunk.choices:
                return Part("", b"")
        return Part(text, event.raw)

    def _text(self, choice: _Choice) -> str:
        """The text that a chunk adds to a choice; all that it adds is counted."""
        progress, delta = self.progress, choice.delta or _Delta()
        text = delta.content or delta.refusal or ""
        progress.output_bytes += len(text.encode())
        if delta.model_extra:
            progress.output_bytes += generated_bytes(delta.model_extra, without=NOT_GENERATED)
        if choice.finish_reason is not None:
            self._finished.add(choice.index or 0)
            if len(self._finished) >= self._choices:
                progress.finish_reason = finish_reason(choice.finish_reason)
        return text


def _failure(error: object) -> ProviderError:
    said = error if isinstance(error, dict) else {"message": error}
    words = (str(said.get("code")), str(said.get("type")))
    kinds = (KINDS[word] for word in words if word in KINDS)
    return ProviderError(
        "openai",
        next(kinds, "unavailable"),
        message=str(said.get("message") or ""),
        status=200,
    )
