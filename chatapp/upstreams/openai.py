"""OpenAI's protocol, and its chat completions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, ValidationError

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import (
    Bounds,
    Completion,
    ErrorKind,
    Extras,
    File,
    FinishReason,
    Part,
    Progress,
    Quota,
    QuotaUnit,
    RawRequest,
    Turn,
    UpstreamError,
)
from chatapp.upstreams.answer import Fields, OpenFields, Tokens, at, objects_in, quota, texts_in
from chatapp.upstreams.event_stream import Event
from chatapp.upstreams.openai_responses import COMPACTION, RESPONSES
from chatapp.upstreams.openai_service import (
    CAPS,
    ChatBill,
    common_extras,
    refused_parts,
    stream_error,
    tiers_of,
)
from chatapp.upstreams.sdk import Api, UpstreamProtocol

if TYPE_CHECKING:
    import openai

#: The fields that limit an answer's length; the first is the current one.
BOUNDS: Final = ("max_completion_tokens", "max_tokens")
FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "refused",
}
#: Tools of chat completions, which the client runs.
TOOLS: Final = frozenset({"function", "custom"})
#: Fields of a message that the model does not generate.
NOT_GENERATED: Final = frozenset({"role", "type", "id", "index"})
_texts: Final = partial(texts_in, without=NOT_GENERATED)


# -- requests ----------------------------------------------------------------------------------


def _body(turn: Turn, max_tokens: int) -> dict[str, object]:
    return {
        "model": turn.model.name,
        "messages": [{"role": m.role, "content": m.content(_part)} for m in turn.messages],
        "max_completion_tokens": max_tokens,
    }


def _part(file: File) -> dict[str, object]:
    if file.kind == "image":
        return {"type": "image_url", "image_url": {"url": file.url}}
    return {"type": "file", "file": {"filename": file.name, "file_data": file.url}}


def _bounded(request: RawRequest, bounds: Bounds) -> RawRequest:
    if (most_output_tokens := bounds.output_tokens) is None:
        return request
    sent = [name for name in BOUNDS if isinstance(request.fields.get(name), int)]
    lowered = {
        name: most_output_tokens
        for name in sent or BOUNDS[:1]
        if not sent or request.fields[name] > most_output_tokens  # type: ignore[operator]
    }
    return request.with_fields(**lowered)


def _open_stream(request: RawRequest) -> tuple[RawRequest, ChunkReader]:
    """Every stream asks for its usage; the reader hides it from a client that did not."""
    options, choices = request.fields.get("stream_options"), request.fields.get("n")
    options, hides_usage = {} if options is None else options, False
    if isinstance(options, dict) and options.get("include_usage") is not True:  # 1 is not True
        hides_usage = True
        fields = {**request.fields, "stream_options": {**options, "include_usage": True}}
        try:
            raw = json.dumps(fields, allow_nan=False).encode()
        except ValueError as error:  # Python parses 1e999 in JSON, and cannot write it
            raise UpstreamError("bad_request", message=str(error)) from error
        request = request._replace(raw=raw, fields=fields)
    return request, ChunkReader(
        str(request.fields.get("model")),
        hides_usage=hides_usage,
        choices=choices if isinstance(choices, int) else 1,
    )


def extras_of(fields: Mapping[str, object]) -> Extras:
    """Return what of openai 3.57's `CompletionCreateParams` changes the price."""
    common = common_extras(fields)
    refused = {**common.refused, **refused_parts(fields, "messages")}
    if fields.get("web_search_options") is not None:
        refused["web_search_options"] = "has no price here"
    modalities = fields.get("modalities")
    if fields.get("audio") is not None or modalities not in (None, [], ["text"]):
        refused["modalities"] = "may only be text; others, such as audio, have no price here"
    for tool in objects_in(fields, "tools"):
        kind = tool.get("type")
        if isinstance(kind, str) and kind not in TOOLS:  # OpenAI has no others, but upstreams do
            refused["tools"] = f"may not have a tool {kind[:50]!r}, which has no price here"
    return common._replace(
        refused=refused,
        thinks=False if fields.get("reasoning_effort") == "none" else None,
        effort=str(fields.get("reasoning_effort") or ""),
        predicts=bool(fields.get("prediction")),
    )


# -- whole answers -----------------------------------------------------------------------------


