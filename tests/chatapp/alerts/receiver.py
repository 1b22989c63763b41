"""A receiver of webhooks on 127.0.0.1. It accepts everything, unless a test scripts answers or
closes its gate; then it answers nothing."""

import base64
import hashlib
import hmac
import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.served import answering

#: Of the specification's examples.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Received:
    """One request: its path, its headers in lower case, and its body."""

    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.raw)
        return body

    @property
    def is_signed(self) -> bool:
        """Whether the signature is that of the secret, checked as a receiver does."""
        key = base64.b64decode(SECRET.partition("_")[2])
        head = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}."
        digest = hmac.new(key, head.encode() + self.raw, hashlib.sha256).digest()
        return self.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


class Receiver:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/services/a-secret-path"
        self.gate = threading.Event()
        self.gate.set()
        self._answers: deque[tuple[int, Mapping[str, str]]] = deque()
        self._received: list[Received] = []
        self._changed = threading.Condition()

    def script(self, *answers: int | tuple[int, Mapping[str, str]]) -> None:
        """Set the statuses of the next answers, in order, with their headers."""
        self._answers.extend((each, {}) if isinstance(each, int) else each for each in answers)

    def received(self, count: int = 1, *, within_s: float = WAIT_S) -> list[Received]:
        """What was received, once there is that much."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._received) >= count, within_s)
            return list(self._received)

    def answer(self, request: Received) -> tuple[int, Mapping[str, str]]:
        with self._changed:
            self._received.append(request)
            self._changed.notify_all()
        self.gate.wait(WAIT_S)
        return self._answers.popleft() if self._answers else (204, {})


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more = receiver.answer(Received(self.path, headers, raw))
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            text = b"" if status == 204 else b"the receiver's words"
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with answering(Handler) as port:
        receiver = Receiver(port)
        try:
            yield receiver
        finally:
            receiver.gate.set()
