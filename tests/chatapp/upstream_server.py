"""A server on 127.0.0.1 that speaks OpenAI's and Anthropic's protocols. It answers every call with
a plain success, streamed on request, unless a test changes that: `script` queues answers, `silence`
makes it accept calls and answer none, `think` delays answers. It records calls and disconnects."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OPENAI_PATH = "/v1/chat/completions"
ANTHROPIC_PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
RESPONSES_PATH = "/v1/responses"
EMBEDDINGS_PATH = "/v1/embeddings"
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

    pieces: Sequence[bytes | Wait | Cut]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One received call; header names are in lower case. The body is empty without one."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, object]
    raw: bytes
    method: str = "POST"


class UpstreamServer:
    """The server of a test: `url`, `calls`, `script` and `silence`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.calls: list[Call] = []
        self.hung_up = threading.Event()
        self.waiting = threading.Event()
        self.answered = threading.Event()
        self._go_on = threading.Event()
        self._answers: deque[Answer | Stream] = deque()
        self._silent = threading.Event()
        self._thinks = threading.Event()
        self._end = threading.Event()
        self._drops = 0
        self._by_key: dict[str, Answer] = {}

    def script(self, *answers: Answer | Stream) -> None:
        """Set the answers to the next calls, in order."""
        self._answers.extend(answers)

    def script_again(self) -> None:
        """Forget the answers that are left: as usual again."""
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
        readable = select.poll()  # select() fails above 1,024 descriptors
        readable.register(connection, select.POLLIN)
        while not (self._go_on.is_set() or self._end.is_set()):
            if readable.poll(10):
                self.hung_up.set()
                return False
        return True

    @property
    def thinks(self) -> bool:
        """Whether it delays its answers."""
        return self._thinks.is_set()

    def stop(self) -> None:
        self._end.set()

    def answer(self, call: Call) -> Answer | Stream | None:
        self.calls.append(call)
        if self._silent.is_set():
            self._end.wait()
            return None
        if refusal := self._by_key.get(self.keys()[-1]):
            return refusal
        if self._drops:
            self._drops -= 1
            return None
        return self._answers.popleft() if self._answers else success(call.path, call.body)


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


def openai_body(*, model: object = "gpt-5.4-mini", text: str | None = "pong") -> dict[str, object]:
    """A chat completion: 12 tokens in, 8 of them cached; 5 out, 2 of them reasoning."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, "refusal": None},
            }
        ],
        "usage": {
            "prompt_tokens": 12,
            "completion_tokens": 5,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


def anthropic_body(*, model: object = "claude-haiku-4-5", text: str = "pong") -> dict[str, object]:
    """A message: 12 tokens in besides 8 read from the cache and 3 written to it; 5 out."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 12,
            "output_tokens": 5,
            "cache_read_input_tokens": 8,
            "cache_creation_input_tokens": 3,
        },
    }


def openai_chunks(
    *texts: str, model: object = "gpt-5.4-mini", finish_reason: str = "stop"
) -> list[bytes]:
    """A streamed completion with these texts, by default “pong” in two chunks; its usage is
    `openai_body`'s."""

    def chunk(delta: object, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return event({**common, "choices": [choice], "usage": None})

    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": text}) for text in texts or ("po", "ng")),
        chunk({}, finish_reason),
        event({**common, "choices": [], "usage": openai_body()["usage"]}),
        b"data: [DONE]\n\n",
    ]


def anthropic_events(*, model: object = "claude-haiku-4-5") -> list[bytes]:
    """A streamed message that says “pong” in two deltas; its usage is `anthropic_body`'s."""

    def delta(text: str) -> bytes:
        inner = {"type": "text_delta", "text": text}
        return named("content_block_delta", index=0, delta=inner)

    usage = {"input_tokens": 12, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 3}
    message = {**anthropic_body(model=model), "content": [], "stop_reason": None}
    return [
        named("message_start", message={**message, "usage": {**usage, "output_tokens": 1}}),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        named("ping"),
        delta("po"),
        delta("ng"),
        named("content_block_stop", index=0),
        named(
            "message_delta",
            delta={"stop_reason": "end_turn", "stop_sequence": None},
            usage={"output_tokens": 5},
        ),
        named("message_stop"),
    ]


