"""OpenAI's Responses API: what is priced in its requests, and its answers, whole and in events."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Final

from pydantic import ValidationError

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import Bounds, Extras, FinishReason, Part, Progress, RawRequest
from chatapp.upstreams.answer import Fields, Tokens, at, objects_in, readings_of, texts_in
from chatapp.upstreams.event_stream import Event
from chatapp.upstreams.openai_service import (
    Bill,
    common_extras,
    refused_parts,
    stream_error,
    tiers_of,
)
from chatapp.upstreams.sdk import Api

#: OpenAI rejects a lower `max_output_tokens`.
LEAST_OUTPUT_TOKENS: Final = 16
#: Tools that the client runs, and OpenAI's tools that cost only tokens.
FREE_TOOLS: Final = frozenset(
    {
        *("function", "custom", "local_shell", "apply_patch", "tool_search"),
        *("computer", "computer_use_preview"),
    }
)
#: A server that the caller names; OpenAI calls it.
MCP: Final = "mcp"
#: Tools that OpenAI runs and bills by use, by the start of their type: the first one counts.
BILLED_TOOLS: Final = (
    *("web_search_preview", "web_search", "file_search", "code_interpreter", "image_generation"),
)
#: The tool of each type of call in an answer.
TOOL_CALLS: Final = {f"{name}_call": name for name in BILLED_TOOLS}
SEARCH_TOOLS: Final = BILLED_TOOLS[:2]
#: The calls of tools that OpenAI runs before the model continues.
RUN_CALLS: Final = frozenset({*TOOL_CALLS, "mcp_call"})
#: The fields of an item that the model reads when it continues, where OpenAI shows them.
RESULTS: Final = ("output", "outputs", "results", "tools")
#: What is unknown here, or shared by all clients of this server's key.
REFUSED: Final = {
    "conversation": "is not supported; send previous_response_id or all messages instead",
    "prompt": "is not supported: its content and its tools are unknown here",
}
#: The type of an item of an input that only names an item of a stored response.
REFERENCE: Final = "item_reference"
#: Fields of an item that the model does not generate, or that are not billed as output.
NOT_GENERATED: Final = frozenset(
    {
        *("id", "type", "status", "role", "call_id", "annotations", "logprobs", "summary"),
        *("encrypted_content", "result", "results", "output", "outputs", "sources", "tools"),
        *("server_label", "container_id", "created_by"),
    }
)
#: Of these, the ones that it does not read again either.
NOT_READ: Final = NOT_GENERATED - {*RESULTS}
ID: Final = re.compile(r"[\w-]{1,128}", re.ASCII)
#: A summary is written besides the reasoning: it says nothing about how much of it there was.
SUMMARY: Final = "response.reasoning_summary"
ENDS: Final[dict[str, FinishReason | None]] = {
    "response.completed": "stop",
    "response.incomplete": "length",
    "response.failed": None,
    "response.cancelled": None,
}


# -- requests ----------------------------------------------------------------------------------


def extras_of(fields: Mapping[str, object]) -> Extras:
    """Return what of openai 3.57's `ResponseCreateParams` changes the price."""
    common = common_extras(fields)
    refused = {name: why for name, why in REFUSED.items() if fields.get(name)}
    refused |= refused_parts(fields, "input")
    reasoning = fields.get("reasoning")
    options = reasoning if isinstance(reasoning, dict) else {}
    if options.get("mode") not in (None, "standard"):
        refused["reasoning"] = "may only have the mode 'standard'; others have no price here"
    tools = []
    for name, tool in _all_tools(fields):
        kind = tool.get("type")
        if not isinstance(kind, str):
            continue  # OpenAI refuses it
        if kind == MCP:
            tools.append(MCP)
        elif billed := _billed(kind):
            tools.append(billed)
        elif kind not in FREE_TOOLS and not _is_local_shell(tool):
            refused[name] = f"may not have a tool {kind[:50]!r}, which has no price here"
    return common._replace(
        refused={**common.refused, **refused},
        tools=tuple(dict.fromkeys(tools)),
        thinks=False if options.get("effort") == "none" else None,
        effort=str(options.get("effort") or ""),
    )


