"""An upstream over its provider's official synchronous SDK.

A request is sent once, as bytes, and its answer is read as bytes: the SDK has its address and its
headers, and makes errors of refusals. transport.py sends it: the SDK itself takes as long for a
request as all of Flask does. Errors of the SDK become UpstreamError here, and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from chatapp.catalogue.providers_file import ADDED, UpstreamTable
from chatapp.catalogue.usage import Usage
from chatapp.per_process import PerProcess
from chatapp.upstreams import (
    AnswerStream,
    Bounds,
    Completion,
    ErrorKind,
    Extras,
    Quota,
    RawAnswer,
    RawRequest,
    Timeouts,
    Turn,
    UpstreamError,
)
from chatapp.upstreams.answer import regained_after_s, retry_after_s, sendable
from chatapp.upstreams.cancellation import reads_within
from chatapp.upstreams.event_stream import EventReader, EventStream, WholeStream
from chatapp.upstreams.keys import Keys

if TYPE_CHECKING:
    import httpx2

    from chatapp.upstreams.transport import Answer, Pool

STATUS_KINDS: Final[dict[int, ErrorKind]] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "unknown_model",
    408: "timeout",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}
JSON: Final = "application/json"
#: How long a count may take: it generates nothing, and an estimate can replace it.
COUNT_WITHIN_S: Final = 10.0
#: Above every real answer: 2,048 embeddings of 3,072 numbers have 140 MB.
ANSWER_MAX_BYTES: Final = 256 * 1024 * 1024
HEADER_LINE: Final = re.compile(r"[!#-'*+.^_`|~0-9A-Za-z-]+: [\t -~]*\r\n")
REDACTED: Final = "***"
#: What the SDKs get instead of a key, which is put into their headers here.
NO_KEY: Final = "no-key-yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One address of a protocol whose calls are billed.

    ``extras`` (of a body) and ``bounded`` are those of SDKUpstream. ``open_stream`` returns the
    request to send for a stream, and the reader of its events; None if there are no streams.
    ``usage`` and ``generated`` read a whole answer's JSON, ``ids`` a request's and its answer's.
    """

    path: str
    extras: Callable[[Mapping[str, object]], Extras]
    bounded: Callable[[RawRequest, Bounds], RawRequest]
    open_stream: Callable[[RawRequest], tuple[RawRequest, EventReader]] | None = None
    usage: Callable[[object], Usage]
    generated: Callable[[object], list[str]]
    ids: Callable[[Mapping[str, object], object], tuple[str, ...]] = lambda *_: ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamProtocol:
    """A protocol: what differs between the providers' SDKs and APIs.

    ``name`` is also that of the SDK's module, and ``client_class`` its client.
    ``request_id_header`` is passed on to clients, who may need it to report a problem.

    Turns are sent to the first of the ``apis``: ``body`` writes one, with the most tokens of its
    answer, and ``completion`` reads that. ``count_path`` counts the tokens of an input. ``quotas``
    reads an answer's headers. ``quotas_by_direction`` is that of Upstream. ``error_kind`` is the
    cause of an APIStatusError if the status alone does not tell it.
    """

    name: str
    client_class: str
    request_id_header: str
    apis: tuple[Api, ...]
    body: Callable[[Turn, int], dict[str, object]]
    completion: Callable[[object], Completion]
    count_path: str
    quotas: Callable[[Mapping[str, str]], tuple[Quota, ...]]
    quotas_by_direction: bool
    error_kind: Callable[[Any], ErrorKind | None]

    def api(self, path: str) -> Api:
        """Return the API at that path; the first for an empty one."""
        return next((api for api in self.apis if api.path == path), self.apis[0])

    @property
    def sdk(self) -> Any:
        """The SDK's module. The SDKs are generated alike, and have the same names."""
        return import_module(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """What is configured of an upstream, with its ``table`` of the providers file.

    ``patterns`` match the names of its models. Without ``base_url`` it is the provider's own
    service, and the SDK's variables of the environment apply; else only what is in the table.
    """

    name: str
    table: UpstreamTable
    patterns: tuple[str, ...]
    keys: Keys
    timeouts: Timeouts
    #: Headers of the current trace; None without traces.
    trace_headers: Callable[[], Mapping[str, str]] | None = None


class Connection:
    """An SDK's client, and the connections of its requests. These are those of the SDK, as it makes
    them once for each path: its address and headers are the same for all."""

    def __init__(self, client: Any, pool: Pool, settings: UpstreamSettings) -> None:
        self._client = client
        self._pool = pool
        self._settings = settings
        self._samples: dict[tuple[str, float], httpx2.Request] = {}
        #: The key's secret and the headers with it, by path, timeout and name of the key.
        self._headers: dict[tuple[str, float, str], tuple[str | None, dict[str, str]]] = {}

    def send(
        self, path: str, request: RawRequest, key: tuple[str, str] | None, *, read_s: float
    ) -> Answer:
        """Send what the SDK would with this key, its name and secret. The body is not read."""
        sample = self._samples.get((path, read_s))
        if sample is None:
            sample = self._samples[path, read_s] = self._sample(path, read_s)
        name, secret = key or ("", None)
        known = self._headers.get((path, read_s, name))
        if known is None or known[0] != secret:
            headers = self._with_key(sample.headers, secret)
            known = secret, _lines((n.decode(), v.decode()) for n, v in headers.raw)
            self._headers[path, read_s, name] = known
        lines, url = known[1], sample.url
        if request.headers:
            lines = lines | _lines(request.headers.items())
        if self._settings.trace_headers is not None:
            lines = lines | _lines(self._settings.trace_headers().items())
        head = "".join(lines.values())
        if request.raw or request.method == "POST":
            head += f"Content-Length: {len(request.raw)}\r\n"
        if request.object_path:
            url = url.copy_with(path=f"{url.path}/{request.object_path}")
        if request.query:
            url = url.copy_merge_params(request.query)
        target = url.raw_path.decode("ascii")
        # Not Client.send: a redirect would be a call to an unknown address that no limit has
        # counted, and a cookie from one client's answer would be sent with another's request.
        return self._pool.send(request.method, target, head, request.raw, read_s=read_s)

    def status_error(self, path: str, answer: Answer, *, read_s: float) -> Any:
        """Return the SDK's APIStatusError for an answer whose body was read."""
        import httpx2  # noqa: PLC0415 - loaded with the SDKs, which take long: only if there is a key

        headers = {
            name.encode("latin-1"): value.encode("latin-1")
            for name, value in answer.headers.items()
            if name != "content-encoding"
        }
        response = httpx2.Response(
            answer.status,
            headers=headers,
            content=answer.content,
            request=self._samples[path, read_s],
        )
        return self._client._make_status_error_from_response(response)  # noqa: SLF001

    def _sample(self, path: str, read_s: float) -> httpx2.Request:
        """Return the request that the SDK makes for a call of this path, without a body."""
        import httpx2  # noqa: PLC0415

        made: list[httpx2.Request] = []

        def keep(request: httpx2.Request) -> httpx2.Response:
            made.append(request)
            return httpx2.Response(200)

        with httpx2.Client(transport=httpx2.MockTransport(keep)) as nowhere:
            client = self._client.with_options(http_client=nowhere)
            if self._settings.table.base_url is not None:
                _forget_environment(client, self._settings.table.headers)
            options = {"timeout": read_s}  # which is in a header
            client.post(path, cast_to=httpx2.Response, content=b"", options=options)
        made[0].headers.pop("content-length", None)
        return made[0]

    def _with_key(self, headers: httpx2.Headers, secret: str | None) -> httpx2.Headers:
        """Return the headers of a sample with this key, or without any."""
        headers, own = headers.copy(), self._settings.table.key_header
        for name, value in list(headers.items()):
            if NO_KEY in value:
                del headers[name]
                if secret is not None and own is None:
                    headers[name] = value.replace(NO_KEY, secret)
        if secret is not None and own is not None:
            headers[own] = f"Bearer {secret}" if own.lower() == "authorization" else secret
        return headers


class SDKUpstream:
    """An upstream that speaks a protocol with an SDK."""

    def __init__(self, protocol: UpstreamProtocol, settings: UpstreamSettings) -> None:
        self._protocol = protocol
        self._settings = settings
        self._timeouts = settings.timeouts
        self._connection: PerProcess[Connection] = PerProcess(self._connect)
        self.name: Final = settings.name
        self.patterns: Final = settings.patterns
        self.quotas_by_direction: Final = protocol.quotas_by_direction
        self.keys: Final = settings.keys
        self.sends_classes: Final = settings.table.classes is not None

    def prepare(self) -> None:
        """Import the SDK and make its client, unless a key is missing. That takes a second: a
        server does it at its start, rather than within its first call."""
        if self.missing is None:
            self._connection.get()

    @property
    def missing(self) -> str | None:
        """A key that must be set; None if one is, or if the upstream needs none."""
        return self.keys.names[0] if self.keys.are_missing else None

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)

    def complete(self, turn: Turn, max_tokens: int) -> Completion:
        return self._completion(turn, self.forward(self._request(turn, max_tokens)))

    def _completion(self, turn: Turn, answer: RawAnswer) -> Completion:
        with upstream_errors(self._protocol):
            completion = self._protocol.completion(answer.fields)
        return completion._replace(
            model=completion.model or turn.model.name,
            usage=answer.usage,
            quotas=answer.quotas,
            generated=answer.generated,
        )

    def stream(self, turn: Turn, max_tokens: int) -> AnswerStream:
        answer = self._stream(self._request(turn, max_tokens, stream=True), lenient=False)
        if isinstance(answer, EventStream):
            return answer
        return WholeStream(self._completion(turn, answer))

    def _request(self, turn: Turn, max_tokens: int, **more: object) -> RawRequest:
        body = {**self._protocol.body(turn, max_tokens), **more}
        request, name = RawRequest.of(body, key=turn.model.key), turn.traffic_class
        return request if name is None else next(self.with_class(request, name), request)

    def extras(self, request: RawRequest) -> Extras:
        """Return what changes the price of the request, whatever JSON is in it."""
        api = self._protocol.api(request.path)
        found, refused = api.extras(request.fields), self._settings.table.refuse
        if not refused:
            return found
        sent = [name for name in refused if request.fields.get(name) is not None]
        own = dict.fromkeys(sent, "has no price here")
        return found._replace(refused={**found.refused, **own})

    def with_class(self, request: RawRequest, name: str) -> Iterator[RawRequest]:
        """Yield the request with its class as the upstream reads it, the best value first; nothing
        if it reads none."""
        table = self._settings.table.classes
        if table is None:
            return
        if (field := table.field) is not None:
            for value in table.values_for(name, request.fields.get(field)):
                yield request.with_fields(**{field: value})
        elif table.header is not None:
            header = {table.header: str(table.values_for(name)[0])}
            yield request._replace(headers={**request.headers, **header})

    def bounded(self, request: RawRequest, bounds: Bounds) -> RawRequest:
        """Return the request within these bounds; unchanged if its own are lower."""
        return self._protocol.api(request.path).bounded(request, bounds)

    def forward(self, request: RawRequest) -> RawAnswer:
        """Send the request once and wait for the whole answer. Raises UpstreamError."""
        api = self._protocol.api(request.path)
        with upstream_errors(self._protocol):
            answer = self._posted(api.path, request, read_s=self._timeouts.read_s)
            return _billed(api, request, answer)

    def forward_stream(self, request: RawRequest) -> EventStream | RawAnswer:
        """The same for a stream; the whole answer of an upstream that has none."""
        return self._stream(request, lenient=True)

    def count(self, request: RawRequest) -> RawAnswer:
        return self.fetch(request._replace(path=self._protocol.count_path))

    def fetch(self, request: RawRequest) -> RawAnswer:
        read_s = min(COUNT_WITHIN_S, self._timeouts.read_s)
        try:
            with upstream_errors(self._protocol):
                return self._posted(request.path, request, read_s=read_s)
        except UpstreamError as error:
            if error.kind == "malformed":
                error.kind = "unavailable"  # nothing was billed
            raise

    def _posted(self, path: str, request: RawRequest, *, read_s: float) -> RawAnswer:
        """Return the answer; raises what `upstream_errors` expects."""
        with reads_within(read_s):
            return self._parsed(self._send(path, request, read_s=read_s))

    def _parsed(self, answer: Answer) -> RawAnswer:
        return RawAnswer(
            raw=answer.content,
            fields=json.loads(answer.content),
            headers=_request_id(self._protocol, answer.headers),
            content_type=sendable(answer.headers, "content-type") or JSON,
            quotas=self._protocol.quotas(answer.headers),
        )

    def _stream(self, request: RawRequest, *, lenient: bool) -> EventStream | RawAnswer:
        """Send the request once. ``lenient`` passes on events that cannot be parsed."""
        protocol, timeouts = self._protocol, self._timeouts
        api = protocol.api(request.path)
        assert api.open_stream is not None, f"{api.path} has no streams"
        request, reader = api.open_stream(request)
        # Compression would delay events until a block is full.
        plain = request._replace(headers={**request.headers, "Accept-Encoding": "identity"})
        with upstream_errors(protocol), reads_within(timeouts.first_byte_s):
            answer = self._send(api.path, plain, read_s=timeouts.first_byte_s, stream=True)
            if not answer.is_stream:
                return _billed(api, request, self._parsed(answer))
        # The stream has begun: from now on each read has the usual time.
        answer.read_s = timeouts.read_s
        return EventStream(
            answer,
            reader,
            headers=_request_id(protocol, answer.headers),
            quotas=protocol.quotas(answer.headers),
            lenient=lenient,
        )

    def _send(
        self, path: str, request: RawRequest, *, read_s: float, stream: bool = False
    ) -> Answer:
        connection, key = self._connection.get(), self.keys.secret(request.key)
        answer = connection.send(path, request, key, read_s=read_s)
        if stream and answer.is_success and answer.is_stream:
            return answer
        try:
            _read(answer)
        except (UpstreamError, ValueError) as error:
            if answer.is_success and getattr(error, "kind", None) == "timeout":
                raise
            kind, message = _status_kind(answer.status), getattr(error, "message", str(error))
            raise _status_error(self._protocol, answer, kind, message=message) from error
        if answer.is_success:
            return answer
        refusal = connection.status_error(path, answer, read_s=read_s)
        raise _refusal(self._protocol, answer, refusal, secret=key and key[1])

    def _connect(self) -> Connection:
        from chatapp.upstreams.transport import Pool  # noqa: PLC0415 - loads the HTTP library

        protocol, settings = self._protocol, self._settings
        sdk = protocol.sdk
        http_client = sdk.DefaultHttpxClient()
        # No retries: a call that timed out may have been billed, and no limit would count the next.
        client = getattr(sdk, protocol.client_class)(
            api_key=NO_KEY,
            base_url=settings.table.base_url,
            default_headers=settings.table.headers,
            default_query=settings.table.query,
            max_retries=0,
            http_client=http_client,
        )
        # Only the environment's can be wrong: the file's has been checked.
        end = ADDED[protocol.name].search(client.base_url.path.rstrip("/"))
        allowed = end and f"the address without {end[0]}, which is added"
        if client.base_url.scheme not in ("http", "https"):
            allowed = "an address that begins with https:// or http://"
        if allowed:
            name = f"{protocol.name.upper()}_BASE_URL"
            raise ConnectionError(f"{name}: found {str(client.base_url)!r}; allowed: {allowed}")
        pool = Pool(http_client, client.base_url, connect_s=self._timeouts.connect_s)
        return Connection(client, pool, settings)


