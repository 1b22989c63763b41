"""A provider on 127.0.0.1 that keeps its own bill and misbehaves as each request asks.

Its server and formats are those of tests/chatapp/upstream_server.py. A marker in the prompt selects
the behaviour, so one server serves a mixed load::

    [[scenario=timeout tokens=3000 caller=mallory id=7]]

The model says FILLER, or its next line in the script that the marker names.

The bill is computed here from models.toml, independently of chatapp/catalogue/price.py: a call is
billed the moment it is generated, whether or not anyone receives it.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
import tomllib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    OPENAI_PATH,
    PROTOCOLS,
    Answer,
    Call,
    Cut,
    FakeUpstream,
    OpenAIProtocol,
    Protocol,
    Reply,
    ResponsesProtocol,
    Stream,
    ToolCall,
)

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


class BillingProvider(FakeUpstream):
    """The server's state: `calls` and what they are billed. Safe from any thread."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.prices = PriceTable()
        #: By name; a function writes the script for the fields of the request.
        self.scripts: dict[str, Callable[[Mapping[str, Any]], Script]] = {}
        self._lock = threading.Lock()
        self._calls: list[BilledCall] = []
        self._numbers: dict[str, list[int]] = {}  # by id
        #: Open, ``gated`` calls go on.
        self.gate = threading.Event()

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

    def client_stays(self, call: BilledCall, connection: Any, for_s: float) -> bool:
        """Wait that long; False once the client has disconnected."""
        until = time.monotonic() + for_s
        if not self.stays(connection, lambda: time.monotonic() >= until):
            self.note(call, hung_up=True)
            return False
        return not self._end.is_set()

    def answer(self, call: Call) -> Answer | Stream | None:
        path = call.path.partition("?")[0]
        if path not in PROTOCOLS:
            return Answer(404, {"error": {"message": f"no such path {path}"}})
        return _Attempt(self, self.receive(path, call.raw), call.connection).answer()


def served_tier(fields: Mapping[str, Any], scenario: Scenario) -> str:
    """The tier that a request names, or the scenario's ``tier`` if the request leaves the
    choice."""
    asked = fields.get("speed") or fields.get("service_tier") or "auto"
    if asked == "auto":
        return scenario.options.get("tier", "standard")
    return asked if asked in TIERS else "standard"


def reply(call: BilledCall) -> Reply:
    """What the model has said so far, and its usage as the scenario reports it."""
    used, is_chat = call.used, call.path == OPENAI_PATH
    usage: Mapping[str, object] | None = USAGES.get(call.path, _response_usage)(used)
    match call.scenario.behaviour.usage:
        case "omitted":
            usage = None
        case "unreadable" if is_chat:
            usage = {"prompt_tokens": "many", "completion_tokens": [1]}
        case "unreadable":
            usage = {"input_tokens": "many", "output_tokens": [1]}
    options = call.fields.get("stream_options") or {}
    if is_chat and call.fields.get("stream") and not options.get("include_usage"):
        usage = None
    fields: dict[str, object] = {}
    if call.path != ANTHROPIC_PATH:
        fields["service_tier"] = "default" if used.tier == "standard" else used.tier
        if not is_chat:
            stated = {name: call.fields[name] for name in ("store", "tools") if name in call.fields}
            fields |= {**stated, "tool_usage": {"web_search": {"num_requests": used.searches}}}
    return Reply(
        model=call.model,
        number=call.number,
        text=_text(call),
        tool=call.line if isinstance(call.line, ToolCall) else None,
        output=call.output,
        usage=usage,
        fields=fields,
    )


def _openai_usage(used: Consumption) -> dict[str, object]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.output_tokens,
        "total_tokens": used.prompt_tokens + used.output_tokens,
        "prompt_tokens_details": _cache(used),
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _response_usage(used: Consumption) -> dict[str, object]:
    return {
        "input_tokens": used.all_input_tokens,
        "input_tokens_details": _cache(used),
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.all_input_tokens + used.output_tokens,
    }


def _cache(used: Consumption) -> dict[str, object]:
    written = used.written_tokens + used.written_1h_tokens
    return {"cached_tokens": used.cached_tokens, "cache_write_tokens": written}


