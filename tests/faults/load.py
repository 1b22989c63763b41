"""Requests at a fixed rate, and what their clients saw before, during and after a fault."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from tests.chatapp.upstream_server import ANTHROPIC_PATH, OPENAI_PATH
from tests.servers import eventually

#: As many requests as a hanging service can hold at the highest rate.
MOST_AT_ONCE = 256
CLIENT_TIMEOUT_S = 40
#: In place of a status: the connection ended before the answer did, or was refused.
NO_ANSWER = 0
REFUSED = -1

Phase = Literal["before", "during", "after"]
PHASES: tuple[Phase, ...] = ("before", "during", "after")


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller sends: a GET, or a POST of ``body`` as JSON; ``port``: to another server than
    the load's."""

    caller: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller got. ``at_s`` is when the request was due, by the monotonic clock, and
    ``took_s`` the time from then to the end of the answer."""

    caller: str
    path: str
    phase: Phase
    at_s: float
    took_s: float
    status: int
    headers: Mapping[str, str]

    @property
    def ended_at_s(self) -> float:
        return self.at_s + self.took_s


class Answers(tuple[Answer, ...]):
    """Answers in the order in which their requests were due."""

    __slots__ = ()

    def of(self, caller: str | None = None, *phases: Phase) -> Answers:
        """The answers to this caller (None: to all), in these phases (none: in all)."""
        return Answers(
            answer
            for answer in self
            if caller in {None, answer.caller} and (not phases or answer.phase in phases)
        )

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self)

    @property
    def admitted(self) -> int:
        return self.statuses[200]

    @property
    def failed(self) -> Answers:
        """Without an answer, or with a status of 500 or above."""
        return Answers(each for each in self if not 0 < each.status < 500)

    def percentile_ms(self, percent: float) -> float:
        """The time within which so many percent were answered."""
        times = sorted(answer.took_s for answer in self)
        return times[min(int(len(times) * percent / 100), len(times) - 1)] * 1000

    def values(self, header: str) -> set[str]:
        """The values of this header, in lower case, that were received."""
        return {answer.headers[header] for answer in self if header in answer.headers}


Traffic = Callable[[int, Phase], Request]


class Load:
    """Sends request 0, 1, 2 … of ``traffic`` when each is due, however long the answers take,
    and each over its own connection. All answers are there when the ``with`` block has ended, and
    with ``in_step`` those to the requests of a run when it has::

        with Load(port, traffic, per_s=60) as load:
            load.run(1.5)
            with load.fault():
                server.kill()
                load.run(3)
                server.launch()
            load.run(2)
        assert not load.answers.failed
    """

    def __init__(self, port: int, traffic: Traffic, *, per_s: float, in_step: bool = False) -> None:
        self._port = port
        self._traffic = traffic
        self._per_s = per_s
        self._in_step = in_step
        self._phase: Phase = "before"
        self._answers: list[Answer] = []
        self._over = threading.Event()
        self._sent = 0
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE)
        self._sender = threading.Thread(target=self._send_all)
        self.repaired_at_s = 0.0

    def __enter__(self) -> Self:
        self._sender.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._sender.join()
        self._pool.shutdown()

    def run(self, seconds: float) -> None:
        """Let so much time pass, and until as many requests are sent as are due in it: if this
        process pauses, they are late."""
        last = self._sent + int(seconds * self._per_s)
        assert not self._over.wait(seconds)
        eventually(lambda: (len(self._answers) if self._in_step else self._sent) >= last)

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Within the block something is broken; at its end it is repaired."""
        self._phase = "during"
        yield
        self.repaired_at_s = time.monotonic()
        self._phase = "after"

    @property
    def answers(self) -> Answers:
        """What has been answered so far."""
        return Answers(sorted(self._answers, key=lambda answer: answer.at_s))

    def recovery_s(self, is_abnormal: Callable[[Answer], bool]) -> float:
        """From the repair until every worker (the header `x-worker`) has answered normally; 0 if
        each did at once."""
        last_s, normal = self.repaired_at_s, set()
        for answer in self.answers.of(None, "after"):
            worker = answer.headers.get("x-worker")
            if not is_abnormal(answer):
                normal.add(worker)
            elif worker not in normal:
                last_s = answer.at_s
        return last_s - self.repaired_at_s

    def _send_all(self) -> None:
        begin_s = time.monotonic()
        for number in itertools.count():
            due_s = begin_s + number / self._per_s
            if self._over.wait(max(0.0, due_s - time.monotonic())):
                return
            phase = self._phase
            self._pool.submit(self._send, self._traffic(number, phase), phase, due_s)
            self._sent = number + 1

    def _send(self, request: Request, phase: Phase, due_s: float) -> None:
        status, headers = ask(request.port or self._port, request)
        took_s = time.monotonic() - due_s
        self._answers.append(
            Answer(request.caller, request.path, phase, due_s, took_s, status, headers)
        )


def chat(number: int, text: str) -> tuple[str, dict[str, object]]:
    """Path and body of a call: OpenAI's and Anthropic's in turn, every second pair streamed."""
    body = {"messages": [{"role": "user", "content": text}], "stream": number % 4 < 2}
    if number % 2:
        return ANTHROPIC_PATH, body | {"model": "claude-haiku-4-5", "max_tokens": 4000}
    return OPENAI_PATH, body | {"model": "gpt-5.4-mini"}


def ask(port: int, request: Request) -> tuple[int, dict[str, str]]:
    """Status and headers, in lower case, of one request that is read to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CLIENT_TIMEOUT_S)
    try:
        if request.body is None:
            connection.request("GET", request.path, headers=dict(request.headers))
        else:
            headers = {"Content-Type": "application/json", **request.headers}
            connection.request("POST", request.path, json.dumps(request.body), headers)
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}
    except ConnectionRefusedError:
        return REFUSED, {}
    except (OSError, http.client.HTTPException):
        return NO_ANSWER, {}
    finally:
        connection.close()