def _read(answer: Answer) -> None:
    """Read the body with a bound: an answer must not fill the memory, nor a few bytes that decode
    to gigabytes. ValueError above ANSWER_MAX_BYTES."""
    pieces, size = [], 0
    try:
        for piece in answer.decoded():
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_MAX_BYTES:
                raise ValueError(f"the answer is larger than {ANSWER_MAX_BYTES} bytes")
    finally:
        answer.close()
    answer.content = b"".join(pieces)


def _lines(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the lines of these headers by their names in lower case."""
    lines: dict[str, str] = {}
    for name, value in headers:
        line = f"{name}: {value}\r\n"
        if not HEADER_LINE.fullmatch(line):
            raise UpstreamError("unavailable", message=f"the header {name!r} cannot be sent")
        lines[name.lower()] = line
    return lines


def _forget_environment(client: Any, headers: Mapping[str, str]) -> None:
    """Keep what the SDK has read for its provider (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS …) from
    another service."""
    client._custom_headers = dict(headers)  # noqa: SLF001
    for name in ("organization", "project"):
        if isinstance(getattr(client, name, None), str):
            setattr(client, name, None)


def _billed(api: Api, request: RawRequest, answer: RawAnswer) -> RawAnswer:
    """Return the answer with what it says of its costs."""
    try:
        usage = api.usage(answer.fields)
    except ValueError:  # not reported, or unreadable
        usage = None
    generated, ids = api.generated(answer.fields), api.ids(request.fields, answer.fields)
    return answer._replace(usage=usage, generated=generated, ids=ids)


def _request_id(protocol: UpstreamProtocol, headers: Mapping[str, str]) -> dict[str, str]:
    found = sendable(headers, protocol.request_id_header)
    return {protocol.request_id_header: found} if found else {}


@contextmanager
def upstream_errors(protocol: UpstreamProtocol) -> Iterator[None]:
    """Turn the SDK's errors, and those of reading an answer, into UpstreamError."""
    try:
        yield
    except (OSError, getattr(protocol.sdk, f"{protocol.client_class}Error")) as error:
        raise UpstreamError("unavailable", message=str(error)) from error
    except (ValueError, RecursionError) as error:  # an invalid body, or one that is nested too deep
        raise UpstreamError("malformed", message=str(error), status=200) from error


def _refusal(
    protocol: UpstreamProtocol, answer: Answer, error: Any, *, secret: str | None
) -> UpstreamError:
    """Return the UpstreamError of an APIStatusError, without the key, which upstreams may quote."""
    kind = protocol.error_kind(error) or _status_kind(answer.status)
    message, text = error.message, error.response.text
    if secret:
        message, text = message.replace(secret, REDACTED), text.replace(secret, REDACTED)
    return _status_error(protocol, answer, kind, message=message, raw=text.encode())


def _status_kind(status: int) -> ErrorKind:
    """Return the cause of a failure, if only the status of the answer tells it."""
    if status in STATUS_KINDS:
        return STATUS_KINDS[status]
    if status < 300:
        return "malformed"  # the call is billed, even if the rest of the answer does not arrive
    # Neither a 3xx nor a 5xx blames the request.
    return "bad_request" if 400 <= status < 500 else "unavailable"


def _status_error(
    protocol: UpstreamProtocol, answer: Answer, kind: ErrorKind, *, message: str, raw: bytes = b""
) -> UpstreamError:
    return UpstreamError(
        kind,
        message=message,
        status=answer.status,
        retry_after_s=(
            regained_after_s(message) if kind == "quota" else retry_after_s(answer.headers)
        ),
        raw=raw,
        quotas=protocol.quotas(answer.headers),
        request_id=sendable(answer.headers, protocol.request_id_header),
    )