def _anthropic_usage(used: Consumption) -> dict[str, object]:
    usage: dict[str, object] = {
        "input_tokens": used.input_tokens + sum(used.rereads),
        "output_tokens": used.output_tokens,
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
    return usage


USAGES = {OPENAI_PATH: _openai_usage, ANTHROPIC_PATH: _anthropic_usage}


def _text(call: BilledCall) -> str:
    """What the model says: its line, or so many tokens."""
    return call.line if isinstance(call.line, str) else FILLER * call.used.output_tokens


class _Attempt:
    """One call: what its scenario generates, bills and sends."""

    def __init__(self, provider: BillingProvider, call: BilledCall, connection: Any) -> None:
        self.provider, self.connection = provider, connection
        self._call = call

    def answer(self) -> Answer | Stream | None:
        scenario = self._call.scenario
        if self._is_refused():
            return self._refusal(scenario.number("status", 429))
        self._call = self.provider.read_prompt(self._call)
        if self._generated():
            if self._call.fields.get("stream") and scenario.behaviour.answers:
                self._note(status=200)
                return Stream(self._events())
            if scenario.behaviour.answers and scenario.behaviour.ending in {"whole", "late"}:
                self._note(status=200, sent=True)
                return Answer(200, self._protocol().body())
            self._wait()  # a plain answer that never comes
        self._note(sent=True)
        return None

    def _note(self, **changes: Any) -> None:
        self._call = self.provider.note(self._call, **changes)

    def _protocol(self) -> Protocol:
        return PROTOCOLS[self._call.path](reply(self._call))

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
            return not wait_s or self._stays(wait_s)
        for step in range(STEPS):
            if not self._stays(wait_s / STEPS):
                return False
            part = tokens * (step + 1) // STEPS - tokens * step // STEPS
            self._call = provider.generate(self._call, part)
        return True

    def _refusal(self, status: int) -> Answer:
        self._note(status=status, sent=True)
        retry_after = self._call.scenario.number("retry_after")
        headers = {"Retry-After": str(retry_after)} if retry_after > 0 else {}
        return self._protocol().error(status, headers)

    def _events(self) -> Iterator[bytes | Cut]:
        try:
            if not (yield from self._stream(self._protocol())):
                yield Cut()
        finally:  # also if the client disconnects
            self._note(sent=True)

    def _stream(self, protocol: Protocol) -> Generator[bytes, None, bool]:
        """The events; False if the client disconnected before the last one."""
        behaviour, output = self._call.scenario.behaviour, self._call.output
        if output != "nothing":
            yield from protocol.start()
        if behaviour.ending == "rounds" and not (yield from self._use_tools(protocol)):
            return False
        for text in () if output in {"nothing", "hidden"} else _texts(self._call):
            yield protocol.delta(output, text)
        match behaviour.ending:
            case "wait":
                self._wait()
                return False
            case "late" | "rounds":
                if not self._stayed():
                    return False
                protocol.reply = reply(self._call)
                yield from protocol.end()
            case "error":
                yield protocol.error_event()
            case "failed" if isinstance(protocol, ResponsesProtocol):
                yield from protocol.failed()
            case "whole":
                yield from protocol.end()
        return True

    def _use_tools(self, protocol: Protocol) -> Generator[bytes, None, bool]:
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
            yield from protocol.tool_use(each, RESULT * result)
            used = self._call.used
            read = used.prompt_tokens + used.output_tokens + each * result
            self._note(used=replace(used, rereads=(*used.rereads, read)))
            yield from protocol.go_on(each)
        return True

    def _stays(self, for_s: float) -> bool:
        return self.provider.client_stays(self._call, self.connection, for_s)

    def _stayed(self) -> bool:
        """Generate the rest at its speed, if it has one; False if the client disconnected."""
        call, number = self._call, self._call.scenario.number
        self._note(sent=True)
        if not (speed := number("speed")):
            return self._stays(LATE_S)
        answers = call.fields.get("n") or 1
        most = min(number("hidden") * answers, call.bound_tokens)
        while self._call.used.output_tokens < most:
            if not self._stays(STEP_S):
                return False
            self._call = self.provider.generate(self._call, round(speed * STEP_S * answers))
        return True

    def _wait(self) -> None:
        """Wait until the client disconnects."""
        self._note(sent=True)
        self._stays(math.inf)


def _texts(call: BilledCall) -> Iterator[str]:
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
