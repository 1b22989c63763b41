"""What all upstreams share: the values of a call, its errors, and the interfaces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from chatapp.catalogue import Model
from chatapp.catalogue.usage import Usage

Role = Literal["system", "user", "assistant"]
FileKind = Literal["image", "pdf"]
FinishReason = Literal["stop", "length", "refused", "other"]
QuotaUnit = Literal["requests", "tokens", "input_tokens", "output_tokens"]
ErrorKind = Literal[
    "rate_limited",  # the quota of this server's key is used up for the moment
    "overloaded",  # the upstream is overloaded for all its customers
    "quota",  # this server's credit or spend cap is used up, often until a date
    "auth",  # this server's key is not accepted
    "unknown_model",  # the model does not exist or is not available to this server
    "bad_request",  # the upstream rejects this request
    "too_large",  # this request alone exceeds the whole quota
    "timeout",  # no answer in time; it may have been billed
    "unavailable",  # not reachable, or an internal error of the upstream
    "malformed",  # an answer that cannot be parsed; it may have been billed
    "overspent",  # this server has ended the call, which used what its caller may spend
]

#: Tools that the provider runs and whose results, which the model reads again and again, are as
#: large as the caller likes: an operator has to allow them.
OPEN_TOOLS: Final = frozenset({"mcp", "web_fetch"})


@dataclass(frozen=True, slots=True)
class File:
    """An image or a PDF file; ``data`` is its content in base64."""

    media_type: str
    data: str = field(repr=False)
    name: str

    @property
    def kind(self) -> FileKind:
        return "pdf" if self.media_type == "application/pdf" else "image"

    @property
    def url(self) -> str:
        return f"data:{self.media_type};base64,{self.data}"


class Message(NamedTuple):
    role: Role
    text: str
    files: tuple[File, ...] = ()

    def content(
        self, part_of: Callable[[File], dict[str, object]]
    ) -> str | list[dict[str, object]]:
        """Return the content in a protocol whose parts for files are those of ``part_of``."""
        if not self.files:
            return self.text
        return [*map(part_of, self.files), {"type": "text", "text": self.text}]


class Turn(NamedTuple):
    """A message to a model, in no protocol, after the earlier messages of the conversation."""

    message: str
    model: Model
    history: tuple[Message, ...] = ()
    files: tuple[File, ...] = ()
    traffic_class: str | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.history, Message("user", self.message, self.files))

    @property
    def file_kinds(self) -> set[FileKind]:
        return {f.kind for message in self.messages for f in message.files}


class Quota(NamedTuple):
    """One of the upstream's limits on this server's key, as reported with an answer.

    ``remaining`` (0 to ``limit``) of ``limit`` (above 0) ``unit`` are left for all users of the
    key. After ``reset_after_s`` seconds (0 or more) without a call all of it is available again;
    None if the upstream did not report it. ``period_s`` is the quota's period, if known. Providers
    round, and other calls may have used it since: a hint, not a fact.
    """

    unit: QuotaUnit
    limit: int
    remaining: int
    reset_after_s: float | None
    period_s: int | None = None


class Completion(NamedTuple):
    """The whole answer to a turn. ``model`` is the upstream's name for the model that answered;
    ``usage`` is None if it reported no valid one; ``quotas`` has each unit at most once, and
    ``generated`` is as in RawAnswer."""

    text: str
    model: str
    usage: Usage | None = None
    finish_reason: FinishReason = "other"
    quotas: tuple[Quota, ...] = ()
    generated: Sequence[str] = ()


class RawRequest(NamedTuple):
    """A request in an upstream's protocol. ``raw`` is the body that is sent, ``fields`` its parsed
    JSON. ``headers`` and ``query`` are the client's that the protocol defines, ``path`` is the
    address in it; if empty, the one that prompts are sent to. ``object_path`` continues it for an
    object that the upstream keeps. ``key`` is the name of the key to use; "" for any.
    ``traffic_class`` is the class of the call, None if no upstream reads it."""

    raw: bytes
    fields: Mapping[str, object]
    headers: Mapping[str, str] = {}
    query: Mapping[str, str | Sequence[str]] = {}
    path: str = ""
    object_path: str = ""
    method: str = "POST"
    key: str = ""
    traffic_class: str | None = None

    @classmethod
    def of(cls, fields: Mapping[str, object], *, key: str = "") -> RawRequest:
        return cls(raw=json.dumps(fields).encode(), fields=fields, key=key)

    def with_fields(self, **changed: object) -> RawRequest:
        """Return the same request with these fields. Its bytes stay unchanged if no field changes.
        ValueError if it contains numbers that JSON cannot express."""
        if all(self.fields.get(name) == value for name, value in changed.items()):
            return self
        fields = {**self.fields, **changed}
        return self._replace(raw=json.dumps(fields, allow_nan=False).encode(), fields=fields)


class Extras(NamedTuple):
    """What changes the price of a request besides its tokens. ``tiers`` are the requested tiers by
    field, ``tools`` the provider's tools that are billed per use, ``refused`` the fields whose cost
    is unknown, each with the reason. ``thinks`` says whether the request turns reasoning on or off;
    None if it does neither. ``effort`` is the requested effort of reasoning, "" without one.
    ``predicts``: the request predicts its answer, and what the model rejects of it is billed.
    ``is_unbounded``: its answer cannot be bounded."""

    tiers: Mapping[str, str] = {}
    tools: tuple[str, ...] = ()
    refused: Mapping[str, str] = {}
    thinks: bool | None = None
    effort: str = ""
    predicts: bool = False
    is_unbounded: bool = False


class Bounds(NamedTuple):
    """What a call may use at most; None: as much as the request says. ``output_tokens`` bounds each
    answer, ``tool_uses`` the uses of the provider's tools, ``result_tokens`` a fetched page."""

    output_tokens: int | None = None
    tool_uses: int | None = None
    result_tokens: int | None = None


