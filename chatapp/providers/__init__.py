"""What every provider of answers looks like: one protocol, its values, one hierarchy of errors.

A provider is one file in this package. It knows its SDK and these names, and nothing of Flask,
limits or other providers. What stands here is all that they share.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "refused", "other"]
QuotaUnit = Literal["requests", "tokens", "input_tokens", "output_tokens"]
ErrorKind = Literal[
    "rate_limited",  # its quota for us is used up for the moment
    "overloaded",  # it has too much to do for everybody
    "quota",  # our credit or spend cap is used up: waiting does not help
    "auth",  # it does not accept our key
    "unknown_model",  # it does not know the model, or does not give it to us
    "bad_request",  # it refuses this request as such
    "too_large",  # this request alone is more than its quota for us ever holds
    "timeout",  # no answer in time; it may have been billed
    "unavailable",  # not reached, or it failed inside
    "malformed",  # it answered, in a form that cannot be read; it may have been billed
]


#: No call has more tokens, by the thousand: a provider that tells of more tells nonsense, which no
#: limit, price or column is to be computed from.
TOKENS_MAX: Final = 10**9


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
    bookkeeping; ``cache_write_1h_tokens``, written for an hour, are a part of the latter.
    ``output_tokens`` is everything generated, ``reasoning_tokens`` a part of it. ``web_searches``
    are those that the provider made. ``tiers`` are the tiers and speeds that change the price
    ("priority", "fast", …), none for a standard call, and None if the provider reported nothing.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0
    web_searches: int = 0
    tiers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """What a provider said of one of its own limits on us, when it answered.

    Of ``limit`` (above 0) it had ``remaining`` (0 to ``limit``) left for all who use our key, in
    ``unit``: calls, or tokens of either direction or of one. ``reset_after_s`` is the time, in
    seconds, until all of it is free again if nobody calls: 0 or more, and None where that was not
    told or could not be read. ``period_s`` is what it is counted by, where that is known. Providers
    round, and others may have called since: advice, no fact.
    """

    unit: QuotaUnit
    limit: int
    remaining: int
    reset_after_s: float | None
    period_s: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. ``model`` is the model that gave it, as the provider calls it; ``usage`` is
    None if the provider reported none that can be read; ``quotas`` are those that came with it,
    each unit at most once."""

    text: str
    model: str
    usage: Usage | None
    finish_reason: FinishReason
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A request in a provider's own protocol, to be handed on as it is.

    ``raw`` is the body that is sent, and ``fields`` what it says. ``headers`` and ``query`` are
    those of the caller's that belong to the protocol.
    """

    raw: bytes
    fields: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)

    def with_fields(self, **changed: object) -> Passage:
        """The same request with these fields; ``ValueError`` if it holds numbers that cannot be
        written. Its bytes stay as they came if nothing changes."""
        if all(self.fields.get(name) == value for name, value in changed.items()):
            return self
        fields = {**self.fields, **changed}
        return replace(self, raw=json.dumps(fields, allow_nan=False).encode(), fields=fields)


@dataclass(frozen=True, slots=True)
class Extras:
    """What of a request changes its price beside tokens. ``tiers`` are those that it asks for, by
    the field that does, ``tools`` the tools of the provider's that are billed for each use.
    ``refused`` are fields whose cost cannot be told, and why. ``thinks`` says whether the request
    turns thinking on or off; None if it says nothing."""

    tiers: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    thinks: bool | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """A whole answer in a provider's own protocol: its body, the headers that belong to the
    protocol, the usage that it reports (None: none that can be read), the size in bytes of the
    text and tool arguments in it, and the quotas that came with it."""

    raw: bytes
    content_type: str
    headers: Mapping[str, str]
    usage: Usage | None
    output_bytes: int = 0
    quotas: tuple[Quota, ...] = ()


class Part(NamedTuple):
    """What a stream brought: the text in it, and its bytes in the provider's own protocol (none
    where the event is not the caller's, or was made here)."""

    text: str
    raw: bytes


