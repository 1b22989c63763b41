"""Anthropic's way: errors, the headers of its limits, messages whole and in events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from chatapp.blueprints import provider_trouble
from chatapp.blueprints.allowance import Allowance
from chatapp.blueprints.request_id import ANTHROPIC_HEADER, new_request_id
from chatapp.blueprints.trouble import Trouble
from chatapp.conversation import Reply
from chatapp.providers import Part, Progress, ProviderError, Usage
from chatapp.providers.event_stream import write

ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
HEADER_UNITS: Final = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}


class AnthropicShape:
    """For POST /v1/messages."""

    provider: Final = "anthropic"
    request_id_header: Final = ANTHROPIC_HEADER

    def error(self, trouble: Trouble) -> dict[str, object]:
        status = trouble.status
        kind = ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
        if status == 503 and trouble.retry_is_useless:
            kind = "api_error"  # Claude Code retries an overloaded_error, whatever the headers say
        error = {
            "type": kind,
            "message": trouble.sentence,
            "details": {"error_code": trouble.code},
        }
        request_id = trouble.request_id or new_request_id()
        return {"type": "error", "error": error, "request_id": request_id}

    def error_event(self, trouble: Trouble) -> bytes:
        return write(self.error(trouble), name="error")

    def limit_headers(self, allowances: Sequence[Allowance]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for allowance in allowances:
            if unit := HEADER_UNITS.get(allowance.unit):
                headers |= {
                    f"anthropic-ratelimit-{unit}-limit": str(allowance.limit),
                    f"anthropic-ratelimit-{unit}-remaining": str(allowance.remaining),
                    f"anthropic-ratelimit-{unit}-reset": _instant(allowance.reset_after_us),
                }
        return headers

    def answer(self, reply: Reply) -> dict[str, object]:
        return {
            **_message(reply.model),
            "content": [{"type": "text", "text": reply.text}],
            "stop_reason": "end_turn",
            "usage": _bill(reply.usage or Usage(input_tokens=0, output_tokens=0)),
        }

    def rendering(self, model: str, fields: Mapping[str, object]) -> AnthropicRendering:
        return AnthropicRendering(self, model)


class AnthropicRendering:
    """Events of an answer that was made here."""

    def __init__(self, shape: AnthropicShape, model: str) -> None:
        self._shape = shape
        self._model = model

    def start(self) -> bytes:
        usage = _bill(Usage(input_tokens=0, output_tokens=0))
        message = {**_message(self._model), "content": [], "stop_reason": None, "usage": usage}
        block = {"type": "text", "text": ""}
        return _event("message_start", message=message) + _event(
            "content_block_start", index=0, content_block=block
        )

    def part(self, part: Part) -> bytes:
        delta = {"type": "text_delta", "text": part.text}
        return _event("content_block_delta", index=0, delta=delta)

    def end(self, progress: Progress) -> bytes:
        usage = progress.usage or Usage(input_tokens=0, output_tokens=0)
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        return (
            _event("content_block_stop", index=0)
            + _event("message_delta", delta=delta, usage=_bill(usage))
            + _event("message_stop")
        )

    def error(self, error: ProviderError) -> bytes:
        return self._shape.error_event(provider_trouble.told_to_its_own(error))


def _event(name: str, **fields: object) -> bytes:
    return write({"type": name, **fields}, name=name)


def _message(model: str) -> dict[str, object]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_sequence": None,
    }


def _bill(usage: Usage) -> dict[str, int]:
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}


def _instant(wait_us: int) -> str:
    """The instant after that wait, as RFC 3339 writes it, rounded up to a whole second."""
    instant = datetime.now(UTC) + timedelta(microseconds=wait_us + 999_999)
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"
