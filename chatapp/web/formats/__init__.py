"""What differs between the wire formats of answers, and which one a request has."""

from __future__ import annotations

from typing import Final, TypeAlias

from flask import current_app, request

from chatapp.web.formats.anthropic import AnthropicFormat
from chatapp.web.formats.chat import ChatFormat
from chatapp.web.formats.openai import OpenAIFormat
from chatapp.web.formats.responses import ResponsesFormat

#: A provider's wire format. Its endpoints serve the models in its ``protocol`` and the offline one.
WireFormat: TypeAlias = OpenAIFormat | ResponsesFormat | AnthropicFormat
#: Writes answers that are not forwarded: those of POST /chat and of the offline model. ``events``
#: yields those of a stream: before its parts, of each part, and after the last one.
AnswerFormat: TypeAlias = WireFormat | ChatFormat

OPENAI: Final = OpenAIFormat()
RESPONSES: Final = ResponsesFormat()
ANTHROPIC: Final = AnthropicFormat()


def speaks_anthropic() -> bool:
    """Return whether the request is in Anthropic's protocol, by the header that it requires."""
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