class RawAnswer(NamedTuple):
    """A whole answer in an upstream's protocol. ``raw`` is its body, ``fields`` its parsed JSON.
    ``headers`` are those that the client may need; ``usage`` is None if the upstream reported none
    that is valid; ``generated`` are the generated texts and tool arguments. ``ids`` are those under
    which the upstream keeps the answer, its own first, then those of its items."""

    raw: bytes
    fields: object
    content_type: str
    headers: Mapping[str, str]
    usage: Usage | None = None
    generated: Sequence[str] = ()
    ids: tuple[str, ...] = ()
    quotas: tuple[Quota, ...] = ()


class Part(NamedTuple):
    """One part of a stream: its text, and its bytes in the upstream's protocol. The bytes are
    empty if the client must not see the event, or if the part did not come from an upstream."""

    text: str
    raw: bytes


@dataclass(slots=True)
class Progress:
    """The state of a stream.

    ``usage`` is the last that the upstream reported, and ``usage_is_final`` tells whether it is
    complete. ``generated`` is all that was generated so far: text, refusals, tool names and
    arguments, reasoning; ``tool_calls`` are those so far. ``rereads`` counts how often the model
    has gone on after tools of the provider, and so has read its input again, with what it has
    generated and with the ``results`` of the tools (and ``opaque_bytes`` of others, which cannot be
    counted): an incomplete usage leaves that out. ``runs_tools`` once it has called one,
    ``has_result`` between a result and what the model makes of it. ``tiers`` are those of Usage, if
    they are reported before it.
    ``finish_reason`` is None until the answer is complete: a stream that ends earlier was cut off.
    ``failed`` is set by an error that the upstream reported within the stream, ``error`` if the
    client has received that error as a part of the stream. ``ids`` are those of RawAnswer, as far
    as they are known.
    """

    model: str
    usage: Usage | None = None
    usage_is_final: bool = False
    generated: list[str] = field(default_factory=list)
    tool_calls: Mapping[str, int] = field(default_factory=dict)
    rereads: int = 0
    results: list[str] = field(default_factory=list)
    opaque_bytes: int = 0
    runs_tools: bool = False
    has_result: bool = False
    tiers: tuple[str, ...] | None = None
    finish_reason: FinishReason | None = None
    failed: bool = False
    error: UpstreamError | None = None
    ids: tuple[str, ...] = ()


@dataclass(eq=False, repr=False)
class UpstreamError(Exception):
    """An upstream gave no usable answer.

    ``kind`` is the cause and ``status`` the upstream's HTTP status, if it sent one (200: the error
    came after a successful start). ``retry_after_s`` is the wait that the upstream requested.
    ``message`` is the upstream's text, for debugging only: it may quote prompts, keys and
    organisations. ``raw`` is the upstream's whole answer without the key, for clients of its
    protocol. ``quotas`` came with a refusal; if a stream fails later, they are on the stream.
    ``request_id`` is the upstream's id of the request, if it is a valid header value.
    """

    kind: ErrorKind
    _: KW_ONLY
    message: str = ""
    status: int | None = None
    retry_after_s: float | None = None
    raw: bytes = b""
    quotas: tuple[Quota, ...] = ()
    request_id: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} (status {self.status})"

    @property
    def is_accounts(self) -> bool:
        """Whether this server's account at the upstream is the cause. Clients do not see why."""
        return self.kind in {"auth", "quota"}

    @property
    def is_callers(self) -> bool:
        """Whether the request is the cause: another request might succeed."""
        kinds = {"bad_request", "unknown_model", "too_large"}
        return self.kind in kinds or (self.kind == "auth" and self.status == 403)


class AnswerStream(Protocol):
    """An answer while it is generated; iterating waits for the upstream. ``headers`` are those that
    the client may need.

    The iteration ends when the answer is complete, and raises UpstreamError if it is cut off.
    """

    @property
    def progress(self) -> Progress: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def quotas(self) -> tuple[Quota, ...]: ...

    def __iter__(self) -> Iterator[Part]: ...

    def close(self) -> None:
        """Disconnect, from the thread that iterates: the upstream stops generating."""

    def abort(self, *, reads_on: bool = False) -> None:
        """End an iteration that waits in another thread; with ``reads_on``, only disconnect, and
        let what has been sent by then arrive."""


class Upstream(Protocol):
    """What answers: a configured service, or the offline one.

    ``patterns`` are the names of its models, as shell patterns. ``missing`` is the key that must be
    set before it can be used, None if it can be used.
    ``quotas_by_direction``: it may report quotas in input or output tokens.
    """

    @property
    def name(self) -> str: ...
    @property
    def patterns(self) -> tuple[str, ...]: ...
    @property
    def missing(self) -> str | None: ...
    @property
    def quotas_by_direction(self) -> bool: ...

    def serves(self, model: str) -> bool: ...

    def complete(self, turn: Turn, max_tokens: int) -> Completion:
        """Send the turn once, without retries, and wait for the whole answer, which has at most so
        many tokens with its reasoning. Raises UpstreamError."""

    def stream(self, turn: Turn, max_tokens: int) -> AnswerStream:
        """The same for a stream. Raises UpstreamError if none begins."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an upstream may take, in seconds: to connect, to begin a stream, and between two
    reads of an answer. A plain answer sends its first byte when generation has ended."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    read_s: float = 600.0
