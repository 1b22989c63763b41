"""A provider over its official synchronous SDK.

A request is sent once, as bytes, and its answer is read as bytes: the SDK adds the key, the
address, its headers and the connections. Requests go to its HTTP client directly: the SDK itself
takes as long for one as all of Flask does. Errors of the SDK and of its HTTP library become
ProviderError here, and nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from chatapp.per_process import PerProcess
from chatapp.providers import (
    Completion,
    ErrorKind,
    Extras,
    Prompt,
    ProviderError,
    Quota,
    RawAnswer,
    RawRequest,
    Timeouts,
    Usage,
)
from chatapp.providers.answer import retry_after_s, sendable
from chatapp.providers.cancellation import with_cancellable_reads
from chatapp.providers.event_stream import EventReader, EventStream

if TYPE_CHECKING:
    import httpx2

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
KEY_HEADERS: Final = ("authorization", "x-api-key", "api-key")
REDACTED: Final = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One address of a vendor whose calls are billed, with its protocol.

    ``extras`` (of a body) and ``bounded`` are those of Forwarder. ``open_stream`` returns the
    request to send for a stream, and the reader of its events; None if there are no streams.
    ``usage`` and ``output_bytes`` read a whole answer's JSON, ``ids`` a request's and its answer's.
    """

    path: str
    extras: Callable[[Mapping[str, object]], Extras]
    bounded: Callable[[RawRequest, int], RawRequest]
    open_stream: Callable[[RawRequest], tuple[RawRequest, EventReader]] | None = None
    usage: Callable[[object], Usage]
    output_bytes: Callable[[object], int]
    ids: Callable[[Mapping[str, object], object], tuple[str, ...]] = lambda *_: ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """What differs between the vendors' SDKs and APIs.

    ``name`` is also the SDK's module, ``client_class`` its client and ``error_class`` the base of
    its errors. ``patterns`` match the names of its models. ``request_id_header`` is passed on to
    clients, who may need it to report a problem.

    Prompts are sent to the first of the ``apis``: ``body`` writes one, and ``completion`` reads its
    answer. ``count_path`` counts the tokens of an input. ``quotas`` reads an answer's headers.
    ``quotas_by_direction`` is that of Provider. ``error_kind`` is the cause of an APIStatusError if
    the status alone does not tell it.
    """

    name: str
    client_class: str
    error_class: str
    key_variable: str
    patterns: tuple[str, ...]
    request_id_header: str
    apis: tuple[Api, ...]
    body: Callable[[Prompt], dict[str, object]]
    completion: Callable[[RawAnswer], Completion]
    count_path: str
    quotas: Callable[[Mapping[str, str]], tuple[Quota, ...]]
    quotas_by_direction: bool
    error_kind: Callable[[Any], ErrorKind | None]

    def api(self, path: str) -> Api:
        """The API at that path; the first for an empty one."""
        return next((api for api in self.apis if api.path == path), self.apis[0])

    @property
    def sdk(self) -> Any:
        """The SDK's module. The SDKs are generated alike, and have the same names."""
        return import_module(self.name)


class Connection:
    """An SDK's HTTP client. Requests are those of the SDK, as it makes them once for each path: its
    address, key and headers are the same for all."""

    def __init__(self, client: Any, http_client: httpx2.Client, *, connect_s: float) -> None:
        self._client = client
        self._http_client = http_client
        self._connect_s = connect_s
        self._samples: dict[tuple[str, float], httpx2.Request] = {}

    def send(
        self, path: str, request: RawRequest, *, read_s: float, stream: bool
    ) -> httpx2.Response:
        """Send what the SDK would, and return the response, whatever its status."""
        import httpx2  # noqa: PLC0415

        sample = self._samples.get((path, read_s))
        if sample is None:
            timeout = httpx2.Timeout(read_s, connect=self._connect_s)
            sample = self._samples[path, read_s] = self._sample(path, timeout)
        headers, url = sample.headers, sample.url
        if request.headers:
            headers = httpx2.Headers(headers)
            headers.update(request.headers)
        if request.object_path:
            url = url.copy_with(path=f"{url.path}/{request.object_path}")
        if request.query:
            url = url.copy_merge_params(request.query)
        sent = httpx2.Request(
            request.method,
            url,
            headers=headers,
            content=request.raw,
            extensions={"timeout": {**sample.extensions["timeout"]}},
        )
        return self._http_client.send(sent, stream=stream)

    def status_error(self, response: httpx2.Response) -> Any:
        """The SDK's APIStatusError for a response that was read."""
        return self._client._make_status_error_from_response(response)  # noqa: SLF001

    def _sample(self, path: str, timeout: httpx2.Timeout) -> httpx2.Request:
        """The request that the SDK makes for a call of this path, without a body."""
        import httpx2  # noqa: PLC0415

        made: list[httpx2.Request] = []

        def keep(request: httpx2.Request) -> httpx2.Response:
            made.append(request)
            return httpx2.Response(200)

        with httpx2.Client(transport=httpx2.MockTransport(keep)) as nowhere:
            self._client.with_options(http_client=nowhere).post(
                path, cast_to=httpx2.Response, content=b"", options={"timeout": timeout}
            )
        made[0].headers.pop("content-length", None)
        return made[0]


