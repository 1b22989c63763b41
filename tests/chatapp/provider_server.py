"""A server on 127.0.0.1 that speaks OpenAI's and Anthropic's protocols, as far as a test says.

It answers every call with a plain success until it is told otherwise: `script` queues answers,
`silence` makes it accept calls and answer none. It keeps what it was asked.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OPENAI_PATH = "/v1/chat/completions"
ANTHROPIC_PATH = "/v1/messages"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer on the wire; a dict as body is sent as JSON, bytes are sent as they are."""

    status: int
    body: Mapping[str, object] | bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that came in; header names in small letters."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, object]


class ProviderServer:
    """What a test holds: `url`, `calls`, `script` and `silence`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.calls: list[Call] = []
        self._answers: deque[Answer] = deque()
        self._silent = threading.Event()
        self._end = threading.Event()

    def script(self, *answers: Answer) -> None:
        """The answers to the next calls, in order."""
        self._answers.extend(answers)

    def silence(self) -> None:
        """From now on accept calls and answer none of them, until the server stops."""
        self._silent.set()

    def stop(self) -> None:
        self._end.set()

    def answer(self, call: Call) -> Answer | None:
        self.calls.append(call)
        if self._silent.is_set():
            self._end.wait()
            return None
        return self._answers.popleft() if self._answers else success(call.path, call.body)


def success(path: str, body: Mapping[str, object]) -> Answer:
    """A plain answer in the protocol of that path: the model `body` asks for says “pong”."""
    model = body.get("model")
    if path == OPENAI_PATH:
        return Answer(200, openai_body(model=model))
    if path == ANTHROPIC_PATH:
        return Answer(200, anthropic_body(model=model))
    return Answer(404, {"error": {"message": f"no such path {path}"}})


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


def openai_error(
    status: int, *, code: str, message: str = "no", headers: Mapping[str, str] | None = None
) -> Answer:
    """An error as OpenAI words it."""
    error = {"message": message, "type": "requests", "param": None, "code": code}
    return Answer(status, {"error": error}, headers or {})


def anthropic_error(
    status: int,
    *,
    kind: str,
    message: str = "no",
    error_code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """An error as Anthropic words it."""
    error: dict[str, object] = {"type": kind, "message": message}
    if error_code:
        error["details"] = {"error_code": error_code}
    return Answer(status, {"type": "error", "error": error, "request_id": "req_1"}, headers or {})


@contextmanager
def running() -> Iterator[ProviderServer]:
    """A server on a free port, for as long as the block runs."""
    provider: ProviderServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            body = json.loads(self.rfile.read(length))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = provider.answer(Call(self.path, headers, body))
            if answer is None:
                self.close_connection = True
                return
            raw = (
                answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            )
            self.send_response(answer.status)
            sent = {"Content-Type": "application/json", **answer.headers}
            for name, value in {**sent, "Content-Length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        provider = ProviderServer(http.server_address[1])
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield provider
        finally:
            provider.stop()
            http.shutdown()
            thread.join()