class AnswerBill(Fields):
    usage: ChatBill
    service_tier: str | None = None


class Text(Fields):
    content: object = None  # a text, or parts, as some compatible servers send
    refusal: str | None = None


class Choice(Fields):
    finish_reason: object = None
    message: Text


class Answer(Fields):
    model: object = None
    choices: Annotated[list[Choice], Field(min_length=1)]


def _completion(answer: object) -> Completion:
    read = Answer.model_validate(answer)
    choice = read.choices[0]
    refused = choice.message.refusal
    return Completion(
        text=_text(choice.message.content) or refused or "",
        model=str(read.model or ""),
        finish_reason="refused" if refused else _finish_reason(choice.finish_reason),
    )


def _finish_reason(reason: object) -> FinishReason:
    return FINISH_REASONS.get(str(reason), "other")


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = objects_in({"content": content}, "content")
    return "".join(str(part.get("text")) for part in parts if part.get("type") == "text")


def _usage(answer: object) -> Usage:
    bill = AnswerBill.model_validate(answer)
    return bill.usage.usage(tiers_of(bill.service_tier))


def _generated(answer: object) -> list[str]:
    """Return the texts of an answer; raises the error that OpenRouter sends in its place."""
    if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
        raise stream_error(answer["error"])
    messages = [choice.get("message") for choice in objects_in(answer, "choices")]
    return _texts(messages)


# -- streams -----------------------------------------------------------------------------------

DONE: Final = "[DONE]"


class Delta(OpenFields):
    """What a chunk adds; its other fields are generated too (tool calls, reasoning)."""

    content: Any = None
    refusal: Any = None


class DeltaChoice(Fields):
    index: int | None = None
    delta: Delta | None = None
    finish_reason: object = None


class Chunk(Fields):
    model: str | None = None
    choices: list[DeltaChoice] | None = None
    #: In any form, as in a whole answer: the chunk is delivered also with an unreadable one.
    usage: Annotated[ChatBill | object, Field(union_mode="left_to_right")] | None = None
    service_tier: str | None = None
    error: object = None  # an error in any form


#: `Chunk.model_validate_json`, without its own function around it.
_read_chunk: Final[Callable[[str], Chunk]] = Chunk.__pydantic_validator__.validate_json
#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__


class ChunkReader:
    """Reads the chunks of so many ``choices``. ``hides_usage``: the client did not ask for the
    chunk with the usage; code that reads `choices[0]` of every chunk would fail on it."""

    def __init__(self, model: str, *, hides_usage: bool, choices: int = 1) -> None:
        self.progress = Progress(model=model)
        self.over = False
        self._choices = choices
        self._finished: set[int] = set()
        self._hides_usage = hides_usage

    def read(self, event: Event) -> Part:
        if not event.data or event.data.startswith(DONE):
            return self._without_chunk(event)
        try:
            chunk = _read_chunk(event.data)
        except ValidationError:
            chunk = Chunk.of_json(event.data)
        if chunk.error:
            self.progress.failed = True
            raise stream_error(chunk.error)
        progress = self.progress
        progress.model = chunk.model or progress.model
        choices, text = chunk.choices or (), ""
        for choice in choices:  # everything generated is counted
            delta = choice.delta
            if delta is not None:
                if added := delta.content or delta.refusal:
                    is_text = isinstance(added, str)
                    text += added if is_text else _text(added)
                    progress.generated += (added,) if is_text else _texts(added)
                if delta.__pydantic_extra__:
                    progress.generated += _texts(delta.__pydantic_extra__)
            if choice.finish_reason:  # some servers send an empty text until the end
                self._finish(choice)
        progress.tiers = tiers_of(chunk.service_tier) if chunk.service_tier else progress.tiers
        if isinstance(chunk.usage, ChatBill):  # compatible servers report it so far in any chunk
            progress.usage = chunk.usage.usage(progress.tiers)
            is_over = not choices and bool(self._finished)
            progress.usage_is_final = is_over or progress.finish_reason is not None
        is_hidden = self._hides_usage and chunk.usage is not None and not choices
        return _new(Part, (text, b"" if is_hidden else event.raw))

    def _without_chunk(self, event: Event) -> Part:
        if event.data:
            if not self._finished:
                raise UpstreamError("unavailable", message="[DONE] before a finish_reason")
            self.progress.finish_reason = self.progress.finish_reason or "other"
            self.over = True
        return Part("", event.raw)

    def _finish(self, choice: DeltaChoice) -> None:
        self._finished.add(choice.index or 0)
        if len(self._finished) >= self._choices:
            self.progress.finish_reason = _finish_reason(choice.finish_reason)