class SDKProvider:
    """A vendor, or the compatible server at its SDK's base URL variable."""

    def __init__(self, vendor: Vendor, timeouts: Timeouts) -> None:
        self._vendor = vendor
        self._timeouts = timeouts
        self._connection: PerProcess[Connection] = PerProcess(self._connect)
        self.name: Final = vendor.name
        self.patterns: Final = vendor.patterns
        self.quotas_by_direction: Final = vendor.quotas_by_direction
        self.missing: Final = None if os.environ.get(vendor.key_variable) else vendor.key_variable
        if self.missing is None:
            # An SDK takes up to a second to import: at the start rather than within a request, and
            # not at all without a key.
            import_module(vendor.name)

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)

    def complete(self, prompt: Prompt) -> Completion:
        answer = self.forward(RawRequest.of(self._vendor.body(prompt)))
        with provider_errors(self._vendor):
            return self._vendor.completion(answer)

    def stream(self, prompt: Prompt) -> EventStream:
        request = RawRequest.of({**self._vendor.body(prompt), "stream": True})
        return self._stream(request, lenient=False)

    def extras(self, request: RawRequest) -> Extras:
        return self._vendor.api(request.path).extras(request.fields)

    def bounded(self, request: RawRequest, most_output_tokens: int) -> RawRequest:
        return self._vendor.api(request.path).bounded(request, most_output_tokens)

    def forward(self, request: RawRequest) -> RawAnswer:
        api = self._vendor.api(request.path)
        answer = self._post(api.path, request, read_s=self._timeouts.read_s)
        with provider_errors(self._vendor):
            return replace(
                answer,
                usage=_usage(api, answer.fields),
                output_bytes=api.output_bytes(answer.fields),
                ids=api.ids(request.fields, answer.fields),
            )

    def forward_stream(self, request: RawRequest) -> EventStream:
        return self._stream(request, lenient=True)

    def count(self, request: RawRequest) -> RawAnswer:
        read_s = min(COUNT_WITHIN_S, self._timeouts.read_s)
        return self._post(self._vendor.count_path, request, read_s=read_s)

    def fetch(self, request: RawRequest) -> RawAnswer:
        return self._post(request.path, request, read_s=min(COUNT_WITHIN_S, self._timeouts.read_s))

    def _post(self, path: str, request: RawRequest, *, read_s: float) -> RawAnswer:
        """Send the request once and wait for the whole answer."""
        vendor = self._vendor
        with provider_errors(vendor):
            response = self._send(path, request, read_s=read_s)
            headers = dict(response.headers.items())
            return RawAnswer(
                raw=response.content,
                fields=json.loads(response.content),
                content_type=sendable(headers, "content-type") or JSON,
                headers=_request_id(vendor, headers),
                quotas=vendor.quotas(headers),
            )

    def _stream(self, request: RawRequest, *, lenient: bool) -> EventStream:
        """Send the request once. ``lenient`` passes on events that cannot be parsed."""
        vendor, timeouts = self._vendor, self._timeouts
        api = vendor.api(request.path)
        assert api.open_stream is not None, f"{api.path} has no streams"
        request, reader = api.open_stream(request)
        # Compression would delay events until a block is full.
        plain = replace(request, headers={**request.headers, "Accept-Encoding": "identity"})
        with provider_errors(vendor):
            response = self._send(api.path, plain, read_s=timeouts.first_byte_s, stream=True)
            # The stream has begun: from now on each read has the usual time.
            response.request.extensions["timeout"]["read"] = timeouts.read_s
        headers = dict(response.headers.items())
        return EventStream(
            response,
            reader,
            provider=vendor.name,
            headers=_request_id(vendor, headers),
            quotas=vendor.quotas(headers),
            lenient=lenient,
        )

    def _send(
        self, path: str, request: RawRequest, *, read_s: float, stream: bool = False
    ) -> httpx2.Response:
        import httpx2  # noqa: PLC0415 - loaded with the SDKs, which take long: only if there is a key

        connection = self._connection.get()
        response = connection.send(path, request, read_s=read_s, stream=stream)
        if response.is_success:
            return response
        try:
            response.read()
        except httpx2.HTTPError as error:
            kind = STATUS_KINDS.get(response.status_code, "unavailable")
            raise _status_error(self._vendor, response, kind, message=str(error)) from error
        raise _refusal(self._vendor, connection.status_error(response))

    def _connect(self) -> Connection:
        import httpx2  # noqa: PLC0415

        sdk, connect_s = self._vendor.sdk, self._timeouts.connect_s
        timeout = httpx2.Timeout(self._timeouts.read_s, connect=connect_s)
        http_client = with_cancellable_reads(
            sdk.DefaultHttpxClient(
                timeout=timeout,
                # A redirect would be a call to an unknown address that no limit has counted.
                follow_redirects=False,
                cookies=_no_cookies(),
            )
        )
        # No retries: a call that timed out may have been billed, and no limit would count the next.
        client = getattr(sdk, self._vendor.client_class)
        made = client(timeout=timeout, max_retries=0, http_client=http_client)
        return Connection(made, http_client, connect_s=connect_s)


