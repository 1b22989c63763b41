"""What every provider of answers looks like: one protocol, its values, one hierarchy of errors.

A provider is one file in this package. It knows its SDK and these names, and nothing of Flask,
limits or other providers. What stands here is all that they share.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic, Literal, Protocol, TypeVar

ClientT = TypeVar("ClientT")

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "refused", "other"]
ErrorKind = Literal[
    "rate_limited",  # its quota for us is used up for the moment
    "overloaded",  # it has too much to do for everybody
    "quota",  # our credit or spend cap is used up: waiting does not help
    "auth",  # it does not accept our key
    "unknown_model",  # it does not know the model, or does not give it to us
    "bad_request",  # it refuses this request as such
    "timeout",  # no answer in time; it may have been billed
    "unavailable",  # not reached, or it failed inside
    "malformed",  # it answered, in a form that cannot be read
]


@dataclass(frozen=True, slots=True)
class Message:
    """One contribution to a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a provider is asked: ``model`` under the provider's own name for it, and at most
    ``max_tokens`` tokens of answer (thinking included)."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the provider bills them.

    ``input_tokens`` is the whole prompt, and ``cached_input_tokens`` (read from the provider's
    cache) and ``cache_write_tokens`` (written to it) are parts of it, whatever the provider's own
    bookkeeping. ``output_tokens`` is everything generated, ``reasoning_tokens`` a part of it.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. ``model`` is the model that gave it, as the provider calls it."""

    text: str
    model: str
    usage: Usage
    finish_reason: FinishReason


class ProviderError(Exception):
    """A provider gave no usable answer.

    ``kind`` says why, ``status`` is its HTTP status where it sent one, ``retry_after_s`` the wait
    it asked for where it asked for one. ``message`` is the provider's own text: for the log, never
    for a caller, because providers quote keys and organisations in it.
    """

    def __init__(
        self,
        provider: str,
        kind: ErrorKind,
        *,
        message: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{provider}: {kind} (status {status}): {message}")
        self.provider = provider
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s


class Provider(Protocol):
    """A source of answers.

    ``patterns`` are the model names it answers for, as shell patterns; ``missing`` names the
    environment variable without which it cannot be asked, and is None where it can.
    """

    @property
    def name(self) -> str: ...
    @property
    def patterns(self) -> tuple[str, ...]: ...
    @property
    def missing(self) -> str | None: ...

    def serves(self, model: str) -> bool:
        """Whether a model of this name is this provider's to answer."""
        ...

    def complete(self, prompt: Prompt) -> Completion:
        """Ask once, without retries, and wait for the whole answer; ProviderError otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a provider may take, in seconds: to connect, and to send the next byte."""

    connect_s: float = 5.0
    read_s: float = 60.0


class PerProcess(Generic[ClientT]):
    """A client made at its first use, once in each process.

    Sockets and locks that a fork copies are shared by accident; so nothing is opened before
    gunicorn has forked, and a child never uses what its parent opened.
    """

    def __init__(self, create: Callable[[], ClientT]) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._made: tuple[int, ClientT] | None = None

    def get(self) -> ClientT:
        """This process's client; safe from any thread."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), self._create())
            return self._made[1]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that a provider's answer asks for, in seconds; None where it names none we can use.

    ``retry-after-ms`` before ``retry-after``, the order in which both SDKs read them.
    """
    for header, seconds_per_unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(header, "")) * seconds_per_unit
        except ValueError:
            continue
        if 0 < wait_s < float("inf"):
            return wait_s
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    wait_s = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return wait_s if wait_s > 0 else None
