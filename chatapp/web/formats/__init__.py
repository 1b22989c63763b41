"""What differs between the wire formats of answers, and which one a request has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, Protocol

from flask import current_app, request

from chatapp.upstreams import Completion, Part, Progress, UpstreamError
from chatapp.web.errors import ErrorReport
from chatapp.web.formats.anthropic import AnthropicFormat
from chatapp.web.formats.openai import OpenAIFormat
from chatapp.web.formats.responses import ResponsesFormat


class AnswerFormat(Protocol):
    """Writes answers that are not forwarded: those of POST /chat and of the offline model."""

    def answer_body(self, reply: Completion) -> dict[str, object]: ...

    def events(
        self, parts: Iterable[Part], progress: Progress, fields: Mapping[str, object]
    ) -> Iterator[bytes]:
        """Yield the events of a stream for a request with this body: those before its parts, of
        each part, and after the last one."""
        ...

    def error_event(self, error: UpstreamError, *, number: int = 0) -> bytes:
        """Return the event that ends a stream of ``number`` parts with an error."""
        ...


class WireFormat(AnswerFormat, Protocol):
    """A protocol's wire format. Its endpoints serve the models in ``protocol`` and the offline one.

    ``hints`` is what to correct in the base_url, by the number of /v1 at the beginning of an
    unknown address: 0, 1, or 2 for more.
    """

    @property
    def protocol(self) -> str: ...
    @property
    def hints(self) -> tuple[str, str, str]: ...
    @property
    def request_id_header(self) -> str:
        """The header in which the provider's SDK looks for a request id."""
        ...

    def error_body(self, report: ErrorReport) -> dict[str, object]: ...

    @property
    def limit_units(self) -> Collection[str]: ...

    def limit_headers(
        self, unit: str, *, limit: int, remaining: int, reset_after_us: int
    ) -> dict[str, str]:
        """Return the provider's headers for the state of a limit in one of these units."""
        ...


OPENAI: Final = OpenAIFormat()
RESPONSES: Final = ResponsesFormat()
ANTHROPIC: Final = AnthropicFormat()


def speaks_anthropic() -> bool:
    """Return whether the current request is in Anthropic's protocol, by the header that it
    requires."""
    return "anthropic-version" in request.headers


def current_format() -> WireFormat:
    """Return the format of a request to an address that both providers have: Anthropic's for
    Anthropic's clients, OpenAI's for all others."""
    return ANTHROPIC if speaks_anthropic() else OPENAI


def addresses(*blueprints: str) -> list[str]:
    """Return the addresses of blueprints whose names begin like this, without those of stored
    objects. Those of a provider's protocol begin with the protocol's name."""
    return [
        f"{method} {rule.rule.replace('<path:', '<')}"
        for rule in current_app.url_map.iter_rules()
        if rule.endpoint.startswith(blueprints) and "id_" not in rule.arguments
        for method in sorted({*(rule.methods or ())} - {"HEAD", "OPTIONS"})
    ]
