"""Tokens by a rule of thumb, where nobody has counted them: an interrupted call, for instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# English has 4 to 5 bytes a token with either vendor's tokenizer, code and other scripts less.
# An estimate that is used for a bill errs on the side of the one who pays the provider.
BYTES_PER_TOKEN: Final = 3
# An image, whatever its size in bytes: about what either vendor counts for one of a megapixel.
IMAGE_TOKENS: Final = 1600
# Where base64 stands: {"type": "base64", "data": …} of Anthropic, {"url": "data:…"} of OpenAI.
ENCODED_FIELD: Final = "data"
ENCODED_PREFIX: Final = "data:"
WORDS: Final = ("messages", "system", "tools")


def tokens_of(size_bytes: int) -> int:
    """The tokens of a text of that size in UTF-8."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def input_tokens(fields: Mapping[str, object]) -> int:
    """The tokens of a request in either vendor's protocol: messages, instructions and tools."""
    pending: list[object] = [fields.get(word) for word in WORDS]
    size_bytes = images = 0
    while pending:
        match pending.pop():
            case str() as text if text.startswith(ENCODED_PREFIX):
                images += 1
            case str() as text:
                size_bytes += len(text.encode("utf-8", "surrogatepass"))
            case list() as values:
                pending += values
            case dict() as entries:
                images += isinstance(entries.get(ENCODED_FIELD), str)
                size_bytes += sum(len(name) for name in entries)
                pending += (value for name, value in entries.items() if name != ENCODED_FIELD)
    return tokens_of(size_bytes) + images * IMAGE_TOKENS
