"""What of a request is read by the model, in either vendor's protocol.

Nothing is validated here: what is not of the form that a protocol has is counted as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# Beside the messages: instructions, and what is told to the model as JSON.
SYSTEM: Final = "system"
TOOLS: Final = ("tools", "functions")
SCHEMAS: Final = ("response_format", "output_format", "output_config")
IMAGE_KINDS: Final = frozenset({"image", "image_url", "input_image"})
TEXT_KINDS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
# Parts that are JSON to the model. All others may be encoded files: their length is counted.
JSON_KINDS: Final = frozenset({"tool_use", "tool_result", "thinking", "search_result"})
FILE_KINDS: Final = frozenset({"document", "file", "input_file", "container_upload"})
#: Where a document's content is, if it is in the request.
INLINE: Final = ("data", "file_data", "content", "text")
#: Parts of all messages together that are looked at one by one. Nobody takes more images than that.
MOST_PARTS: Final = 10_000


@dataclass(slots=True)
class Contents:
    """The texts of a prompt and the number of what is no text. ``files`` are documents that are
    named by a URL or an id; ``opaque_bytes`` is the length of parts that cannot be counted, as
    JSON."""

    texts: list[str] = field(default_factory=list)
    messages: int = 0
    names: int = 0
    images: int = 0
    files: int = 0
    opaque_bytes: int = 0
    has_tools: bool = False
    _parts: int = 0

    def add_message(self, message: object) -> None:
        """A message of a body: its role, its content, and whatever else stands in it."""
        self.messages += 1
        if not isinstance(message, Mapping):
            self.texts.append(json_text(message))
            return
        for name, value in message.items():
            if name == "content":
                self.add_content(value)
            elif value is not None:
                self.names += name == "name"
                self.texts.append(value if isinstance(value, str) else json_text(value))

    def add_content(self, content: object) -> None:
        """A text, or parts; the result of a tool has parts in it."""
        pending = [content]
        while pending:
            match pending.pop():
                case None:
                    pass
                case str() as text:
                    self.texts.append(text)
                case list() as parts if self._parts + len(parts) <= MOST_PARTS:
                    self._parts += len(parts)
                    pending += parts
                case dict() as part:
                    pending += self._part(part)
                case other:
                    self.texts.append(json_text(other))

    def _part(self, part: dict[object, object]) -> list[object]:
        """Count a part; returns what is in it and has to be counted as content, too."""
        kind, text = part.get("type"), part.get("text")
        if not isinstance(kind, str):
            self.texts.append(json_text(part))
        elif kind in IMAGE_KINDS:
            self.images += 1
        elif kind in FILE_KINDS and _is_elsewhere(part):
            self.files += 1
        elif kind in TEXT_KINDS and isinstance(text, str):
            self.texts.append(text)
        elif kind in JSON_KINDS | TEXT_KINDS:
            around = {name: value for name, value in part.items() if name != "content"}
            self.texts.append(json_text(around))
            return [part.get("content")]
        else:
            self.opaque_bytes += len(json_text(part).encode("utf-8", "surrogatepass"))
        return []


def of_body(fields: Mapping[str, object]) -> Contents:
    """What is in the body of a request to OpenAI's chat completions or Anthropic's messages."""
    contents = Contents()
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else [messages]:
        contents.add_message(message)
    if fields.get(SYSTEM):
        contents.messages += 1
        contents.add_content(fields[SYSTEM])
    for name in (*TOOLS, *SCHEMAS):
        if fields.get(name):
            contents.texts.append(json_text(fields[name]))
            contents.has_tools |= name in TOOLS
    return contents


def _is_elsewhere(part: Mapping[object, object]) -> bool:
    """Whether a document is named, by a URL or an id, and its content is not in the request."""
    for place in (part, part.get("source"), part.get("file")):
        if isinstance(place, Mapping) and any(place.get(name) for name in INLINE):
            return False
    return True


def json_text(value: object) -> str:
    """The value as compact JSON; where it is nested too deeply for that, about as long a text."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (ValueError, TypeError, RecursionError):
        return _flattened(value)


def _flattened(value: object) -> str:
    words, pending = [], [value]
    while pending:
        match pending.pop():
            case str() as text:
                words.append(text)
            case list() | tuple() as values:
                pending += values
                words.append("[]")
            case dict() as entries:
                pending += [*entries, *entries.values()]
                words.append("{}")
            case _:
                words.append("null")
    return '","'.join(words)
