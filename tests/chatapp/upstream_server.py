"""A server on 127.0.0.1 that speaks OpenAI's and Anthropic's protocols. A `FakeUpstream` answers.

`UpstreamServer` answers every call with a plain success, streamed on request, unless a test changes
that: `script` queues answers, `silence` makes it accept calls and answer none, `think` delays
answers. It records calls and disconnects. tests/e2e/money has a provider that keeps a bill.
"""

import contextlib
import json
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

OPENAI_PATH = "/v1/chat/completions"
ANTHROPIC_PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
RESPONSES_PATH = "/v1/responses"
EMBEDDINGS_PATH = "/v1/embeddings"
#: The deltas of a streamed “pong”.
HALVES = ("po", "ng")
#: The secrets of the keys KEY_1 and KEY_2, and a providers file in which each upstream has both.
FIRST, SECOND = "secret-of-the-first-key", "secret-of-the-second-key"
TWO_KEYS = """
version = 1
[upstreams.openai]
protocol = "openai"
base_url = "{url}/v1"
keys = ["env:KEY_1", "env:KEY_2"]
patterns = ["gpt-*", "text-*"]
models_of = "openai"
[upstreams.anthropic]
protocol = "anthropic"
base_url = "{url}"
keys = ["env:KEY_1", "env:KEY_2"]
patterns = ["claude-*"]
models_of = "anthropic"
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; a dict as body is sent as JSON, bytes are sent unchanged. With a Content-Length
    header and `Connection: close` the body is cut off."""

    status: int
    body: Mapping[str, object] | bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Wait:
    """A pause in a stream, until `go_on` or until the caller disconnects."""


class Cut:
    """A point of a stream at which the connection ends, in the middle of the body."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A 200 whose body is sent piece by piece."""

    pieces: Iterable[bytes | Wait | Cut]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One received call; header names are in lower case. The body is empty without one."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, object]
    raw: bytes
    method: str
    connection: socket.socket = field(compare=False, repr=False)


class FakeUpstream:
    """What answers the calls that a server receives, at `url`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answered = threading.Event()
        self._end = threading.Event()

    @property
    def variables(self) -> dict[str, str]:
        """An environment in which the SDKs call it, with made-up keys."""
        return {
            "OPENAI_API_KEY": "sk-openai-test",
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "ANTHROPIC_API_KEY": "sk-ant-test",
            "ANTHROPIC_BASE_URL": self.url,
            "NO_PROXY": "127.0.0.1",
        }

    def answer(self, call: Call) -> Answer | Stream | None:
        """The answer; None closes the connection without one. Each call has its thread."""
        raise NotImplementedError

    def wait(self, connection: socket.socket) -> bool:
        """Wait at a pause of a stream; False once the caller has disconnected."""
        return self.stays(connection, lambda: False)

    def stays(self, connection: socket.socket, is_over: Callable[[], bool]) -> bool:
        """Wait until it is over, or the server stops; False once the caller has disconnected."""
        readable = select.poll()  # select() fails above 1,024 descriptors
        readable.register(connection, select.POLLIN)
        while not (is_over() or self._end.is_set()):
            if readable.poll(5):
                return False
        return True

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """One on a free port, within the block."""
        handler = type("Handler", (_Handler,), {})
        with _Server(("127.0.0.1", 0), handler) as http:
            provider = handler.provider = cls(http.server_address[1])
            thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield provider
            finally:
                provider._end.set()
                http.shutdown()
                thread.join()


class UpstreamServer(FakeUpstream):
    """The server of a test: `url`, `calls`, `script` and `silence`."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.calls: list[Call] = []
        self.hung_up = threading.Event()
        self.waiting = threading.Event()
        self._go_on = threading.Event()
        self._answers: deque[Answer | Stream] = deque()
        self._silent = threading.Event()
        self._thinks = threading.Event()
        self._drops = 0
        self._by_key: dict[str, Answer] = {}

    def script(self, *answers: Answer | Stream) -> None:
        """Set the answers to the next calls, in order."""
        self._answers.extend(answers)

    def end_script(self) -> None:
        """Drop the answers that are left: as usual again."""
        self._answers.clear()

    def refuse(self, key: str, answer: Answer | None) -> None:
        """Answer every call with this key like that; None: as usual again."""
        if answer is None:
            del self._by_key[key]
        else:
            self._by_key[key] = answer

    def keys(self) -> list[str]:
        """The keys of the calls, in order; "" for a call without one."""
        names = ("authorization", "x-api-key", "api-key")
        found = (
            [call.headers[name] for name in names if name in call.headers] for call in self.calls
        )
        return [",".join(values).removeprefix("Bearer ") for values in found]

    def silence(self) -> None:
        """Accept further calls and answer none of them, until the server stops."""
        self._silent.set()

    def drop(self, calls: int) -> None:
        """Accept that many calls and close their connections without an answer."""
        self._drops = calls

    def think(self) -> None:
        """Begin no further answer before `go_on`, or until the caller disconnects."""
        self._thinks.set()

    def go_on(self) -> None:
        """End the pauses of streams."""
        self._go_on.set()

    def rest(self) -> None:
        """Let streams pause again."""
        self._go_on.clear()

    def wait(self, connection: socket.socket) -> bool:
        """Wait for `go_on`; True if it came before a disconnect."""
        self.waiting.set()
        if self.stays(connection, self._go_on.is_set):
            return True
        self.hung_up.set()
        return False

    def answer(self, call: Call) -> Answer | Stream | None:
        self.calls.append(call)
        if self._silent.is_set():
            self._end.wait()
            return None
        answer = self._answer(call)
        return None if self._thinks.is_set() and not self.wait(call.connection) else answer

    def _answer(self, call: Call) -> Answer | Stream | None:
        if refusal := self._by_key.get(self.keys()[-1]):
            return refusal
        if self._drops:
            self._drops -= 1
            return None
        return self._answers.popleft() if self._answers else success(call.path, call.body)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model calls this tool of the client."""

    name: str
    arguments: Mapping[str, object]

    @property
    def json(self) -> str:
        return json.dumps(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model says: `text`, or a call of `tool`. `output` is the form of streamed output.
    `usage` is as the protocol has it, and left out if None; `fields` are the answer's further
    fields."""

    model: object
    number: int = 1
    text: Any = "pong"
    tool: ToolCall | None = None
    output: str = "text"
    usage: Mapping[str, object] | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