@dataclass(slots=True)
class Progress:
    """How far a stream has come.

    ``usage`` is what the provider said last, and ``usage_is_final`` whether it is the bill;
    ``output_bytes`` is the size of everything generated that has arrived: text, refusals, tool
    names and arguments, thinking. ``finish_reason`` is None until the answer has ended: a stream
    that ends before it was cut off. ``failed`` is set by an error that the provider reported in
    the stream.
    """

    model: str
    usage: Usage | None = None
    usage_is_final: bool = False
    output_bytes: int = 0
    finish_reason: FinishReason | None = None
    failed: bool = False


def generated_bytes(value: object, *, without: Collection[str]) -> int:
    """The size of all texts in a part of an answer, whatever form it has: text, a refusal, the name
    and the arguments of a tool, thinking. ``without`` are the names of fields that the model has
    not generated."""
    match value:
        case str():
            return len(value.encode("utf-8", "surrogatepass"))
        case dict():
            inner = [each for name, each in value.items() if name not in without]
            return sum(generated_bytes(each, without=without) for each in inner)
        case list():
            return sum(generated_bytes(each, without=without) for each in value)
        case _:
            return 0


class ProviderError(Exception):
    """A provider gave no usable answer.

    ``kind`` says why, ``status`` is its HTTP status where it sent one (200: it began well),
    ``retry_after_s`` the wait it asked for where it asked for one. ``message`` is the provider's
    own text, for debugging alone: providers quote prompts, keys and organisations in it.
    ``raw`` is its whole answer, without our key, for callers who speak its protocol. ``quotas`` are
    those that came with a refusal; those of a stream that fails on its way are the stream's.
    ``was_retried`` is set where we have asked more than once: the caller is told not to.
    ``request_id`` is the provider's id of the request, where it sent one that can be sent on.
    """

    def __init__(
        self,
        provider: str,
        kind: ErrorKind,
        *,
        message: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
        raw: bytes = b"",
        quotas: tuple[Quota, ...] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{provider}: {kind} (status {status})")
        self.provider = provider
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.raw = raw
        self.quotas = quotas
        self.request_id = request_id
        self.was_retried = False

    @property
    def is_callers(self) -> bool:
        """Whether the provider refused this request as such: another caller's might pass."""
        kinds = {"bad_request", "unknown_model", "too_large"}
        return self.kind in kinds or (self.kind == "auth" and self.status == 403)


class AnswerStream(Protocol):
    """An answer while it is being generated; iterating waits for the provider.

    It ends by itself when the answer is whole, and with a ProviderError where it will not be.
    """

    @property
    def progress(self) -> Progress: ...
    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the provider's headers that belong to its protocol."""
        ...

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """Those that came with the beginning of the stream."""
        ...

    def __iter__(self) -> Iterator[Part]: ...

    def close(self) -> None:
        """Hang up, from the thread that iterates: the provider stops generating."""
        ...

    def abort(self) -> None:
        """Make an iteration that waits in another thread end at once."""
        ...


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

    def stream(self, prompt: Prompt) -> AnswerStream:
        """Ask once, without retries; ProviderError where not even a stream begins."""
        ...


@runtime_checkable
class Forwarder(Protocol):
    """A provider whose own protocol callers may speak to it, through us."""

    def extras(self, fields: Mapping[str, object]) -> Extras:
        """What of this body changes its price. Never raises for what JSON can hold."""
        ...

    def bounded(self, passage: Passage, most_output_tokens: int) -> Passage:
        """The request whose answers have at most so many tokens each; unchanged if it says less."""
        ...

    def forward(self, passage: Passage) -> Passed:
        """Hand the request on, once, and wait for the whole answer; ProviderError otherwise."""
        ...

    def forward_stream(self, passage: Passage) -> AnswerStream:
        """Hand the request on, once; ProviderError where not even a stream begins."""
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """A provider that counts the input of a request in its own protocol, without answering it."""

    def count(self, passage: Passage) -> Passed:
        """Hand the request on to be counted, once; ProviderError where there is no count."""
        ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a provider may take, in seconds: to connect, to begin a stream, and between two
    bytes of an answer. A plain answer sends its first byte only after generation ends."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    read_s: float = 600.0
