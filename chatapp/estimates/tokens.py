"""Input tokens: counted with the model's tokenizer, or on the safe side with a related one.

Up to EXACT_CHARACTERS every text is counted. Of more, SLICES slices spread over the whole are, and
the rest is taken to be like them, plus two standard errors of their mean: uneven prompts are
estimated higher. So a prompt of 3 MB costs no more time than one of 32 kB, and who hides dense
text between the slices is billed by the provider's count like everybody else, only later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Final, NamedTuple

from chatapp.catalogue import Model
from chatapp.estimates.contents import Contents, of_body
from chatapp.estimates.families import Family, family_of
from chatapp.estimates.tokenizer import tokenizer

#: About 8,000 tokens of English, and 3 ms.
EXACT_CHARACTERS: Final = 32_768
SLICES: Final = 64
SLICE_CHARACTERS: Final = EXACT_CHARACTERS // SLICES
GOLDEN_RATIO: Final = (1 + math.sqrt(5)) / 2
#: More texts than that are counted as one, for each has its own cost.
EXACT_TEXTS: Final = 2_000
#: Of parts that nobody can count: encoded files, above all. A page of a PDF has up to 3,000 tokens
#: and seldom less than 9,000 bytes.
OPAQUE_BYTES_PER_TOKEN: Final = 3
#: Of a file that is named by its URL or id, and not in the request: 20 pages of a PDF.
FILE_TOKENS: Final = 50_000


class InputTokens(NamedTuple):
    """``expected`` errs on the side of too many; ``least`` is what the text has for certain."""

    expected: int
    least: int


def input_tokens(model: Model, asked: Mapping[str, object]) -> InputTokens:
    """The tokens that the provider will count for this body in OpenAI's or Anthropic's protocol.
    Never raises for what JSON can hold."""
    contents, family = of_body(asked), family_of(model)
    texts = text_tokens(contents.texts, family)
    expected = -(-texts * family.text_percent // 100) + _other_tokens(contents, family)
    return InputTokens(expected, texts * family.least_percent // 100)


def text_tokens(texts: Sequence[str], family: Family) -> int:
    """The tokens of these texts together, by the family's tokenizer, without its factor."""
    if family.encoding is None:
        return sum(-(-_size_bytes(text) // family.bytes_per_token) for text in texts)
    count = tokenizer(family.encoding).count
    characters = sum(map(len, texts))
    if characters <= EXACT_CHARACTERS and len(texts) <= EXACT_TEXTS:
        return sum(count(_encodable(text)) for text in texts)
    whole = _encodable("\n".join(texts))
    if len(whole) <= EXACT_CHARACTERS:
        return count(whole)
    # No tokenizer of bytes makes more tokens than there are bytes.
    return min(_extrapolated([count(part) for part in _slices(whole)], whole), _size_bytes(whole))


def _slices(whole: str) -> list[str]:
    # One in each of SLICES equal ranges, at places that keep step with no period in the text: the
    # multiples of the golden ratio, without their whole part.
    step = (len(whole) - SLICE_CHARACTERS) / SLICES
    starts = (int((place + place * GOLDEN_RATIO % 1) * step) for place in range(SLICES))
    return [whole[start : start + SLICE_CHARACTERS] for start in starts]


def _extrapolated(counts: Sequence[int], whole: str) -> int:
    standard_error = stdev(counts) / math.sqrt(len(counts))
    return math.ceil((fmean(counts) + 2 * standard_error) * len(whole) / SLICE_CHARACTERS)


def _other_tokens(contents: Contents, family: Family) -> int:
    return (
        contents.messages * family.message_tokens
        + contents.names
        + family.reply_tokens
        + contents.images * family.image_tokens
        + contents.has_tools * family.tool_tokens
        + contents.files * FILE_TOKENS
        - (-contents.opaque_bytes // OPAQUE_BYTES_PER_TOKEN)
    )


def _encodable(text: str) -> str:
    """Without lone surrogates, which JSON can hold and UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _size_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
