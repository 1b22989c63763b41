"""Anthropic's wire format: errors, limit headers, messages whole and in events."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import Completion, Part, Progress, UpstreamError
from chatapp.upstreams.event_stream import write
from chatapp.web.errors import ANTHROPIC_REQUEST_ID_HEADER, ErrorReport, new_request_id, sdk_report
from ratelimit_ext import Verdict

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
#: With it, a Claude Code that is signed in at a gateway shows the message as it is.
SPENT_REASON: Final = "org_spend_cap_reached"
UNIFIED: Final = "anthropic-ratelimit-unified"
HEADER_UNITS: Final = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}


class AnthropicFormat:
    """The format of POST /v1/messages."""

    protocol: Final = "anthropic"
    #: If the provider is overloaded: the SDK has an error for it. This server's status is 503.
    overload: Final = 529
    limit_units: Final = HEADER_UNITS.keys()
    request_id_header: Final = ANTHROPIC_REQUEST_ID_HEADER
    hints: Final = (
        ": an address of Anthropic's API begins with /v1, right after the server's name",
        "",
        ": base_url must not end in /v1, which Anthropic's SDK adds",
    )

    def error_body(self, report: ErrorReport) -> dict[str, object]:
        status = report.status
        kind = ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
        if status == 503 and report.retry_is_useless:
            kind = "api_error"  # Claude Code always retries an overloaded_error
        message = report.message
        if report.is_spent:
            # What Claude Code takes for a budget, and shows with the reset in the user's time.
            kind, on = "billing_error", ""
            if report.reset_at is not None:
                day = datetime.fromtimestamp(report.reset_at, UTC)
                on = f" · resets {day:%b} {day.day}"
            message = f"spend limit reached{on} · {message}"
        error = {"type": kind, "message": message, "details": {"error_code": report.code}}
        request_id = report.request_id or new_request_id()
        return {"type": "error", "error": error, "request_id": request_id}

    def spent_headers(self, report: ErrorReport) -> dict[str, str]:
        """Return what Claude Code reads of the refusal by a spent budget besides its body."""
        if not report.is_spent:
            return {}
        at = report.reset_at
        return {
            f"{UNIFIED}-status": "rejected",
            f"{UNIFIED}-overage-disabled-reason": SPENT_REASON,
            **({} if at is None else {f"{UNIFIED}-reset": str(at)}),
        }

    def error_event(self, error: UpstreamError, *, number: int = 0) -> bytes:
        return write(self.error_body(sdk_report(error)), name="error")

    def limit_headers(self, verdict: Verdict) -> dict[str, str]:
        name = f"anthropic-ratelimit-{HEADER_UNITS[verdict.charge.limit.unit]}"
        return {
            f"{name}-limit": str(verdict.charge.limit.capacity),
            f"{name}-remaining": str(verdict.remaining),
            f"{name}-reset": _instant(verdict.reset_after_us),
        }

    def answer_body(self, reply: Completion) -> dict[str, object]:
        return {
            **_message(reply.model),
            "content": [{"type": "text", "text": reply.text}],
            "stop_reason": "end_turn",
            "usage": _bill(reply.usage or Usage(input_tokens=0, output_tokens=0)),
        }

    def events(
        self, parts: Iterable[Part], progress: Progress, fields: Mapping[str, object]
    ) -> Iterator[bytes]:
        usage = _bill(Usage(input_tokens=0, output_tokens=0))
        message = {**_message(progress.model), "content": [], "stop_reason": None, "usage": usage}
        yield _event("message_start", message=message)
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for part in parts:
            delta = {"type": "text_delta", "text": part.text}
            yield _event("content_block_delta", index=0, delta=delta)
        yield _event("content_block_stop", index=0)
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        usage = _bill(progress.usage or Usage(input_tokens=0, output_tokens=0))
        yield _event("message_delta", delta=end, usage=usage)
        yield _event("message_stop")


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
    """Return the instant after that wait, as RFC 3339 writes it, rounded up to a whole second."""
    instant = datetime.now(UTC) + timedelta(microseconds=wait_us + 999_999)
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"
