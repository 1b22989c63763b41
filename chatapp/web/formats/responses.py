"""The format of OpenAI's Responses API: answers of the offline model, whole and in events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Final

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import Completion, Part, Progress, UpstreamError
from chatapp.upstreams.event_stream import write
from chatapp.web.errors import ErrorReport, sdk_report
from chatapp.web.formats.openai import OpenAIService

#: Fields that every response has. Nothing is stored.
COMMON: Final[Mapping[str, object]] = {
    "object": "response",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}


class ResponsesFormat(OpenAIService):
    """The format of POST /v1/responses."""

    def error_event(self, error: UpstreamError, *, number: int = 0) -> bytes:
        """With the error in both forms: OpenAI documents the flat one, its SDK raises the other."""
        report = sdk_report(error)
        flat = {"code": report.code, "message": report.message, "param": report.param}
        return _event("error", number, **flat, **self.error_body(report))

    def _error(self, report: ErrorReport) -> dict[str, object]:
        """Codex sleeps through any Retry-After, also for a day. It shows a usage limit instead, and
        when it ends."""
        error = super()._error(report)
        if report.status == 429 and report.retry_is_useless:
            error["type"] = "usage_limit_reached"
            if report.reset_at is not None:
                error["resets_at"] = report.reset_at
        return error

    def answer_body(self, reply: Completion) -> dict[str, object]:
        item = _item(_id("msg"), reply.text)
        usage = reply.usage or Usage(input_tokens=0, output_tokens=0)
        return _response(_id("resp"), reply.model, "completed", output=[item], usage=usage)

    def events(
        self, parts: Iterable[Part], progress: Progress, fields: Mapping[str, object]
    ) -> Iterator[bytes]:
        """Yield those of one item with one part, a text."""
        id_, item_id, number, texts = _id("resp"), _id("msg"), count(), []
        place = {"item_id": item_id, "output_index": 0, "content_index": 0}

        def event(kind: str, **fields: object) -> bytes:
            return _event(f"response.{kind}", next(number), **fields)

        response = _response(id_, progress.model, "in_progress", output=[], usage=None)
        yield event("created", response=response)
        yield event("in_progress", response=response)
        item = {**_item(item_id, ""), "status": "in_progress", "content": []}
        yield event("output_item.added", output_index=0, item=item)
        yield event("content_part.added", **place, part=_part(""))
        for part in parts:
            texts.append(part.text)
            yield event("output_text.delta", **place, delta=part.text, logprobs=[])
        text = "".join(texts)
        yield event("output_text.done", **place, text=text, logprobs=[])
        yield event("content_part.done", **place, part=_part(text))
        item = _item(item_id, text)
        yield event("output_item.done", output_index=0, item=item)
        usage = progress.usage or Usage(input_tokens=0, output_tokens=0)
        response = _response(id_, progress.model, "completed", output=[item], usage=usage)
        yield event("completed", response=response)


def _event(kind: str, number: int, **fields: object) -> bytes:
    return write({"type": kind, "sequence_number": number, **fields}, name=kind)


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _response(
    id_: str, model: str, status: str, *, output: list[object], usage: Usage | None
) -> dict[str, object]:
    state = {"id": id_, "created_at": int(time.time()), "model": model, "status": status}
    return {**COMMON, **state, "output": output, "usage": usage and _bill(usage)}


def _item(id_: str, text: str) -> dict[str, object]:
    message = {"id": id_, "type": "message", "role": "assistant", "status": "completed"}
    return {**message, "content": [_part(text)]}


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _bill(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
