"""Anthropic's protocol: its messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import ValidationError, field_validator

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
from chatapp.upstreams.answer import (
    Fields,
    OpenFields,
    Tokens,
    at,
    http_date,
    objects_in,
    quota,
    regained_after_s,
    texts_in,
)
from chatapp.upstreams.event_stream import Event
from chatapp.upstreams.sdk import Api, UpstreamProtocol

if TYPE_CHECKING:
    import anthropic

#: The minimum of `thinking.budget_tokens`, and what is left for the answer beside it.
LEAST_THINKING: Final = 1024
LEAST_ANSWER: Final = 256
FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}
#: Speeds and inference regions with the standard price.
STANDARD: Final = frozenset({"", "standard", "global", "not_available"})
#: Blocks with which the model calls a tool of Anthropic's, or a server that the caller named.
RUN_BLOCKS: Final = frozenset({"server_tool_use", "mcp_tool_use"})
#: Fields of a result that are no text.
NOT_COUNTED: Final = frozenset({"type", "tool_use_id", "encrypted_index"})
#: Fields of a block or its delta that the model does not generate.
NOT_GENERATED: Final = frozenset(
    {"type", "id", "tool_use_id", "signature", "citation", "citations"}
)


# -- requests ----------------------------------------------------------------------------------


def _body(turn: Turn, max_tokens: int) -> dict[str, object]:
    """The system messages go into a field of their own."""
    system = "\n\n".join(m.text for m in turn.messages if m.role == "system")
    spoken = [m for m in turn.messages if m.role != "system"]
    return {
        "model": turn.model.name,
        "max_tokens": max_tokens,
        "messages": [{"role": m.role, "content": m.content(_part)} for m in spoken],
        **({"system": system} if system else {}),
    }


def _part(file: File) -> dict[str, object]:
    source = {"type": "base64", "media_type": file.media_type, "data": file.data}
    if file.kind == "image":
        return {"type": "image", "source": source}
    return {"type": "document", "source": source, "title": file.name}


def _bounded(request: RawRequest, bounds: Bounds) -> RawRequest:
    request = _with_bounded_tools(request, bounds)
    wanted, thinking = request.fields.get("max_tokens"), request.fields.get("thinking")
    most_output_tokens = bounds.output_tokens
    if most_output_tokens is None or not isinstance(wanted, int) or wanted <= most_output_tokens:
        return request
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if not (isinstance(budget, int) and budget > most_output_tokens - LEAST_ANSWER):
        return request.with_fields(max_tokens=most_output_tokens)
    # Thinking has a minimum budget, and must leave some tokens for the answer.
    assert isinstance(thinking, dict)
    most = min(wanted, max(most_output_tokens, LEAST_THINKING + LEAST_ANSWER))
    less = {**thinking, "budget_tokens": max(LEAST_THINKING, most // 2)}
    return request.with_fields(max_tokens=most, thinking=less)


def _with_bounded_tools(request: RawRequest, bounds: Bounds) -> RawRequest:
    """Return the request with at most so many uses of Anthropic's tools that search and fetch."""
    listed = request.fields.get("tools")
    if bounds.tool_uses is None or not isinstance(listed, list):
        return request
    tools = []
    for tool in listed:
        kind = str(tool.get("type")) if isinstance(tool, dict) else ""
        most: dict[str, int | None] = {}
        if kind.startswith((WEB_SEARCH, WEB_FETCH)):
            most["max_uses"] = bounds.tool_uses
        if kind.startswith(WEB_FETCH):
            most["max_content_tokens"] = bounds.result_tokens
        lowered = {n: m for n, m in most.items() if m is not None and _is_above(tool.get(n), m)}
        tools.append({**tool, **lowered} if lowered else tool)
    return request.with_fields(tools=tools)


def _is_above(value: object, most: int) -> bool:
    return not isinstance(value, int) or value > most


