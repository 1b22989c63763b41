"""A stream of events from a provider, over the response of its SDK's client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from chatapp import server_sent_events
from chatapp.providers import Part, Progress, ProviderError, Quota
from chatapp.server_sent_events import Event
from chatapp.upstream_wait import hang_up

if TYPE_CHECKING:
    import httpx2


class EventReader(Protocol):
    """What a provider's events mean. ``over`` is set by the event after which none matters."""

    progress: Progress
    over: bool

    def read(self, event: Event) -> Part:
        """What the event brought; ValueError where it cannot be read, ProviderError where it tells
        of one."""
        ...


class UpstreamStream:
    """An AnswerStream over ``response``, whose body has not been read yet.

    ``lenient`` hands on what ``reader`` cannot read, for callers who may understand it; else it is
    an error.
    """

    def __init__(
        self,
        response: httpx2.Response,
        reader: EventReader,
        *,
        provider: str,
        headers: Mapping[str, str],
        quotas: tuple[Quota, ...],
        lenient: bool,
    ) -> None:
        self._response = response
        self._reader = reader
        self._provider = provider
        self._lenient = lenient
        self.headers = headers
        self.quotas = quotas
        self.progress = reader.progress
        found = response.headers.get("content-type", "")
        if not found.startswith(server_sent_events.MIMETYPE):
            self.close()
            raise ProviderError(provider, "malformed", message=f"no events but {found}", status=200)

    def __iter__(self) -> Iterator[Part]:
        try:
            for event in server_sent_events.read(self._chunks()):
                part = self._part(event)
                if part.text or part.raw:
                    yield part
        except ValueError as error:
            raise ProviderError(self._provider, "malformed", message=str(error)) from error
        finally:
            self.close()
        if self.progress.finish_reason is None:
            raise ProviderError(self._provider, "unavailable", message="the stream ended too early")

    def close(self) -> None:
        self._response.close()

    def abort(self) -> None:
        network = self._response.extensions.get("network_stream")
        if network is not None:
            hang_up(network)

    def _chunks(self) -> Iterator[bytes]:
        import httpx2  # noqa: PLC0415 - with the SDKs, which import it: only where there is a key

        try:
            yield from self._response.iter_bytes()
        except httpx2.TimeoutException as error:
            if not self._reader.over:
                raise ProviderError(self._provider, "timeout", message=str(error)) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            if not self._reader.over:
                raise ProviderError(self._provider, "unavailable", message=str(error)) from error

    def _part(self, event: Event) -> Part:
        try:
            return self._reader.read(event)
        except ValueError:
            if not self._lenient:
                raise
            return Part("", event.raw)