# -- embeddings --------------------------------------------------------------------------------


class Embeddings(Fields):
    prompt_tokens: Annotated[Tokens, Field(ge=1), at("usage", "prompt_tokens")]


EMBEDDINGS: Final = Api(
    path="/embeddings",
    extras=common_extras,
    bounded=lambda request, _: request,
    usage=lambda answer: Usage(Embeddings.model_validate(answer).prompt_tokens, output_tokens=0),
    generated=lambda _: [],
)


# -- errors ------------------------------------------------------------------------------------

#: The start of a 429 for a request above the quota of a whole minute: "Request too large for gpt-4o
#: in organization … on tokens per min (TPM): Limit 30000, Requested 36278."
TOO_LARGE: Final = "Request too large"
#: In the code or the message of a 429 when the tier `flex` is full; other tiers may not be:
#: https://platform.openai.com/docs/guides/flex-processing.
NO_FLEX: Final = "resource unavailable"


def _error_kind(error: openai.APIStatusError) -> ErrorKind | None:
    if CAPS.intersection(filter(None, (error.code, error.type))):
        return "quota"  # mostly a 429, but waiting does not help
    if error.status_code == 429 and TOO_LARGE in error.message:
        return "too_large"  # nor here; only the message distinguishes it
    words = f"{error.code} {error.message}".lower().replace("_", " ")
    if error.status_code == 429 and NO_FLEX in words:
        return "unavailable"
    return None


# -- quotas ------------------------------------------------------------------------------------
# https://platform.openai.com/docs/guides/rate-limits, under “Rate limits in headers”.

SECONDS_PER: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
STEP: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(h|ms|m|s)")
DURATION: Final = re.compile(rf"(?:{STEP.pattern}){{1,4}}")


#: The quotas and their headers. The organisation's tokens and the project's: a call uses both.
QUOTAS: Final[tuple[tuple[QuotaUnit, str], ...]] = (
    ("requests", "x-ratelimit-{}-requests"),
    ("tokens", "x-ratelimit-{}-tokens"),
    ("tokens", "x-ratelimit-{}-project-tokens"),
)


def quotas(headers: Mapping[str, str]) -> tuple[Quota, ...]:
    """Return the quotas in an answer's headers, each unit at most once, without invalid ones."""
    requests, *tokens = [quota(unit, headers, name, reset_s=_duration_s) for unit, name in QUOTAS]
    reported = [quota_ for quota_ in tokens if quota_]
    if len(reported) > 1:
        reported = [_both(reported)]
    return tuple([requests, *reported] if requests else reported)


def _both(tokens: Sequence[Quota]) -> Quota:
    """Return what both leave, as one quota. Its limit is always the smaller one: if it changed with
    the quota that has less left, use of the larger would be mistaken for use of the smaller."""
    smaller = min(tokens, key=lambda quota_: quota_.limit)
    return smaller._replace(remaining=min(smaller.limit, *(quota_.remaining for quota_ in tokens)))


def _duration_s(text: str) -> float | None:
    """Return the seconds in `12ms`, `6m0s` or `1h2m3s`; compatible servers send bare seconds."""
    text = text.strip()
    for duration in (text, f"{text}s"):
        if DURATION.fullmatch(duration):
            steps = STEP.findall(duration)
            return sum(float(count) * SECONDS_PER[unit] for count, unit in steps)
    return None


PROTOCOL: Final = UpstreamProtocol(
    name="openai",
    client_class="OpenAI",
    request_id_header="x-request-id",
    apis=(
        Api(
            path="/chat/completions",
            extras=extras_of,
            bounded=_bounded,
            open_stream=_open_stream,
            usage=_usage,
            generated=_generated,
        ),
        RESPONSES,
        COMPACTION,
        EMBEDDINGS,
    ),
    body=_body,
    completion=_completion,
    count_path="/responses/input_tokens",
    quotas=quotas,
    quotas_by_direction=False,
    error_kind=_error_kind,
)