#: Tools that the client runs, or that cost only tokens, by the start of their type.
FREE_TOOLS: Final = (
    *("custom", "bash_", "text_editor_", "computer_", "browser_", "memory_"),
    *("tool_search_tool_", "tool_reference"),
)
WEB_SEARCH: Final = "web_search_"
WEB_FETCH: Final = "web_fetch_"
#: The tools of Anthropic's, by the start of their type.
RUN_TOOLS: Final = {WEB_SEARCH: "web_search", WEB_FETCH: "web_fetch", "mcp_toolset": "mcp"}
MCP_SERVERS: Final = "mcp_servers"
#: The type and the name of the block of a search.
SEARCH: Final = ("server_tool_use", "web_search")
#: What is billed at another model's price, or is shared by all clients of this server's key.
REFUSED: Final = {
    "fallbacks": "is not supported: another model may answer, at another price",
    "container": "is not supported: all clients of this server would share the container",
    "thread": "is not supported: all clients of this server would share the thread",
}
#: A part of a message that adds a tool.
TOOL_ADDITION: Final = "tool_addition"


def extras_of(fields: Mapping[str, object]) -> Extras:
    """Return what of anthropic 2.13's beta `MessageCreateParams` changes the price."""
    refused = {name: why for name, why in REFUSED.items() if fields.get(name)}
    billing = fields.get("billing_policy")
    if isinstance(billing, dict) and billing.get("bill_to", "self") != "self":
        refused["billing_policy"] = "is not supported: the bill goes to this server"
    tiers = {}
    for name in ("speed", "inference_geo"):
        value = fields.get(name)
        if isinstance(value, str) and value.lower() not in STANDARD:
            tiers[name] = value.lower()
        elif not isinstance(value, str | None):
            refused[name] = "is not a string"
    tools = ["mcp"] if fields.get(MCP_SERVERS) else []
    listed = (("tools", tool) for tool in objects_in(fields, "tools"))
    for name, tool in (*listed, *(("messages", tool) for tool in _added_tools(fields))):
        kind = tool.get("type")
        if run := next((t for k, t in RUN_TOOLS.items() if str(kind).startswith(k)), None):
            tools.append(run)
        elif isinstance(kind, str) and not kind.startswith(FREE_TOOLS):
            refused[name] = f"may not have a tool {kind[:50]!r}, which has no price here"
    thinking = fields.get("thinking")
    thinks = thinking.get("type") if isinstance(thinking, dict) else None
    return Extras(
        tiers=tiers,
        tools=tuple(dict.fromkeys(tools)),
        refused=refused,
        thinks=None if thinks is None else thinks != "disabled",
    )


