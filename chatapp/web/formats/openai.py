"""OpenAI's wire format: errors, limit headers, chat completions whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import Completion, Part, Progress, UpstreamError
from chatapp.upstreams.event_stream import write
from chatapp.web.errors import REQUEST_ID_HEADER, ErrorReport, sdk_report
from ratelimit_ext import Verdict

ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "requests",
    503: "service_unavailable_error",
}


class OpenAIService:
    """OpenAI's errors and headers, which all of its formats share."""

    protocol: Final = "openai"
    overload: Final = 503
    request_id_header: Final = REQUEST_ID_HEADER
    #: OpenAI has no headers for limits in input or output tokens.
    limit_units: Final = ("requests", "tokens")
    #: What to correct in the base_url, by the number of /v1 at the beginning of an unknown address:
    #: 0, 1, or 2 for more.
    hints: Final = (
        ": the base_url of OpenAI's SDK must end in /v1",
        "",
        ": base_url must end in a single /v1",
    )

    def error_body(self, report: ErrorReport) -> dict[str, object]:
        return {"error": self._error(report)}

    def _error(self, report: ErrorReport) -> dict[str, object]:
        status = report.status
        kind = ERROR_TYPES.get(status) or (
            "invalid_request_error" if status < 500 else "server_error"
        )
        if status == 503 and report.retry_is_useless:
            kind = "server_error"
        if status == 429:
            kind = "insufficient_quota" if report.unit == "usd" else report.unit or "requests"
        return {"message": report.message, "type": kind, "param": report.param, "code": report.code}

    def spent_headers(self, _: ErrorReport) -> dict[str, str]:
        return {}

    def limit_headers(self, verdict: Verdict) -> dict[str, str]:
        unit = verdict.charge.limit.unit
        return {
            f"x-ratelimit-limit-{unit}": str(verdict.charge.limit.capacity),
            f"x-ratelimit-remaining-{unit}": str(verdict.remaining),
            f"x-ratelimit-reset-{unit}": duration(verdict.reset_after_us),
        }


class OpenAIFormat(OpenAIService):
    """The format of POST /v1/chat/completions."""

    def error_event(self, error: UpstreamError, *, number: int = 0) -> bytes:
        return write(self.error_body(sdk_report(error)))

    def answer_body(self, reply: Completion) -> dict[str, object]:
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

    def events(
        self, parts: Iterable[Part], progress: Progress, fields: Mapping[str, object]
    ) -> Iterator[bytes]:
        common = {
            "id": _new_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": progress.model,
        }

        def chunk(delta: dict[str, str], *, finish_reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return write({**common, "choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        for part in parts:
            yield chunk({"content": part.text})
        yield chunk({}, finish_reason="stop")
        options = fields.get("stream_options")
        wants_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        if wants_usage and progress.usage is not None:
            yield write({**common, "choices": [], "usage": _bill(progress.usage)})
        yield write("[DONE]")


def duration(wait_us: int) -> str:
    """Return a duration as OpenAI writes it.

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