# The protocols: a plain body, the events of a stream up to an ending, and errors. The reply of a
# stream may be replaced on its way.


class OpenAIProtocol:
    """OpenAI's chat completions."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def error(self, status: int, headers: Mapping[str, str]) -> Answer:
        code = "rate_limit_exceeded" if status == 429 else "no"
        return openai_error(status, code=code, headers=headers)

    def body(self) -> dict[str, object]:
        said: dict[str, object] = {"content": self.reply.text}
        if self.reply.tool:
            said = {"content": None, "tool_calls": [self._tool_call(self.reply.tool)]}
        message = {"role": "assistant", **said, "refusal": None}
        choice = {"index": 0, "finish_reason": self._finish_reason(), "message": message}
        return self._object("chat.completion", [choice], **_usage(self.reply))

    def start(self) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def delta(self, kind: str, text: str) -> bytes:
        match kind:
            case "tool_arguments":
                call: dict[str, object] = {"index": 0, "function": {"arguments": text}}
                if self.reply.tool:
                    call |= self._tool_call(self.reply.tool)
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

    def end(self, finish_reason: str | None = None) -> list[bytes]:
        events = [self._chunk({}, finish_reason or self._finish_reason())]
        if usage := _usage(self.reply):
            events.append(event(self._object("chat.completion.chunk", [], **usage)))
        return [*events, b"data: [DONE]\n\n"]

    def error_event(self) -> bytes:
        return event({"error": {"message": "no", "type": "server_error", "code": None}})

    def _finish_reason(self) -> str:
        return "tool_calls" if self.reply.tool else "stop"

    def _tool_call(self, tool: ToolCall) -> dict[str, object]:
        function = {"name": tool.name, "arguments": tool.json}
        return {"id": f"call_{self.reply.number}", "type": "function", "function": function}

    def _chunk(self, delta: object, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        usage = {} if self.reply.usage is None else {"usage": None}
        return event(self._object("chat.completion.chunk", [choice], **usage))

    def _object(self, kind: str, choices: object, **more: object) -> dict[str, object]:
        reply = self.reply
        head = {"id": f"chatcmpl-{reply.number}", "object": kind, "created": 1}
        return {**head, "model": reply.model, "choices": choices, **reply.fields, **more}


class ResponsesProtocol:
    """OpenAI's responses."""

    DELTAS: Mapping[str, str] = {
        "text": "output_text",
        "refusal": "refusal",
        "tool_arguments": "function_call_arguments",
        "custom_input": "custom_tool_call_input",
        "thinking": "reasoning_text",
    }

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self._number = 0

    def error(self, status: int, headers: Mapping[str, str]) -> Answer:
        return OpenAIProtocol(self.reply).error(status, headers)

    def body(self, status: str = "completed") -> dict[str, object]:
        """With the output and the usage once it has ended."""
        reply, has_ended = self.reply, status != "in_progress"
        body = {
            "id": f"resp_{reply.number}",
            "object": "response",
            "created_at": 1,
            "status": status,
            "model": reply.model,
            "output": [self._item(status)],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "store": True,
            "usage": reply.usage,
            **reply.fields,
        }
        return body if has_ended else {**body, "output": [], "usage": None}

    def start(self) -> list[bytes]:
        begun = self.body("in_progress")
        kinds = ("response.created", "response.in_progress")
        events = [self._event(kind, response=begun) for kind in kinds]
        item = self._item("in_progress")
        events.append(self._event("response.output_item.added", output_index=0, item=item))
        if self.reply.output == "text":
            part = self._part("")
            events.append(self._event("response.content_part.added", **self._place(), part=part))
        return events

    def delta(self, kind: str, text: str) -> bytes:
        probabilities = {"logprobs": []} if kind == "text" else {}
        kind = f"response.{self.DELTAS[kind]}.delta"
        return self._event(kind, **self._place(), delta=text, **probabilities)

    def end(self, status: str = "completed") -> list[bytes]:
        events, tool, text = [], self.reply.tool, self.reply.text
        if tool:
            done = {"name": tool.name, "arguments": tool.json}
            events = [self._event("response.function_call_arguments.done", **self._place(), **done)]
        elif self.reply.output == "text":
            events = [
                self._event("response.output_text.done", **self._place(), text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place(), part=self._part(text)),
            ]
        item = self._item("completed")
        return [
            *events,
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{status}", response=self.body(status)),
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
        number, tool, has_ended = self.reply.number, self.reply.tool, status != "in_progress"
        if tool:
            called = {"call_id": f"call_{number}", "name": tool.name}
            arguments = tool.json if has_ended else ""
            item = {"type": "function_call", **called, "arguments": arguments}
        else:
            content = [self._part(self.reply.text)] if has_ended else []
            item = {"type": "message", "role": "assistant", "content": content}
        return {"id": f"msg_{number}", "status": status, **item}

    @staticmethod
    def _part(text: str | None) -> dict[str, object]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _place(self) -> dict[str, object]:
        place = {"item_id": f"msg_{self.reply.number}", "output_index": 0}
        return place if self.reply.tool else {**place, "content_index": 0}

    def _event(self, kind: str, **fields: object) -> bytes:
        self._number += 1
        return named(kind, sequence_number=self._number - 1, **fields)


class AnthropicProtocol:
    """Anthropic's messages."""

    ERRORS: Mapping[int, str] = {
        429: "rate_limit_error",
        529: "overloaded_error",
        404: "not_found_error",
    }

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def error(self, status: int, headers: Mapping[str, str]) -> Answer:
        kind = self.ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return anthropic_error(status, kind=kind, headers=headers)

    def body(self) -> dict[str, object]:
        block: dict[str, object] = {"type": "text", "text": self.reply.text}
        if self.reply.tool:
            block = {**self._block("tool_arguments"), "input": self.reply.tool.arguments}
        return self._message([block], self._stop_reason(), _usage(self.reply))

    def start(self) -> list[bytes]:
        usage = self.reply.usage
        if usage is not None and isinstance(usage["output_tokens"], int):
            usage = {**usage, "output_tokens": 1}
        message = self._message([], None, {} if usage is None else {"usage": usage})
        return [
            named("message_start", message=message),
            self._block_start(self._block(self.reply.output), 0),
            named("ping"),
        ]

    def delta(self, kind: str, text: str) -> bytes:
        match kind:
            case "tool_arguments":
                delta = {"type": "input_json_delta", "partial_json": text}
            case "thinking":
                delta = {"type": "thinking_delta", "thinking": text}
            case _:
                delta = {"type": "text_delta", "text": text}
        return named("content_block_delta", index=0, delta=delta)

    def end(self) -> list[bytes]:
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        # Without usage the event is not Anthropic's any more; its reader has to cope.
        return [
            named("content_block_stop", index=0),
            named("message_delta", delta=delta, **_usage(self.reply)),
            named("message_stop"),
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

    def error_event(self) -> bytes:
        return event(self.error(500, {}).body, "error")

    def _stop_reason(self) -> str:
        return "tool_use" if self.reply.tool else "end_turn"

    def _message(
        self, content: object, stop_reason: str | None, usage: Mapping[str, object]
    ) -> dict[str, object]:
        return {
            "id": f"msg_{self.reply.number}",
            "type": "message",
            "role": "assistant",
            "model": self.reply.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            **usage,
        }

    @staticmethod
    def _block_start(block: object, index: int) -> bytes:
        return named("content_block_start", index=index, content_block=block)

    def _block(self, output: str) -> dict[str, object]:
        if output in {"thinking", "hidden"}:
            return {"type": "thinking", "thinking": "", "signature": ""}
        if output == "tool_arguments":
            name = self.reply.tool.name if self.reply.tool else "write"
            use_id = f"toolu_{self.reply.number}"
            return {"type": "tool_use", "id": use_id, "name": name, "input": {}}
        return {"type": "text", "text": ""}


Protocol = OpenAIProtocol | ResponsesProtocol | AnthropicProtocol
PROTOCOLS: Mapping[str, type[Protocol]] = {
    OPENAI_PATH: OpenAIProtocol,
    RESPONSES_PATH: ResponsesProtocol,
    f"{RESPONSES_PATH}/compact": ResponsesProtocol,
    ANTHROPIC_PATH: AnthropicProtocol,
}


def _usage(reply: Reply) -> dict[str, object]:
    return {} if reply.usage is None else {"usage": reply.usage}


def success(path: str, body: Mapping[str, object]) -> Answer | Stream:
    """A plain answer in the protocol of that path: the requested model says “pong”."""
    path, model = path.partition("?")[0], body.get("model")
    streams = {
        OPENAI_PATH: openai_chunks,
        ANTHROPIC_PATH: anthropic_events,
        RESPONSES_PATH: response_events,
    }
    if body.get("stream") and path in streams:
        return Stream(streams[path](model=model))
    answers: dict[str, Mapping[str, object]] = {
        OPENAI_PATH: openai_body(model=model),
        ANTHROPIC_PATH: anthropic_body(model=model),
        COUNT_PATH: {"input_tokens": 23},
        RESPONSES_PATH: response_body(model=model),
        f"{RESPONSES_PATH}/input_tokens": {"object": "response.input_tokens", "input_tokens": 29},
        f"{RESPONSES_PATH}/compact": compaction_body(),
        EMBEDDINGS_PATH: embeddings_body(model=model),
    }
    if path not in answers and path.startswith(f"{RESPONSES_PATH}/"):
        return Answer(200, response_body(id_=path.split("/")[3]))
    if path not in answers:
        return Answer(404, {"error": {"message": f"no such path {path}"}})
    return Answer(200, answers[path])


OPENAI_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
ANTHROPIC_USAGE = {
    "input_tokens": 12,
    "output_tokens": 5,
    "cache_read_input_tokens": 8,
    "cache_creation_input_tokens": 3,
}
RESPONSE_USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 17,
}


def openai_body(*, model: object = "gpt-5.4-mini", text: Any = "pong") -> dict[str, object]:
    """A chat completion: 12 tokens in, 8 of them cached; 5 out, 2 of them reasoning."""
    return OpenAIProtocol(Reply(model=model, text=text, usage=deepcopy(OPENAI_USAGE))).body()


def anthropic_body(*, model: object = "claude-haiku-4-5", text: str = "pong") -> dict[str, object]:
    """A message: 12 tokens in besides 8 read from the cache and 3 written to it; 5 out."""
    return AnthropicProtocol(Reply(model=model, text=text, usage=deepcopy(ANTHROPIC_USAGE))).body()


def openai_chunks(
    *texts: str, model: object = "gpt-5.4-mini", finish_reason: str = "stop"
) -> list[bytes]:
    """A streamed completion with these texts, by default “pong” in two chunks; its usage is
    `openai_body`'s."""
    chunks = OpenAIProtocol(Reply(model=model, usage=OPENAI_USAGE))
    deltas = [chunks.delta("text", text) for text in texts or HALVES]
    return [*chunks.start(), *deltas, *chunks.end(finish_reason)]


def anthropic_events(*, model: object = "claude-haiku-4-5") -> list[bytes]:
    """A streamed message that says “pong” in two deltas; its usage is `anthropic_body`'s, of which
    the end has only the output."""
    message = AnthropicProtocol(Reply(model=model, usage=ANTHROPIC_USAGE))
    events = [*message.start(), *(message.delta("text", text) for text in HALVES)]
    message.reply = replace(message.reply, usage={"output_tokens": 5})
    return [*events, *message.end()]


def response_body(
    *, model: object = "gpt-5.4-mini", text: str = "pong", id_: str = "resp_1", **fields: object
) -> dict[str, object]:
    """A response: 12 tokens in, 8 of them cached; 5 out, 2 of them reasoning."""
    return _response(model, text=text, **{"id": id_, **fields}).body()


def response_events(
    *, model: object = "gpt-5.4-mini", end: str = "completed", **fields: object
) -> list[bytes]:
    """A streamed response that says “pong” in two deltas; its usage is `response_body`'s."""
    response = _response(model, **fields)
    deltas = (response.delta("text", text) for text in HALVES)
    return [*response.start(), *deltas, *response.end(end)]


def _response(model: object, *, text: str = "pong", **fields: object) -> ResponsesProtocol:
    usage = deepcopy(RESPONSE_USAGE)
    return ResponsesProtocol(Reply(model=model, text=text, usage=usage, fields=fields))


def compaction_body() -> dict[str, object]:
    """A compacted conversation with the usage of `response_body`."""
    return {
        "id": "resp_2",
        "object": "response.compaction",
        "created_at": 1,
        "output": [{"id": "cmp_1", "type": "compaction", "encrypted_content": "c2VjcmV0"}],
        "usage": deepcopy(RESPONSE_USAGE),
    }


def embeddings_body(*, model: object = "text-embedding-3-small") -> dict[str, object]:
    """One vector for 7 tokens."""
    vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return {"object": "list", "data": [vector], "model": model, "usage": usage}


def event(data: object, name: str | None = None) -> bytes:
    """One event on the wire."""
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()


def named(kind: str, **fields: object) -> bytes:
    """One of Anthropic's events."""
    return event({"type": kind, **fields}, kind)


def openai_error(
    status: int,
    *,
    code: str,
    kind: str = "requests",
    message: str = "no",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Answer(status, {"error": error}, headers or {})


def anthropic_error(
    status: int,
    *,
    kind: str,
    message: str = "no",
    error_code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    error: dict[str, object] = {"type": kind, "message": message}
    if error_code:
        error["details"] = {"error_code": error_code}
    return Answer(status, {"type": "error", "error": error, "request_id": "req_1"}, headers or {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    provider: FakeUpstream

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # callers disconnect at any moment
            super().handle()

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.loads(raw) if raw else {}
        call = Call(self.path, headers, body, raw, self.command, self.connection)
        match self.provider.answer(call):
            case None:
                self.close_connection = True
            case Stream() as stream:
                self._send_stream(stream)
            case answer:
                self._send(answer)
                self.provider.answered.set()

    do_GET = do_DELETE = do_POST  # noqa: N815 - the names are given

    def _send(self, answer: Answer) -> None:
        raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        sent = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
        self._send_head(answer.status, {**sent, **answer.headers})
        self.wfile.write(raw)

    def _send_stream(self, answer: Stream) -> None:
        sent = {"Content-Type": "text/event-stream; charset=utf-8", **answer.headers}
        self._send_head(200, {**sent, "Transfer-Encoding": "chunked"})
        self.close_connection = True
        for piece in answer.pieces:
            match piece:
                case bytes():
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                case Wait() if self.provider.wait(self.connection):
                    pass
                case _:
                    return
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = False

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
        pass


class _Server(ThreadingHTTPServer):
    # More than callers at once: one that finds it full would try again a second later.
    request_queue_size = 256
