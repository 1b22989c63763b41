"""OpenAI's way: errors, the headers of its limits, chat completions whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from chatapp.blueprints import provider_trouble
from chatapp.blueprints.allowance import Allowance
from chatapp.blueprints.request_id import HEADER
from chatapp.blueprints.trouble import Trouble
from chatapp.conversation import Reply
from chatapp.providers import Part, Progress, ProviderError, Usage
from chatapp.providers.event_stream import write

ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "requests",
    503: "service_unavailable_error",
}
# A limit in input or output tokens has no header of its own there.
UNITS: Final = ("requests", "tokens")


class OpenAIShape:
    """For POST /v1/chat/completions."""

    provider: Final = "openai"
    request_id_header: Final = HEADER

    def error(self, trouble: Trouble) -> dict[str, object]:
        status = trouble.status
        kind = ERROR_TYPES.get(status) or (
            "invalid_request_error" if status < 500 else "server_error"
        )
        if status == 503 and trouble.retry_is_useless:
            kind = "server_error"
        if status == 429:
            kind = "insufficient_quota" if trouble.unit == "usd" else trouble.unit or "requests"
        error = {
            "message": trouble.sentence,
            "type": kind,
            "param": trouble.param,
            "code": trouble.code,
        }
        return {"error": error}

    def error_event(self, trouble: Trouble) -> bytes:
        return write(self.error(trouble))

    def limit_headers(self, allowances: Sequence[Allowance]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for allowance in allowances:
            if allowance.unit in UNITS:
                headers |= {
                    f"x-ratelimit-limit-{allowance.unit}": str(allowance.limit),
                    f"x-ratelimit-remaining-{allowance.unit}": str(allowance.remaining),
                    f"x-ratelimit-reset-{allowance.unit}": duration(allowance.reset_after_us),
                }
        return headers

    def answer(self, reply: Reply) -> dict[str, object]:
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        return {
            "id": _new_id(),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": reply.model,
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            ],
            "usage": _bill(reply.usage or Usage(input_tokens=0, output_tokens=0)),
        }

    def rendering(self, model: str, fields: Mapping[str, object]) -> OpenAIRendering:
        options = fields.get("stream_options")
        wants_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        return OpenAIRendering(self, model, wants_usage=wants_usage)


class OpenAIRendering:
    """Chunks of an answer that was made here."""

    def __init__(self, shape: OpenAIShape, model: str, *, wants_usage: bool) -> None:
        self._shape = shape
        self._wants_usage = wants_usage
        self._common = {
            "id": _new_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def start(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def part(self, part: Part) -> bytes:
        return self._chunk({"content": part.text})

    def end(self, progress: Progress) -> bytes:
        last = self._chunk({}, finish_reason="stop")
        if self._wants_usage and progress.usage is not None:
            last += write({**self._common, "choices": [], "usage": _bill(progress.usage)})
        return last + write("[DONE]")

    def error(self, error: ProviderError) -> bytes:
        return self._shape.error_event(provider_trouble.told_to_its_own(error))

    def _chunk(self, delta: dict[str, str], *, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return write({**self._common, "choices": [choice]})


def duration(wait_us: int) -> str:
    """A duration as OpenAI writes it.

    >>> [duration(us) for us in (0, 12_000, 1_500_000, 360_000_000, 3_723_000_000)]
    ['0s', '12ms', '1.5s', '6m0s', '1h2m3s']
    """
    milliseconds = -(-wait_us // 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest_ms = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest_ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _bill(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
