"""The events of a streamed message."""

from __future__ import annotations

from typing import Final

from pydantic import ConfigDict, ValidationError

from chatapp.providers import ErrorKind, Part, Progress, ProviderError, generated_bytes
from chatapp.providers.anthropic.answer import (
    NOT_GENERATED,
    Bill,
    Fields,
    Tokens,
    finish_reason,
    is_generated,
)
from chatapp.providers.anthropic.failures import says_spend_cap
from chatapp.server_sent_events import Event

KINDS: Final[dict[str, ErrorKind]] = {
    "overloaded_error": "overloaded",
    "rate_limit_error": "rate_limited",
    "billing_error": "quota",
    "timeout_error": "timeout",
    # Their texts may quote a key, and the log leaves those of this kind out.
    "authentication_error": "auth",
    "permission_error": "auth",
}


class _Started(Fields):
    model: str
    usage: Bill


class _Start(Fields):
    message: _Started


class _BlockStart(Fields):
    content_block: dict[str, object] | None = None


class _Delta(Fields):
    """What an event adds; besides text, whatever else is generated (arguments, thinking)."""

    model_config = ConfigDict(extra="allow", strict=True)

    text: str | None = None


class _BlockDelta(Fields):
    delta: _Delta


class _Counted(Fields):
    """The usage so far; what is absent is as it was at the start."""

    model_config = ConfigDict(extra="allow", strict=True)

    input_tokens: Tokens | None = None
    output_tokens: Tokens


class _Stop(Fields):
    stop_reason: str | None = None


class _MessageDelta(Fields):
    delta: _Stop
    usage: _Counted


class _Details(Fields):
    error_code: str | None = None


class _Reason(Fields):
    type: str | None = None
    message: str | None = None
    details: _Details | None = None


class _Failure(Fields):
    error: _Reason


class EventReader:
    """Reads events: the input's tokens come at the start, the output's grow with the message."""

    def __init__(self, model: str) -> None:
        self.progress = Progress(model=model)
        self.over = False
        self._bill: Bill | None = None

    def read(self, event: Event) -> Part:
        text = ""
        match event.name:
            case "message_start":
                started = _Start.model_validate_json(event.data).message
                self._bill = started.usage
                self.progress.model = started.model
                self.progress.usage = started.usage.usage()
            case "content_block_start":
                block = _BlockStart.model_validate_json(event.data).content_block
                if is_generated(block):
                    self.progress.output_bytes += generated_bytes(block, without=NOT_GENERATED)
            case "content_block_delta":
                text = self._delta(_BlockDelta.model_validate_json(event.data).delta)
            case "message_delta":
                self._counted(_MessageDelta.model_validate_json(event.data))
            case "message_stop":
                self.over = True
                if self.progress.finish_reason is None:
                    self.progress.finish_reason = "other"
            case "error":
                self.progress.failed = True
                raise _failure(event.data)
        return Part(text, event.raw)

    def _delta(self, delta: _Delta) -> str:
        said = delta.text or ""
        self.progress.output_bytes += len(said.encode())
        if delta.model_extra:
            self.progress.output_bytes += generated_bytes(delta.model_extra, without=NOT_GENERATED)
        return said

    def _counted(self, message: _MessageDelta) -> None:
        before = self._bill.model_dump() if self._bill else {"input_tokens": 0}
        counted = message.usage.model_dump(exclude_none=True)
        self._bill = Bill.model_validate({**before, **counted})
        self.progress.usage = self._bill.usage()
        if message.delta.stop_reason is not None:
            self.progress.finish_reason = finish_reason(message.delta.stop_reason)
            self.progress.usage_is_final = True


def _failure(data: str) -> ProviderError:
    try:
        reason = _Failure.model_validate_json(data).error
    except ValidationError:  # in whatever form: it is an error
        return ProviderError("anthropic", "unavailable", message=data, status=200)
    kind = KINDS.get(reason.type or "", "unavailable")
    if says_spend_cap(reason.details.error_code if reason.details else None):
        kind = "quota"
    return ProviderError("anthropic", kind, message=reason.message or "", status=200)