def response_body(
    *, model: object = "gpt-5.4-mini", text: str = "pong", id_: str = "resp_1", **fields: object
) -> dict[str, object]:
    """A response: 12 tokens in, 8 of them cached; 5 out, 2 of them reasoning."""
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {
        "id": id_.replace("resp", "msg"),
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    return {
        "id": id_,
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "store": True,
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 17,
        },
        **fields,
    }


def response_events(
    *, model: object = "gpt-5.4-mini", end: str = "completed", **fields: object
) -> list[bytes]:
    """A streamed response that says “pong” in two deltas; its usage is `response_body`'s."""
    body = response_body(model=model, **fields)
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    [message] = body["output"]  # type: ignore[misc]
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    events: list[tuple[str, dict[str, object]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": {**message, "content": []}}),
        (
            "response.content_part.added",
            {**place, "part": {"type": "output_text", "text": "", "annotations": []}},
        ),
        ("response.output_text.delta", {**place, "delta": "po", "logprobs": []}),
        ("response.output_text.delta", {**place, "delta": "ng", "logprobs": []}),
        ("response.output_text.done", {**place, "text": "pong", "logprobs": []}),
        ("response.content_part.done", {**place, "part": message["content"][0]}),
        ("response.output_item.done", {"output_index": 0, "item": message}),
        (f"response.{end}", {"response": {**body, "status": end}}),
    ]
    return [named(kind, sequence_number=n, **more) for n, (kind, more) in enumerate(events)]


def compaction_body() -> dict[str, object]:
    """A compacted conversation with the usage of `response_body`."""
    return {
        "id": "resp_2",
        "object": "response.compaction",
        "created_at": 1,
        "output": [{"id": "cmp_1", "type": "compaction", "encrypted_content": "c2VjcmV0"}],
        "usage": response_body()["usage"],
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
    """An error in OpenAI's format."""
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
    """An error in Anthropic's format."""
    error: dict[str, object] = {"type": kind, "message": message}
    if error_code:
        error["details"] = {"error_code": error_code}
    return Answer(status, {"type": "error", "error": error, "request_id": "req_1"}, headers or {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    provider: UpstreamServer

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        raw = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.loads(raw) if raw else {}
        answer = self.provider.answer(Call(self.path, headers, body, raw, self.command))
        thinks = self.provider.thinks
        if answer is None or (thinks and not self.provider.wait(self.connection)):
            self.close_connection = True
            return
        if isinstance(answer, Stream):
            self._send_stream(answer)
            return
        raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
        for name, value in {**sent, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)
        self.provider.answered.set()

    do_GET = do_DELETE = do_POST  # noqa: N815 - the names are given

    def _send_stream(self, answer: Stream) -> None:
        self.send_response(200)
        sent = {"Content-Type": "text/event-stream; charset=utf-8", **answer.headers}
        for name, value in {**sent, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for piece in answer.pieces:
                if isinstance(piece, Cut):
                    return
                if isinstance(piece, Wait):
                    if not self.provider.wait(self.connection):
                        return
                    continue
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = False

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
        pass


class _Server(ThreadingHTTPServer):
    # More than callers at once: one that finds it full would try again a second later.
    request_queue_size = 256


@contextmanager
def running() -> Iterator[UpstreamServer]:
    """A server on a free port, within the block."""
    handler = type("Handler", (_Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as http:
        provider = handler.provider = UpstreamServer(http.server_address[1])
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield provider
        finally:
            provider.stop()
            http.shutdown()
            thread.join()