def _added_tools(fields: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Yield the tools that messages add within a conversation, or that a compaction kept."""
    for message in objects_in(fields, "messages"):
        for part in objects_in(message, "content"):
            for change in (part, *objects_in(part, "tool_changes")):
                tool = change.get("tool") if change.get("type") == TOOL_ADDITION else None
                defined = tool.get("definition", tool) if isinstance(tool, dict) else None
                if isinstance(defined, dict):
                    yield defined


# -- whole answers -----------------------------------------------------------------------------


class Generation(Fields):
    """The tokens of one generation. Anthropic counts tokens that are read from or written to its
    cache beside the input."""

    type: str | None = None
    input_tokens: Tokens
    output_tokens: Tokens = 0
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    hour_tokens: Annotated[Tokens | None, at("cache_creation", "ephemeral_1h_input_tokens")] = None
    short_tokens: Annotated[Tokens | None, at("cache_creation", "ephemeral_5m_input_tokens")] = None
    thinking_tokens: Annotated[Tokens | None, at("output_tokens_details", "thinking_tokens")] = None

    @property
    def all_input_tokens(self) -> int:
        cached = self.cache_read_input_tokens, self.cache_creation_input_tokens
        return self.input_tokens + sum(filter(None, cached))

    @property
    def cache_write_1h_tokens(self) -> int:
        """What was written for an hour. The end of a stream reports all writes without their
        lifetimes: if some of the first were for an hour, all further ones are."""
        hour, written = self.hour_tokens or 0, self.cache_creation_input_tokens or 0
        return hour and max(hour, written - (self.short_tokens or 0))


#: Kinds of generations within one call.
COMPACTION: Final = "compaction"
READING: Final = "message"


class Bill(Generation):
    """What Anthropic calls usage."""

    output_tokens: Tokens
    searches: Annotated[Tokens | None, at("server_tool_use", "web_search_requests")] = None
    speed: str | None = None
    inference_geo: str | None = None
    iterations: list[Generation] | None = None

    @field_validator("iterations", mode="before")
    @classmethod
    def _compactions(cls, value: object) -> object:
        """Also the readings of the model, which the sums contain already."""
        if not isinstance(value, list):
            return None
        listed = [item for item in value if isinstance(item, dict)]
        return [
            item
            for item in listed
            if item.get("type") == COMPACTION
            or (item.get("type") == READING and isinstance(item.get("input_tokens"), int))
        ]

    def usage(self) -> Usage:
        if not self.all_input_tokens:  # compatible servers send 0 for "unknown"
            raise ValueError("no call is without input")
        # The sums leave out the tokens of compacting the context.
        parts = [self, *(i for i in self.iterations or () if i.type == COMPACTION)]
        read = sum(part.cache_read_input_tokens or 0 for part in parts)
        written = sum(part.cache_creation_input_tokens or 0 for part in parts)
        return Usage(
            input_tokens=sum(part.input_tokens for part in parts) + read + written,
            output_tokens=sum(part.output_tokens for part in parts),
            cached_input_tokens=read,
            cache_write_tokens=written,
            reasoning_tokens=sum(part.thinking_tokens or 0 for part in parts),
            cache_write_1h_tokens=sum(part.cache_write_1h_tokens for part in parts),
            tool_calls={"web_search": self.searches} if self.searches else {},
            tiers=_tiers(self.speed, self.inference_geo),
            readings=self._readings(),
        )

    def _readings(self) -> tuple[int, ...]:
        readings = tuple(generation.all_input_tokens for generation in self.iterations or ())
        return readings if len(readings) > 1 else ()


class Block(Fields):
    type: str
    text: str | None = None


class Answer(Fields):
    model: object = None
    content: list[Block]
    stop_reason: object = None


def _completion(answer: object) -> Completion:
    read = Answer.model_validate(answer)
    return Completion(
        text="".join(b.text for b in read.content if b.type == "text" and b.text),
        model=str(read.model or ""),
        finish_reason=FINISH_REASONS.get(str(read.stop_reason), "other"),
    )


def _usage(answer: object) -> Usage:
    return Bill.model_validate(answer.get("usage") if isinstance(answer, dict) else None).usage()


def _tiers(speed: str | None, inference_geo: str | None) -> tuple[str, ...] | None:
    """Return the speed and region of a call, if they change its price."""
    if speed is None and inference_geo is None:
        return None
    words = ((speed or "").lower(), (inference_geo or "").lower())
    return tuple(word[:32] for word in words if word not in STANDARD)


def _generated(answer: object) -> list[str]:
    """Return what was generated for a whole answer, without the results of tools."""
    blocks = filter(_is_generated, objects_in(answer, "content"))
    return texts_in(list(blocks), without=NOT_GENERATED)


def _is_generated(block: Mapping[str, object]) -> bool:
    """Return whether the model generated this block, and not a tool of the provider's."""
    return not str(block.get("type")).endswith("_result")


def _add_result(progress: Progress, part: object) -> None:
    """Count what a result has, at any depth; encrypted texts and files are in base64."""
    match part:
        case str():
            progress.results.append(part)
        case {"type": "base64", "data": str(data)}:
            progress.opaque_bytes += len(data) * 3 // 4
        case {"encrypted_content": str(data), **others}:
            progress.opaque_bytes += len(data) * 3 // 4
            _add_result(progress, others)
        case dict():
            for name, value in part.items():
                if name not in NOT_COUNTED:
                    _add_result(progress, value)
        case list():
            for item in part:
                _add_result(progress, item)


# -- streams -----------------------------------------------------------------------------------


class Delta(OpenFields):
    """What an event adds; its other fields are generated too (arguments, thinking)."""

    text: object = None
    stop_reason: str | None = None


class StreamEvent(Fields):
    """``usage`` is the usage so far; what is absent has not changed since ``first_usage``."""

    model: Annotated[object, at("message", "model")] = None
    first_usage: Annotated[object, at("message", "usage")] = None
    content_block: dict[str, object] | None = None
    delta: Delta | None = None
    usage: object = None


class MessageReader:
    """Reads events. The input tokens come with the first, the output tokens with later ones."""

    def __init__(self, model: str) -> None:
        self.progress = Progress(model=model)
        self.over = False
        self._bill: dict[str, object] = {}

    def read(self, event: Event) -> Part:
        text, progress = "", self.progress
        match event.name:
            case "message_start":
                start = StreamEvent.of_json(event.data)
                self._read_bill(start.first_usage)
                progress.model = str(start.model or progress.model)
            case "content_block_start":
                self._begin_block(StreamEvent.of_json(event.data).content_block or {})
            case "content_block_delta":
                delta = StreamEvent.of_json(event.data).delta or Delta()
                text = delta.text if isinstance(delta.text, str) else ""
                texts = [delta.text, delta.model_extra]
                progress.generated += texts_in(texts, without=NOT_GENERATED)
            case "message_delta":
                end = StreamEvent.of_json(event.data)
                is_readable = self._read_bill(end.usage)
                if end.delta and end.delta.stop_reason is not None:
                    progress.finish_reason = FINISH_REASONS.get(end.delta.stop_reason, "other")
                    progress.usage_is_final = is_readable
            case "message_stop":
                self.over = True
                progress.finish_reason = progress.finish_reason or "other"
            case "error":
                progress.failed = True
                raise _stream_error(event.data)
        return Part(text, event.raw)

    def _begin_block(self, block: dict[str, object]) -> None:
        progress = self.progress
        if not _is_generated(block):
            progress.runs_tools = progress.has_result = True
            _add_result(progress, block)
            return
        progress.runs_tools |= str(block.get("type")) in RUN_BLOCKS
        progress.generated += texts_in(block, without=NOT_GENERATED)
        progress.rereads += progress.has_result
        progress.has_result = False
        if (block.get("type"), block.get("name")) == SEARCH:
            progress.tool_calls = {"web_search": progress.tool_calls.get("web_search", 0) + 1}

    def _read_bill(self, usage: object) -> bool:
        """Return whether the usage can be read, with what has not changed since the start."""
        if isinstance(usage, dict):
            # Some servers send 0 for what they have reported before.
            self._bill |= {n: value for n, value in usage.items() if value or n not in self._bill}
        try:
            self.progress.usage = Bill.model_validate(self._bill).usage()
        except ValueError:
            return False  # not reported, or unreadable
        del self._bill["output_tokens"]  # each later event has its own count of these
        return True


# -- errors ------------------------------------------------------------------------------------

STREAM_KINDS: Final[dict[str, ErrorKind]] = {
    "overloaded_error": "overloaded",
    "rate_limit_error": "rate_limited",
    "billing_error": "quota",
    "timeout_error": "timeout",
    # Their messages may quote a key. The log leaves messages of this kind out.
    "authentication_error": "auth",
    "permission_error": "auth",
}


CAP_CODE: Final = re.compile(r"spend_limit_reached|^contract_|^organization_on_hold$")
#: Whole sentences without “: ”. A complaint about a field begins with the field's name, which a
#: caller may choose, and goes on with a colon.
CAP_MESSAGE: Final = re.compile(
    r"(?:You have reached your specified [\w ]*usage limits|Your credit balance is too low)"
    r"(?:(?!: ).)*"
)


class ErrorReason(Fields):
    error: dict[str, object]
    type: Annotated[str | None, at("error", "type")] = None
    message: Annotated[str | None, at("error", "message")] = None
    code: Annotated[str | None, at("error", "details", "error_code")] = None


def _error_kind(error: anthropic.APIStatusError) -> ErrorKind | None:
    try:
        reason = ErrorReason.model_validate(error.body)
    except ValidationError:
        return None
    if reason.type == "billing_error" or _is_spend_cap(reason):
        return "quota"
    return "overloaded" if reason.type == "overloaded_error" else None


def _stream_error(data: str) -> UpstreamError:
    try:
        reason = ErrorReason.model_validate_json(data)
    except ValidationError:  # an error in any other form
        return UpstreamError("unavailable", message=data, status=200)
    kind = STREAM_KINDS.get(reason.type or "", "unavailable")
    message, wait_s = reason.message or "", None
    if _is_spend_cap(reason):
        kind, wait_s = "quota", regained_after_s(message)
    return UpstreamError(kind, message=message, status=200, retry_after_s=wait_s)


def _is_spend_cap(reason: ErrorReason) -> bool:
    """Return whether an error that looks like a rate limit, or like the caller's mistake, is a cap
    of this server's account: neither a wait nor another request helps."""
    return bool(CAP_CODE.search(reason.code or "") or CAP_MESSAGE.fullmatch(reason.message or ""))


# -- quotas ------------------------------------------------------------------------------------
# https://platform.claude.com/docs/en/api/rate-limits, under “Response headers”.

#: The period of all quotas. The reset does not tell it: it is rounded up to whole seconds.
PERIOD_S: Final = 60
# RFC 3339. Python alone also accepts weeks, any separator, and text after a NUL.
INSTANT: Final = re.compile(r"[0-9-]{10}T[0-9:.]{8,30}(?:Z|[+-][0-9]{2}:[0-9]{2})?")


def quotas(headers: Mapping[str, str]) -> tuple[Quota, ...]:
    """Return the quotas in an answer's headers, each unit at most once, without invalid ones."""
    # Both the reset and the date are of the provider's clock.
    now = http_date(headers.get("date", "")) or datetime.now(UTC)
    reset_s = partial(_seconds_until, now=now)

    def read(unit: QuotaUnit, name: str) -> Quota | None:
        name = f"anthropic-ratelimit-{name}-{{}}"
        return quota(unit, headers, name, reset_s=reset_s, period_s=PERIOD_S)

    parts = read("input_tokens", "input-tokens"), read("output_tokens", "output-tokens")
    # Tokens of both directions only without these: they are a sum by rules that differ by model.
    tokens = parts if any(parts) else (read("tokens", "tokens"),)
    return tuple(reported for reported in (read("requests", "requests"), *tokens) if reported)


def _seconds_until(text: str, now: datetime) -> float | None:
    """Return the time until an RFC 3339 instant; 0 if it is past."""
    text = text.strip()
    if not INSTANT.fullmatch(text):
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:  # the 32nd of a month
        return None
    instant = instant.replace(tzinfo=instant.tzinfo or UTC)
    return max(0.0, (instant - now).total_seconds())


PROTOCOL: Final = UpstreamProtocol(
    name="anthropic",
    client_class="Anthropic",
    request_id_header="request-id",
    apis=(
        Api(
            path="/v1/messages",
            extras=extras_of,
            bounded=_bounded,
            open_stream=lambda request: (request, MessageReader(str(request.fields.get("model")))),
            usage=_usage,
            generated=_generated,
        ),
    ),
    body=_body,
    completion=_completion,
    count_path="/v1/messages/count_tokens",
    quotas=quotas,
    quotas_by_direction=True,
    error_kind=_error_kind,
)
