"""A provider on 127.0.0.1 that keeps its own bill and misbehaves as each request asks.

It speaks OpenAI's chat completions and responses and Anthropic's messages, plain and streamed. A
marker in the prompt selects the behaviour, so one server serves a mixed load::

    [[scenario=timeout tokens=3000 caller=mallory id=7]]

The model says FILLER, or its next line in the script that the marker names.

The bill is computed here from models.toml, independently of chatapp/catalogue/price.py: a call is
billed the moment it is generated, whether or not anyone receives it.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OPENAI_PATH = "/v1/chat/completions"
ANTHROPIC_PATH = "/v1/messages"
RESPONSES_PATH = "/v1/responses"
COMPACT_PATH = "/v1/responses/compact"
MODELS_FILE = Path(__file__).resolve().parents[3] / "chatapp" / "models.toml"
MARKER = re.compile(rb"\[\[(scenario=[\w=.,: -]+)\]\]")

#: One token of generated text. Three bytes: what chatapp takes a token of uncounted text to be.
FILLER = "ok "
#: One token of what a tool returns.
RESULT = "so "
CHUNK_TOKENS = 500
STEPS = 50
GATE_S = 60
#: How long an answer with a ``late`` end goes on for a client who stays.
LATE_S = 0.4
STEP_S = 0.02
#: What a model generates at most where the request sets no bound.
MOST_OUTPUT_TOKENS = 128_000
#: Used for prompts that state no `input=`.
PROMPT_BYTES_PER_TOKEN = 4

# Prices that models.toml did not have on 26 November 2026, as the providers publish them.
ONE_HOUR_WRITE = 2  # times the input
WEB_SEARCH_MICRO_USD = 10_000
TIERS: Mapping[str, Decimal] = {
    "standard": Decimal(1),
    "priority": Decimal(2),
    "fast": Decimal(2),
    "flex": Decimal("0.5"),
}
FAST = {"claude-opus-4-6": Decimal(6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """Everything that is billed of one call. No kind of input is part of another."""

    input_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    written_1h_tokens: int = 0
    output_tokens: int = 0
    searches: int = 0
    #: The input of each further reading, after tools of the provider. None of it is cached.
    rereads: tuple[int, ...] = ()
    tier: str = "standard"

    @property
    def prompt_tokens(self) -> int:
        return self.input_tokens + self.cached_tokens + self.written_tokens + self.written_1h_tokens

    @property
    def all_input_tokens(self) -> int:
        return self.prompt_tokens + sum(self.rereads)


class PriceTable:
    """Prices from models.toml: dollars per million tokens, which is micro-dollars per token."""

    def __init__(self, path: Path = MODELS_FILE) -> None:
        models = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)["models"]
        self._models = {
            name: entry
            for slug, entry in models.items()
            for name in (slug, *entry.get("aliases", ()))
        }

    def most_output_tokens(self, model: str) -> int:
        return min(MOST_OUTPUT_TOKENS, int(self._entry(model)["context"]))

    def micro_usd(self, model: str, used: Consumption) -> Decimal:
        """The exact price; fractions of a micro-dollar are kept."""
        entry = self._entry(model)
        long = entry.get("long_context")
        price = long if long and used.prompt_tokens > long["over"] else entry["price"]
        tokens = (
            used.input_tokens * Decimal(price["input"])
            + used.cached_tokens * Decimal(price["cached_input"])
            + used.written_tokens * Decimal(price["cache_write"])
            + used.written_1h_tokens * ONE_HOUR_WRITE * Decimal(price["input"])
            + used.output_tokens * Decimal(price["output"])
        )
        for reread in used.rereads:
            own = long if long and reread > long["over"] else entry["price"]
            tokens += reread * Decimal(own["input"])
        factor = FAST.get(model, TIERS["fast"]) if used.tier == "fast" else TIERS[used.tier]
        return tokens * factor + used.searches * WEB_SEARCH_MICRO_USD

    def _entry(self, model: str) -> Mapping[str, Any]:
        name = model
        while name not in self._models:  # a dated variant
            name, dash, _ = name.rpartition("-")
            assert dash, f"no price for {model}"
        entry: Mapping[str, Any] = self._models[name]
        assert "price" in entry, f"no price for {model}"
        return entry


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a scenario does. ``output``: the form of the streamed output, or ``hidden`` (billed,
    never sent) or ``nothing`` (not even a first event). ``ending``: whole, late (whole, at the
    latest after LATE_S), wait (until the client disconnects), rounds (late, after tools that the
    provider runs), cut (the body ends before the answer does), error (an event) or failed (the
    last event of a response, with its usage). ``usage``:
    reported, omitted or unreadable. ``answers``: False sends no status line either."""

    output: str = "text"
    ending: str = "whole"
    usage: str = "reported"
    answers: bool = True