def _usage(api: Api, fields: object) -> Usage | None:
    try:
        return api.usage(fields)
    except ValidationError:
        return None


def _request_id(vendor: Vendor, headers: Mapping[str, str]) -> dict[str, str]:
    """The header with the provider's id of the request, if it has one."""
    found = sendable(headers, vendor.request_id_header)
    return {vendor.request_id_header: found} if found else {}


@contextmanager
def provider_errors(vendor: Vendor) -> Iterator[None]:
    """Turn the SDK's errors, and those of reading an answer, into ProviderError."""
    import httpx2  # noqa: PLC0415

    sdk, name = vendor.sdk, vendor.name
    try:
        yield
    except httpx2.TimeoutException as error:
        # Without a connection the prompt was not sent, and may be sent again.
        is_late = not isinstance(error, httpx2.ConnectTimeout)
        kind: ErrorKind = "timeout" if is_late else "unavailable"
        raise ProviderError(name, kind, message=str(error)) from error
    except (httpx2.HTTPError, OSError, getattr(sdk, vendor.error_class)) as error:
        raise ProviderError(name, "unavailable", message=str(error)) from error
    except (ValueError, RecursionError) as error:  # an invalid body, or one that is nested too deep
        raise ProviderError(name, "malformed", message=str(error), status=200) from error


def _refusal(vendor: Vendor, error: Any) -> ProviderError:
    """The ProviderError of an APIStatusError."""
    response, sent = error.response, error.request.headers
    kind = vendor.error_kind(error) or STATUS_KINDS.get(response.status_code)
    if kind is None:  # neither a 3xx nor a 5xx blames the request
        kind = "bad_request" if 400 <= response.status_code < 500 else "unavailable"
    message = _without_key(error.message, sent)
    raw = _without_key(response.text, sent).encode()
    return _status_error(vendor, response, kind, message=message, raw=raw)


def _status_error(
    vendor: Vendor, response: httpx2.Response, kind: ErrorKind, *, message: str, raw: bytes = b""
) -> ProviderError:
    return ProviderError(
        vendor.name,
        kind,
        message=message,
        status=response.status_code,
        retry_after_s=retry_after_s(response.headers),
        raw=raw,
        quotas=vendor.quotas(response.headers),
        request_id=sendable(response.headers, vendor.request_id_header),
    )


def _no_cookies() -> CookieJar:
    """A jar that stores nothing. All clients share one connection pool, and a cookie from one
    client's answer would be sent with another client's request."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _without_key(text: str, sent: Mapping[str, str]) -> str:
    """The text without the key of the request that had these headers: providers may quote it."""
    for header in KEY_HEADERS:
        if key := sent.get(header, "").removeprefix("Bearer "):
            text = text.replace(key, REDACTED)
    return text
