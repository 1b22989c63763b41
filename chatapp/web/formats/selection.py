"""The wire format of a request to an address that both vendors have."""

from __future__ import annotations

from typing import Final

from flask import request

from chatapp.web.formats.anthropic import AnthropicFormat
from chatapp.web.formats.openai import OpenAIFormat
from chatapp.web.formats.wire_format import WireFormat

OPENAI: Final = OpenAIFormat()
ANTHROPIC: Final = AnthropicFormat()


def speaks_anthropic() -> bool:
    """Whether the current request is in Anthropic's protocol, by the header that it requires."""
    return "anthropic-version" in request.headers


def current_format() -> WireFormat:
    """Anthropic's format for Anthropic's clients, OpenAI's for all others."""
    return ANTHROPIC if speaks_anthropic() else OPENAI