BEHAVIOURS: Mapping[str, Behaviour] = {
    "normal": Behaviour(),
    "refuse": Behaviour(),
    "tier_429": Behaviour(),
    "timeout": Behaviour(answers=False),
    "silent": Behaviour(output="nothing", ending="wait"),
    "cut": Behaviour(ending="cut"),
    "error_event": Behaviour(ending="error"),
    "failed": Behaviour(ending="failed"),
    "no_usage": Behaviour(usage="omitted"),
    "bad_usage": Behaviour(usage="unreadable"),
    # Everything is generated, nothing ends: the client is meant to leave.
    "hidden_reasoning": Behaviour(output="hidden", ending="late"),
    "hidden_thinking": Behaviour(output="hidden", ending="late"),
    "silent_until": Behaviour(output="nothing", ending="late"),
    "late": Behaviour(output="text", ending="late"),
    "rounds": Behaviour(output="text", ending="rounds"),
    "text": Behaviour(output="text", ending="wait"),
    "tool_arguments": Behaviour(output="tool_arguments", ending="wait"),
    "function_call": Behaviour(output="function_call", ending="wait"),
    "custom_input": Behaviour(output="custom_input", ending="wait"),
    "thinking": Behaviour(output="thinking", ending="wait"),
    "refusal": Behaviour(output="refusal", ending="wait"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The marker of a request. Beside the named fields: ``tokens`` the model wants to generate
    (``all``: as many as it may), ``wait_ms`` it takes for that, ``stops=1`` if it stops when the
    client hangs up; ``gated=1`` if that begins only when the gate of the provider is open;
    ``status`` and ``retry_after`` of a refusal, which may be ``only`` one model's;
    ``input``, ``cached``, ``written``, ``written_1h`` and ``searches`` are billed as stated. With a
    ``speed``, a ``late`` end generates so many tokens a second and answer, up to ``hidden`` ones.
    ``rounds`` is how often the model uses a tool, each with a ``result`` of so many tokens; with
    ``ahead=1`` it takes no time for that, and does not look whether the client is there.
    """

    name: str = "normal"
    id: str = ""
    caller: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: bytes) -> Scenario:
        found = MARKER.search(raw)
        if found is None:
            return cls()
        pairs = dict(word.split("=", 1) for word in found[1].decode().split())
        name = pairs.pop("scenario")
        assert name in BEHAVIOURS, name
        return cls(name=name, id=pairs.pop("id", ""), caller=pairs.pop("caller", ""), options=pairs)

    @property
    def behaviour(self) -> Behaviour:
        return BEHAVIOURS[self.name]

    def number(self, name: str, default: int = 0) -> int:
        return int(self.options.get(name, default))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A line of a script: the model calls this tool of the client."""

    name: str
    arguments: Mapping[str, object]

    @property
    def json(self) -> str:
        return json.dumps(self.arguments)


#: The model's part of a conversation: each line answers a request with one more tool result.
Script = Sequence[str | ToolCall]
TOOL_RESULT = re.compile(rb'"(?:role": ?"tool|type": ?"(?:tool_result|\w+_call_output))"')


@dataclass(frozen=True, slots=True)
class BilledCall:
    """A call that reached the provider, and what it is billed so far. ``bound_tokens`` is what it
    could generate at most, ``sent``: all that the scenario sends has been sent."""

    number: int
    path: str
    model: str
    scenario: Scenario
    bound_tokens: int
    is_bounded_by_request: bool
    fields: Mapping[str, Any]
    line: str | ToolCall | None = None
    used: Consumption = Consumption()
    status: int | None = None
    sent: bool = False
    hung_up: bool = False

    @property
    def output(self) -> str:
        """The form of the output."""
        is_tool_call = isinstance(self.line, ToolCall)
        return "tool_arguments" if is_tool_call else self.scenario.behaviour.output


class BillingProvider:
    """The server's state: `calls` and what they are billed. Safe from any thread."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.prices = PriceTable()
        #: By name; a function writes the script for the fields of the request.
        self.scripts: dict[str, Callable[[Mapping[str, Any]], Script]] = {}
        self._lock = threading.Lock()
        self._calls: list[BilledCall] = []
        self._numbers: dict[str, list[int]] = {}  # by id
        #: Open, ``gated`` calls go on.
        self.gate = threading.Event()
        self._end = threading.Event()

    def calls(self, **wanted: str) -> list[BilledCall]:
        """The calls whose marker has these values: ``id``, ``caller``, ``name``."""
        with self._lock:
            if "id" in wanted:
                calls = [self._calls[number] for number in self._numbers.get(wanted["id"], ())]
            else:
                calls = list(self._calls)
        return [
            call
            for call in calls
            if all(getattr(call.scenario, name) == value for name, value in wanted.items())
        ]

    def billed_micro_usd(self, **wanted: str) -> Decimal:
        """The exact bill of these calls."""
        return sum((self.price_of(call) for call in self.calls(**wanted)), Decimal(0))

    def price_of(self, call: BilledCall) -> Decimal:
        return self.prices.micro_usd(call.model, call.used)

    def capped_micro_usd(self, call: BilledCall) -> Decimal:
        """The most that this call's output could be billed."""
        used = Consumption(output_tokens=call.bound_tokens, tier=call.used.tier)
        return self.prices.micro_usd(call.model, used)

    def receive(self, path: str, raw: bytes) -> BilledCall:
        """Record an attempt; nothing is billed yet."""
        fields = json.loads(raw)
        model = fields["model"]
        bounds = ("max_completion_tokens", "max_tokens", "max_output_tokens")
        stated = next((fields[name] for name in bounds if fields.get(name)), None)
        most = self.prices.most_output_tokens(model)
        scenario = Scenario.of(raw)
        with self._lock:
            call = BilledCall(
                number=len(self._calls),
                path=path,
                model=model,
                scenario=scenario,
                bound_tokens=min(stated or most, most) * (fields.get("n") or 1),
                is_bounded_by_request=bool(stated),
                fields=fields,
                line=self._line(scenario, fields, raw),
            )
            self._calls.append(call)
            self._numbers.setdefault(call.scenario.id, []).append(call.number)
        return call

    def _line(
        self, scenario: Scenario, fields: Mapping[str, Any], raw: bytes
    ) -> str | ToolCall | None:
        """What the script of the request says now; after its end, its last line."""
        if "script" not in scenario.options:
            return None
        script = self.scripts[scenario.options["script"]](fields)
        return script[min(len(TOOL_RESULT.findall(raw)), len(script) - 1)]

    def note(self, call: BilledCall, **changes: Any) -> BilledCall:
        """Update what is known of the call, above all its consumption."""
        with self._lock:
            changed = self._calls[call.number] = replace(self._calls[call.number], **changes)
        return changed

    def read_prompt(self, call: BilledCall) -> BilledCall:
        """Bill the input."""
        option = call.scenario.number
        prompt = call.fields.get("messages") or call.fields["input"]
        stated = option("input", len(json.dumps(prompt)) // PROMPT_BYTES_PER_TOKEN)
        used = Consumption(
            input_tokens=stated,
            cached_tokens=option("cached"),
            written_tokens=option("written"),
            written_1h_tokens=option("written_1h"),
            searches=option("searches"),
            tier=served_tier(call.fields, call.scenario),
        )
        return self.note(call, used=used)

    def wanted_tokens(self, call: BilledCall) -> int:
        """The tokens that the model generates, within the request's bound."""
        wanted = call.scenario.options.get("tokens", "5")
        per_answer = call.bound_tokens if wanted == "all" else int(wanted)
        return min(per_answer * (call.fields.get("n") or 1), call.bound_tokens)

    def generate(self, call: BilledCall, tokens: int) -> BilledCall:
        """Bill that much output."""
        used = replace(call.used, output_tokens=call.used.output_tokens + tokens)
        return self.note(call, used=used)

    def client_stays(self, call: BilledCall, connection: Any, for_s: float | None) -> bool:
        """Wait that long (None: forever); False once the client has disconnected."""
        until = None if for_s is None else time.monotonic() + for_s
        readable = select.poll()  # select() fails above 1,024 descriptors
        readable.register(connection, select.POLLIN)
        while not self._end.is_set() and (until is None or time.monotonic() < until):
            if readable.poll(5):
                self.note(call, hung_up=True)
                return False
        return not self._end.is_set()

    def stop(self) -> None:
        self._end.set()


def served_tier(fields: Mapping[str, Any], scenario: Scenario) -> str:
    """The tier that a request names, or the scenario's ``tier`` if the request leaves the
    choice."""
    asked = fields.get("speed") or fields.get("service_tier") or "auto"
    if asked == "auto":
        return scenario.options.get("tier", "standard")
    return asked if asked in TIERS else "standard"


# The protocols: a plain body, and the events of a stream up to an ending.


class OpenAIProtocol:
    def __init__(self, call: BilledCall) -> None:
        self._call = call
        self._common = {"id": f"chatcmpl-{call.number}", "created": 1, "model": call.model}
        tier = call.used.tier
        self._common["service_tier"] = "default" if tier == "standard" else tier

    def error(self, status: int) -> dict[str, object]:
        code = "rate_limit_exceeded" if status == 429 else "no"
        return {"error": {"message": "no", "type": "requests", "param": None, "code": code}}

    def body(self) -> dict[str, object]:
        message = {"role": "assistant", "content": _text(self._call), "refusal": None}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        if isinstance(self._call.line, ToolCall):
            message |= {"content": None, "tool_calls": [self._tool_call(self._call.line)]}
            choice["finish_reason"] = "tool_calls"
        body = {**self._common, "object": "chat.completion", "choices": [choice]}
        return {**body, **self._usage()}

    def start(self) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def _tool_call(self, line: ToolCall) -> dict[str, object]:
        function = {"name": line.name, "arguments": line.json}
        return {"id": f"call_{self._call.number}", "type": "function", "function": function}

    def delta(self, kind: str, text: str) -> bytes:
        match kind:
            case "tool_arguments":
                call: dict[str, object] = {"index": 0, "function": {"arguments": text}}
                if isinstance(self._call.line, ToolCall):
                    call |= self._tool_call(self._call.line)
                return self._chunk({"tool_calls": [call]})
            case "custom_input":
                call = {"index": 0, "type": "custom", "custom": {"input": text}}
                return self._chunk({"tool_calls": [call]})
            case "function_call":
                return self._chunk({"function_call": {"arguments": text}})
            case "thinking":
                return self._chunk({"reasoning_content": text})
            case "refusal":
                return self._chunk({"refusal": text})
        return self._chunk({"content": text})

    def end(self) -> list[bytes]:
        is_tool_call = isinstance(self._call.line, ToolCall)
        events = [self._chunk({}, finish_reason="tool_calls" if is_tool_call else "stop")]
        options = self._call.fields.get("stream_options") or {}
        if options.get("include_usage") and self._usage():
            chunk = {**self._common, "object": "chat.completion.chunk", "choices": []}
            events.append(_event({**chunk, **self._usage()}))
        return [*events, b"data: [DONE]\n\n"]

    def error_event(self) -> bytes:
        return _event({"error": {"message": "no", "type": "server_error", "code": None}})

    def _chunk(self, delta: object, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _event({**self._common, "object": "chat.completion.chunk", "choices": [choice]})

    def _usage(self) -> dict[str, object]:
        used = self._call.used
        match self._call.scenario.behaviour.usage:
            case "omitted":
                return {}
            case "unreadable":
                return {"usage": {"prompt_tokens": "many", "completion_tokens": [1]}}
        output = used.output_tokens
        details = {
            "cached_tokens": used.cached_tokens,
            "cache_write_tokens": used.written_tokens + used.written_1h_tokens,
        }
        return {
            "usage": {
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": output,
                "total_tokens": used.prompt_tokens + output,
                "prompt_tokens_details": details,
                "completion_tokens_details": {"reasoning_tokens": 0},
            }
        }


class ResponsesProtocol:
    """OpenAI's Responses API."""

    DELTAS: Mapping[str, str] = {
        "text": "output_text",
        "refusal": "refusal",
        "tool_arguments": "function_call_arguments",
        "custom_input": "custom_tool_call_input",
        "thinking": "reasoning_text",
    }

    def __init__(self, call: BilledCall) -> None:
        self._call = call
        self._number = 0

    def error(self, status: int) -> dict[str, object]:
        return OpenAIProtocol(self._call).error(status)

    def body(self, status: str = "completed") -> dict[str, object]:
        """With the output and the usage once it has ended."""
        call, used = self._call, self._call.used
        has_ended = status != "in_progress"
        return {
            "id": f"resp_{call.number}",
            "object": "response",
            "created_at": 1,
            "status": status,
            "model": call.model,
            "output": [self._item(status)] if has_ended else [],
            "service_tier": "default" if used.tier == "standard" else used.tier,
            "store": call.fields.get("store", True),
            "tools": call.fields.get("tools", []),
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "tool_usage": {"web_search": {"num_requests": used.searches}},
            "usage": self._usage() if has_ended else None,
        }

    def start(self) -> list[bytes]:
        begun = self.body("in_progress")
        kinds = ("response.created", "response.in_progress")
        events = [self._event(kind, response=begun) for kind in kinds]
        item = self._item("in_progress")
        events.append(self._event("response.output_item.added", output_index=0, item=item))
        if self._call.output == "text":
            part = self._part("")
            events.append(self._event("response.content_part.added", **self._place(), part=part))
        return events

    def delta(self, kind: str, text: str) -> bytes:
        return self._event(f"response.{self.DELTAS[kind]}.delta", **self._place(), delta=text)

    def end(self) -> list[bytes]:
        events, line = [], self._call.line
        if isinstance(line, ToolCall):
            done = {"name": line.name, "arguments": line.json}
            events = [self._event("response.function_call_arguments.done", **self._place(), **done)]
        elif self._call.output == "text":
            text = _text(self._call)
            events = [
                self._event("response.output_text.done", **self._place(), text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place(), part=self._part(text)),
            ]
        item = self._item("completed")
        return [
            *events,
            self._event("response.output_item.done", output_index=0, item=item),
            self._event("response.completed", response=self.body()),
        ]

    def tool_use(self, number: int, result: str) -> list[bytes]:
        """A call of the client's MCP server, with its result."""
        item = {"id": f"mcp_{number}", "type": "mcp_call", "name": "read", "arguments": "{}"}
        done = {**item, "output": result, "status": "completed"}
        return [
            self._event("response.output_item.added", output_index=number, item=item),
            self._event("response.output_item.done", output_index=number, item=done),
        ]

    def go_on(self, number: int) -> list[bytes]:
        item = {**self._item("in_progress"), "id": f"item_{number}"}
        return [self._event("response.output_item.added", output_index=number, item=item)]

    def failed(self) -> list[bytes]:
        error = {"code": "server_error", "message": "no"}
        return [self._event("response.failed", response={**self.body("failed"), "error": error})]

    def error_event(self) -> bytes:
        return self._event("error", code="server_error", message="no", param=None)

    def _item(self, status: str) -> dict[str, object]:
        """The only item of the output, empty at first."""
        call, has_ended = self._call, status != "in_progress"
        if isinstance(call.line, ToolCall):
            arguments = call.line.json if has_ended else ""
            called = {"call_id": f"call_{call.number}", "name": call.line.name}
            item = {"type": "function_call", **called, "arguments": arguments}
        else:
            content = [self._part(_text(call))] if has_ended else []
            item = {"type": "message", "role": "assistant", "content": content}
        return {"id": f"item_{call.number}", "status": status, **item}

    @staticmethod
    def _part(text: str) -> dict[str, object]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _place(self) -> dict[str, object]:
        place = {"item_id": f"item_{self._call.number}", "output_index": 0}
        return place if isinstance(self._call.line, ToolCall) else {**place, "content_index": 0}

    def _event(self, kind: str, **fields: object) -> bytes:
        self._number += 1
        return _named(kind, sequence_number=self._number - 1, **fields)

    def _usage(self) -> dict[str, object] | None:
        used = self._call.used
        match self._call.scenario.behaviour.usage:
            case "omitted":
                return None
            case "unreadable":
                return {"input_tokens": "many", "output_tokens": [1]}
        return {
            "input_tokens": used.all_input_tokens,
            "input_tokens_details": {
                "cached_tokens": used.cached_tokens,
                "cache_write_tokens": used.written_tokens + used.written_1h_tokens,
            },
            "output_tokens": used.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.all_input_tokens + used.output_tokens,
        }


class AnthropicProtocol:
    def __init__(self, call: BilledCall) -> None:
        self._call = call
        self._message = {
            "id": f"msg_{call.number}",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "stop_sequence": None,
        }

    def error(self, status: int) -> dict[str, object]:
        kinds = {429: "rate_limit_error", 529: "overloaded_error", 404: "not_found_error"}
        kind = kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "req_1"}

    def body(self) -> dict[str, object]:
        block: dict[str, object] = {"type": "text", "text": _text(self._call)}
        if isinstance(self._call.line, ToolCall):
            block = {**self._block("tool_arguments"), "input": self._call.line.arguments}
        reason = {"stop_reason": self._stop_reason()}
        return {**self._message, "content": [block], **reason, **self._usage()}

    def _stop_reason(self) -> str:
        return "tool_use" if isinstance(self._call.line, ToolCall) else "end_turn"

    def start(self) -> list[bytes]:
        usage = self._usage(output_tokens=1)
        message = {**self._message, "content": [], "stop_reason": None, **usage}
        block = self._block(self._call.output)
        return [
            _named("message_start", message=message),
            _named("content_block_start", index=0, content_block=block),
        ]

    def delta(self, kind: str, text: str) -> bytes:
        match kind:
            case "tool_arguments":
                delta = {"type": "input_json_delta", "partial_json": text}
            case "thinking":
                delta = {"type": "thinking_delta", "thinking": text}
            case _:
                delta = {"type": "text_delta", "text": text}
        return _named("content_block_delta", index=0, delta=delta)

    def end(self) -> list[bytes]:
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        # Without usage the event is not Anthropic's any more; its reader has to cope.
        return [
            _named("content_block_stop", index=0),
            _named("message_delta", delta=delta, **self._usage()),
            _named("message_stop"),
        ]

    def tool_use(self, number: int, result: str) -> list[bytes]:
        """A fetch of a page, with its text."""
        use_id = f"srvtoolu_{number}"
        use = {"type": "server_tool_use", "id": use_id, "name": "web_fetch", "input": {}}
        source = {"type": "text", "media_type": "text/plain", "data": result}
        page = {"type": "web_fetch_result", "content": {"type": "document", "source": source}}
        found = {"type": "web_fetch_tool_result", "tool_use_id": use_id, "content": page}
        return [self._block_start(use, 2 * number), self._block_start(found, 2 * number + 1)]

    def go_on(self, number: int) -> list[bytes]:
        return [self._block_start({"type": "text", "text": ""}, 2 * number + 2)]

    def _block_start(self, block: object, index: int) -> bytes:
        return _named("content_block_start", index=index, content_block=block)

    def error_event(self) -> bytes:
        return _event(self.error(500), "error")

    def _block(self, output: str) -> dict[str, object]:
        if output in {"thinking", "hidden"}:
            return {"type": "thinking", "thinking": "", "signature": ""}
        if output == "tool_arguments":
            line = self._call.line
            name = line.name if isinstance(line, ToolCall) else "write"
            use_id = f"toolu_{self._call.number}"
            return {"type": "tool_use", "id": use_id, "name": name, "input": {}}
        return {"type": "text", "text": ""}

    def _usage(self, output_tokens: int | None = None) -> dict[str, object]:
        used = self._call.used
        match self._call.scenario.behaviour.usage:
            case "omitted":
                return {}
            case "unreadable":
                return {"usage": {"input_tokens": "many", "output_tokens": [1]}}
        output = used.output_tokens if output_tokens is None else output_tokens
        usage: dict[str, object] = {
            "input_tokens": used.input_tokens + sum(used.rereads),
            "output_tokens": output,
            "cache_read_input_tokens": used.cached_tokens,
            "cache_creation_input_tokens": used.written_tokens + used.written_1h_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": used.written_tokens,
                "ephemeral_1h_input_tokens": used.written_1h_tokens,
            },
            "service_tier": used.tier if used.tier == "priority" else "standard",
        }
        if used.tier == "fast":
            usage["speed"] = "fast"
        if used.searches:
            usage["server_tool_use"] = {"web_search_requests": used.searches}
        return {"usage": usage}


def _text(call: BilledCall) -> str:
    """What the model says: its line, or so many tokens."""
    return call.line if isinstance(call.line, str) else FILLER * call.used.output_tokens


def _event(data: object, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def _named(kind: str, **fields: object) -> bytes:
    return _event({"type": kind, **fields}, kind)


Protocol = OpenAIProtocol | ResponsesProtocol | AnthropicProtocol
PROTOCOLS: Mapping[str, type[Protocol]] = {
    OPENAI_PATH: OpenAIProtocol,
    RESPONSES_PATH: ResponsesProtocol,
    COMPACT_PATH: ResponsesProtocol,
    ANTHROPIC_PATH: AnthropicProtocol,
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    provider: BillingProvider

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients leave at any moment
            super().handle()

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = self.path.partition("?")[0]
        if path not in PROTOCOLS:
            self._send(404, {"error": {"message": f"no such path {path}"}})
            return
        self._call = self.provider.receive(path, raw)
        with contextlib.suppress(ConnectionError):
            self._behave()
        self.provider.note(self._call, sent=True)

    def _behave(self) -> None:
        scenario = self._call.scenario
        if self._is_refused():
            self._refuse(scenario.number("status", 429))
            return
        self._call = self.provider.read_prompt(self._call)
        if not self._generated():
            self.close_connection = True
            return
        protocol = PROTOCOLS[self._call.path](self._call)
        if self._call.fields.get("stream") and scenario.behaviour.answers:
            self._stream(protocol)
        elif scenario.behaviour.answers and scenario.behaviour.ending in {"whole", "late"}:
            self._send(200, protocol.body())
        else:  # a plain answer that never comes
            self._wait()

    def _is_refused(self) -> bool:
        scenario = self._call.scenario
        if scenario.name == "refuse":
            return scenario.options.get("only", self._call.model) == self._call.model
        tier = served_tier(self._call.fields, scenario)
        return scenario.name == "tier_429" and tier != "standard"

    def _generated(self) -> bool:
        """Generate everything; False if the client disconnected before."""
        provider, scenario = self.provider, self._call.scenario
        tokens, wait_s = provider.wanted_tokens(self._call), scenario.number("wait_ms") / 1000
        if scenario.number("gated"):
            provider.gate.wait(GATE_S)
        if not scenario.number("stops"):
            self._call = provider.generate(self._call, tokens)
            return not wait_s or provider.client_stays(self._call, self.connection, wait_s)
        for step in range(STEPS):
            if not provider.client_stays(self._call, self.connection, wait_s / STEPS):
                return False
            part = tokens * (step + 1) // STEPS - tokens * step // STEPS
            self._call = provider.generate(self._call, part)
        return True

    def _refuse(self, status: int) -> None:
        self.provider.note(self._call, status=status)
        headers = {}
        if (retry_after := self._call.scenario.number("retry_after")) > 0:
            headers["Retry-After"] = str(retry_after)
        self._send(status, PROTOCOLS[self._call.path](self._call).error(status), headers)

    def _stream(self, protocol: Protocol) -> None:
        behaviour, output = self._call.scenario.behaviour, self._call.output
        self.provider.note(self._call, status=200)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if output != "nothing":
            self._write(protocol.start())
        if behaviour.ending == "rounds" and not self._used_tools(protocol):
            return
        if output not in {"nothing", "hidden"}:
            self._write(protocol.delta(output, text) for text in _texts(self._call))
        match behaviour.ending:
            case "wait":
                self._wait()
                return
            case "late" | "rounds" if not self._stayed():
                return
            case "late" | "rounds":
                self._write(type(protocol)(self._call).end())
            case "error":
                self._write([protocol.error_event()])
            case "failed" if isinstance(protocol, ResponsesProtocol):
                self._write(protocol.failed())
            case "whole":
                self._write(protocol.end())
        self.wfile.write(b"0\r\n\r\n")

    def _used_tools(self, protocol: Protocol) -> bool:
        """Run the client's tools, within the bounds of the request, and read everything again after
        each; False if the client disconnected before."""
        assert not isinstance(protocol, OpenAIProtocol)
        number, fields = self._call.scenario.number, self._call.fields
        tools = [tool for tool in fields.get("tools", ()) if isinstance(tool, dict)]
        bounds = [fields.get("max_tool_calls"), *(tool.get("max_uses") for tool in tools)]
        rounds = min([number("rounds"), *filter(None, bounds)])
        most = [number("result"), *(tool.get("max_content_tokens") for tool in tools)]
        result = min(filter(None, most))
        for each in range(1, rounds + 1):
            if not number("ahead") and not self._stays(STEP_S):
                return False
            self._write(protocol.tool_use(each, RESULT * result))
            used = self._call.used
            read = used.prompt_tokens + used.output_tokens + each * result
            used = replace(used, rereads=(*used.rereads, read))
            self._call = self.provider.note(self._call, used=used)
            self._write(protocol.go_on(each))
        return True

    def _stays(self, for_s: float) -> bool:
        self.close_connection = not self.provider.client_stays(self._call, self.connection, for_s)
        return not self.close_connection

    def _stayed(self) -> bool:
        """Generate the rest at its speed, if it has one; False if the client disconnected."""
        call, number = self._call, self._call.scenario.number
        self._call = self.provider.note(call, sent=True)
        if not (speed := number("speed")):
            return self._stays(LATE_S)
        answers = call.fields.get("n") or 1
        most = min(number("hidden") * answers, call.bound_tokens)
        while self._call.used.output_tokens < most:
            if not self._stays(STEP_S):
                return False
            self._call = self.provider.generate(self._call, round(speed * STEP_S * answers))
        return True

    def _write(self, events: Sequence[bytes] | Iterator[bytes]) -> None:
        for event in events:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _wait(self) -> None:
        """Wait until the client disconnects."""
        self.close_connection = True
        self._call = self.provider.note(self._call, sent=True)
        self.provider.client_stays(self._call, self.connection, None)

    def _send(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        if hasattr(self, "_call"):
            self.provider.note(self._call, status=status)
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
        for name, value in {**sent, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
        pass


def _texts(call: BilledCall) -> Iterator[str]:
    """The texts of the deltas."""
    if call.line is None:
        return (FILLER * tokens for tokens in pieces(call.used.output_tokens))
    return iter([call.line if isinstance(call.line, str) else call.line.json])


def pieces(tokens: int) -> Iterator[int]:
    """The sizes of the deltas that carry so many tokens."""
    while tokens > 0:
        yield min(tokens, CHUNK_TOKENS)
        tokens -= CHUNK_TOKENS


def marker(scenario: str, **options: object) -> str:
    """The text that asks for a behaviour.

    >>> marker("timeout", tokens=3000, caller="mallory")
    '[[scenario=timeout tokens=3000 caller=mallory]]'
    """
    words = (f"{name}={value}" for name, value in {"scenario": scenario, **options}.items())
    return f"[[{' '.join(words)}]]"


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@contextmanager
def running() -> Iterator[BillingProvider]:
    """A provider on a free port."""
    handler: type[_Handler] = type("Handler", (_Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as http:
        provider = handler.provider = BillingProvider(http.server_address[1])
        serve: Callable[..., None] = http.serve_forever
        thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield provider
        finally:
            provider.stop()
            http.shutdown()
            thread.join()