def is_reference(item: Mapping[str, object]) -> bool:
    """Return whether an item only names one of a stored response; OpenAI requires no type."""
    kind = item.get("type")
    return kind == REFERENCE or (kind is None and "role" not in item)


def is_looked_up(item: Mapping[str, object]) -> bool:
    """Return whether OpenAI may look up the rest of it by its id: reasoning, or an image."""
    if item.get("type") == "reasoning":
        return not any(map(_has_text, (item.get("encrypted_content"), item.get("content"))))
    return item.get("type") == "image_generation_call" and not item.get("result")


def _has_text(value: object) -> bool:
    """Return whether a text, or any text of these parts, is more than blank."""
    return any(text.strip() for text in texts_in(value, without={"type"}))


def _all_tools(fields: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the tools of a request, and those that its input adds, each with its field."""
    yield from (("tools", tool) for tool in _tools(fields))
    for item in objects_in(fields, "input"):
        yield from (("input", tool) for tool in _tools(item))


def _tools(fields: object) -> Iterator[dict[str, object]]:
    """Yield the tools of a request or an item, also those within a namespace."""
    for tool in objects_in(fields, "tools"):
        if tool.get("type") == "namespace":
            yield from _tools(tool)
        else:
            yield tool


def _billed(kind: str) -> str | None:
    """Return the name under which a tool's uses have a price; None if OpenAI bills none."""
    return next((name for name in BILLED_TOOLS if kind.startswith(name)), None)


def _is_local_shell(tool: Mapping[str, object]) -> bool:
    """Return whether the client runs the tool's commands. Otherwise OpenAI does, in a container."""
    where = tool.get("environment")
    is_local = where is None or (isinstance(where, dict) and where.get("type") == "local")
    return is_local and tool.get("type") == "shell"


def _bounded(request: RawRequest, bounds: Bounds) -> RawRequest:
    changed = {}
    if bounds.output_tokens is not None:
        changed["max_output_tokens"] = max(LEAST_OUTPUT_TOKENS, bounds.output_tokens)
    if bounds.tool_uses is not None:
        changed["max_tool_calls"] = bounds.tool_uses
    fields = request.fields
    lower = (n for n, most in changed.items() if isinstance(v := fields.get(n), int) and v <= most)
    for name in list(lower):
        del changed[name]
    return request.with_fields(**changed)


# -- whole answers -----------------------------------------------------------------------------


class Answer(Fields):
    usage: Bill
    service_tier: str | None = None
    searches: Annotated[Tokens | None, at("tool_usage", "web_search", "num_requests")] = None


def _usage(answer: object) -> Usage:
    parsed = Answer.model_validate(answer)
    bill, tool_calls = parsed.usage, _tool_calls(answer)
    if parsed.searches is not None:
        tool_calls[_search_tool(answer)] = parsed.searches  # OpenAI's own count
    return bill.usage(tiers_of(parsed.service_tier))._replace(
        tool_calls={name: count for name, count in tool_calls.items() if count},
        readings=readings_of(bill.input_tokens, _added(answer)),
    )


def _added(answer: object) -> list[list[str]]:
    """Return what each further reading has in addition to the one before: everything until the
    model went on after tools of the provider."""
    added: list[list[str]] = []
    since: list[str] = []
    has_result = False
    for item in objects_in(answer, "output"):
        if has_result:
            added.append(since)
            since = []
        has_result = str(item.get("type")) in RUN_CALLS
        since += texts_in(item, without=NOT_READ)
    return added


def _tool_calls(answer: object) -> Counter[str]:
    names = filter(None, map(_tool_of, objects_in(answer, "output")))
    return Counter(_search_tool(answer) if name == "web_search" else name for name in names)


def _tool_of(item: Mapping[str, object]) -> str | None:
    """Return the billed tool that an item is a use of; of the web search, only searches count."""
    action = item.get("action")
    if isinstance(action, dict) and action.get("type") not in (None, "search"):
        return None
    return TOOL_CALLS.get(str(item.get("type")))


def _search_tool(answer: object) -> str:
    """Return the name of the search tool that the request had; its preview has another price."""
    kinds = [str(tool.get("type")) for tool in _tools(answer)]
    return next((name for kind in kinds if (name := _billed(kind)) in SEARCH_TOOLS), "web_search")


def _ids(fields: Mapping[str, object], answer: object) -> tuple[str, ...]:
    """Return the ids of a response and of its items, if OpenAI keeps them."""
    if not isinstance(answer, dict) or False in (fields.get("store"), answer.get("store")):
        return ()
    ids = (item.get("id") for item in (answer, *objects_in(answer, "output")))
    return tuple(id_ for id_ in ids if isinstance(id_, str) and ID.fullmatch(id_))


def _generated(answer: object) -> list[str]:
    return texts_in(objects_in(answer, "output"), without=NOT_GENERATED)


# -- streams -----------------------------------------------------------------------------------


class StreamEvent(Fields):
    type: str
    item_id: object = None
    delta: object = None
    item: dict[str, object] | None = None
    response: dict[str, object] | None = None
    error: object = None
    code: object = None
    message: object = None


class ResponseReader:
    """Reads the events of a response. The last one has the usage."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self.progress = Progress(model=str(fields.get("model")))
        self.over = False
        self._fields = fields
        self._with_deltas: set[str] = set()

    def read(self, event: Event) -> Part:
        if not event.data:
            return Part("", event.raw)
        parsed = StreamEvent.of_json(event.data)
        kind, progress = parsed.type, self.progress
        if kind.endswith(".delta") and not kind.startswith(SUMMARY):
            self._with_deltas.add(str(parsed.item_id))
            progress.generated += texts_in(parsed.delta, without=NOT_GENERATED)
        elif kind == "response.output_item.added":
            progress.runs_tools |= str((parsed.item or {}).get("type")) in RUN_CALLS
            progress.rereads += progress.has_result
            progress.has_result = False
        elif kind == "response.output_item.done" and parsed.item is not None:
            self._end_item(parsed.item)
        elif kind in ENDS:
            self._end(kind, parsed.response or {})
        elif kind == "error":
            progress.failed = True
            raise stream_error(parsed.error or {"code": parsed.code, "message": parsed.message})
        elif parsed.response is not None and not progress.ids:
            progress.ids = _ids(self._fields, parsed.response)
        return Part("", event.raw)

    def _end_item(self, item: dict[str, object]) -> None:
        progress = self.progress
        if str(item.get("type")) in RUN_CALLS:
            progress.runs_tools = progress.has_result = True
        progress.results += texts_in([item.get(name) for name in RESULTS], without=())
        if str(item.get("id")) not in self._with_deltas:
            progress.generated += texts_in(item, without=NOT_GENERATED)
        if name := _tool_of(item):
            calls = progress.tool_calls
            progress.tool_calls = {**calls, name: calls.get(name, 0) + 1}

    def _end(self, kind: str, response: dict[str, object]) -> None:
        progress = self.progress
        with suppress(ValidationError):  # not reported, or unreadable
            progress.usage = _usage(response)
            progress.usage_is_final = True
        progress.generated = progress.generated or _generated(response)
        progress.ids = _ids(self._fields, response)
        progress.finish_reason = ENDS[kind]
        self.over = True
        if progress.finish_reason is None:
            progress.failed = True
            error = stream_error(response.get("error") or {"message": kind})
            if error.is_accounts:
                raise error
            progress.error = error


RESPONSES: Final = Api(
    path="/responses",
    extras=extras_of,
    bounded=_bounded,
    open_stream=lambda request: (request, ResponseReader(request.fields)),
    usage=_usage,
    generated=_generated,
    ids=_ids,
)
#: A compaction rewrites a conversation as a shorter one. Nothing bounds its length.
COMPACTION: Final = Api(
    path="/responses/compact",
    extras=lambda fields: extras_of(fields)._replace(is_unbounded=True),
    bounded=lambda request, _: request,
    usage=_usage,
    generated=_generated,
)
