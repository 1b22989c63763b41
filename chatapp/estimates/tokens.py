"""Input tokens: counted with the model's tokenizer, or estimated from above with a related one.

Three parts: what in a body the model reads (`Contents`), how the models of a family count (`Family`
and OpenAI's tokenizers), and the count.

Up to EXACT_CHARACTERS every text is counted. Of a longer prompt SLICES slices are counted, spread
over the whole; the rest is taken to be like them, plus two standard errors of their mean: uneven
prompts are estimated higher. So a prompt of 3 MB takes no more time than one of 32 kB. The places
are random: dense text cannot be hidden between them.
"""

from __future__ import annotations

import binascii
import importlib.util
import json
import math
import random
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from statistics import fmean, stdev
from types import ModuleType
from typing import Final, Literal, NamedTuple, Protocol, cast

from chatapp.catalogue import Model
from chatapp.upstreams.offline import BYTES_PER_TOKEN

Encoding = Literal["o200k_base", "cl100k_base"]

#: About 8,000 tokens of English, and 3 ms.
EXACT_CHARACTERS: Final = 32_768
SLICES: Final = 64
SLICE_CHARACTERS: Final = EXACT_CHARACTERS // SLICES
#: More texts are counted as one, because each text has a cost of its own.
EXACT_TEXTS: Final = 2_000
#: For parts that cannot be counted, such as encoded files. A page of a PDF has up to 3,000 tokens
#: and seldom less than 9,000 bytes.
OPAQUE_BYTES_PER_TOKEN: Final = 3
#: Such a file is sent in base64.
PDF_BYTES_PER_TOKEN: Final = OPAQUE_BYTES_PER_TOKEN * 3 / 4
#: The text of a page of a PDF; its image comes on top. Small pages have fewer bytes than tokens.
PAGE_TOKENS: Final = 1_500
PAGE: Final = re.compile(rb"/Type\s*/Page\b")
#: How many compressed streams of objects, and how much of each, are searched for pages: those of
#: all files of a request, as 135 bytes may be a stream.
MOST_STREAMS: Final = 100
STREAM_BYTES: Final = 50_000
#: Of a file that is outside the request, at a URL or an id: 20 pages of a PDF.
FILE_TOKENS: Final = 50_000
#: Of an item of an earlier response that the request only names: a long answer.
REFERENCE_TOKENS: Final = 1_000

# Where messages are, and beside them: instructions, and what the model gets as JSON.
MESSAGES: Final = ("messages", "input")
SYSTEM: Final = ("system", "instructions")
TOOLS: Final = ("tools", "functions")
SCHEMAS: Final = ("response_format", "output_format", "output_config", "text")
IMAGE_KINDS: Final = frozenset(
    {"image", "image_url", "input_image", "computer_screenshot", "image_generation_call"}
)
TEXT_KINDS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
# Parts that the model gets as JSON. All others may be encoded files: their length is counted.
JSON_KINDS: Final = frozenset({"tool_use", "tool_result", "thinking", "search_result"})
FILE_KINDS: Final = frozenset({"document", "file", "input_file", "container_upload"})
REFERENCE_KIND: Final = "item_reference"
#: Fields of an item that contain parts, as a content does: the output of a tool.
CONTENT: Final = ("content", "output")
#: Reasoning and compactions that only OpenAI can read: base64 with 3 bytes in 4 characters.
ENCRYPTED: Final = "encrypted_content"
#: Fields for a document's content in the request.
INLINE: Final = ("data", "file_data", "content", "text")
#: How many parts of all messages together are counted one by one; no model takes more images.
MOST_PARTS: Final = 10_000

_random: Final = random.SystemRandom().random

PACKAGE: Final = "bpe_openai"
COMPILED: Final = "bpe_openai._bindings"


class InputTokens(NamedTuple):
    """``expected`` errs on the side of too many; ``least`` is certain. ``is_known``: there is no
    file, whose tokens only the provider can count, and no item that it keeps."""

    expected: int
    least: int
    is_known: bool = True


def input_tokens(model: Model, body: Mapping[str, object]) -> InputTokens:
    """Return the provider's count for this body in OpenAI's or Anthropic's protocol. Never raises
    for JSON that is as deep as a body may be (`web/requests/json_body.py`)."""
    contents, family = of_body(body), family_of(model)
    texts = text_tokens(contents.texts, family)
    expected = -(-texts * family.text_percent // 100) + _other_tokens(contents, family)
    is_known = not (contents.files or contents.references or contents.has_documents)
    return InputTokens(expected, texts * family.least_percent // 100, is_known)


def predicted_tokens(model: Model, body: Mapping[str, object]) -> int:
    """Return the tokens of the answer that a chat completion's body predicts; 0 for none."""
    prediction, contents = body.get("prediction"), Contents()
    contents.add_content(prediction.get("content") if isinstance(prediction, Mapping) else None)
    return text_tokens(contents.texts, family_of(model))


def generated_tokens(model: Model, texts: Sequence[str]) -> int:
    """Return the tokens of what a model has generated, or read from a tool, in pieces. Exact for
    OpenAI's models. Another tokenizer is not public: English has 4 to 5 bytes a token, and denser
    texts are counted with a related one, from above."""
    family, whole = family_of(model), "".join(texts)
    counted = text_tokens([whole], family)
    if family.encoding is None or (family.text_percent == 100 and model.upstream == model.protocol):
        return counted
    usual = -(-_size_bytes(whole) // OPAQUE_BYTES_PER_TOKEN)
    is_dense = counted > usual * 11 // 10 + 2
    return counted * family.text_percent // 100 if is_dense else usual


def text_tokens(texts: Sequence[str], family: Family) -> int:
    """Return the tokens of these texts together, by the family's tokenizer, without its factor."""
    if family.encoding is None:
        return sum(-(-_size_bytes(text) // family.bytes_per_token) for text in texts)
    count = tokenizer(family.encoding).count
    characters = sum(map(len, texts))
    if characters <= EXACT_CHARACTERS and len(texts) <= EXACT_TEXTS:
        return sum(map(count, map(_encodable, texts)))
    whole = _encodable("\n".join(texts))
    if len(whole) <= EXACT_CHARACTERS:
        return count(whole)
    # No tokenizer of bytes makes more tokens than there are bytes.
    return min(_sampled(whole, count), _size_bytes(whole))


def _sampled(whole: str, count: Callable[[str], int]) -> int:
    # One in each of SLICES equal ranges, at a random place: nothing can be hidden between them.
    step = (len(whole) - SLICE_CHARACTERS) / SLICES
    starts = (int((place + _random()) * step) for place in range(SLICES))
    counts = [count(whole[start : start + SLICE_CHARACTERS]) for start in starts]
    standard_error = stdev(counts) / math.sqrt(len(counts))
    return math.ceil((fmean(counts) + 2 * standard_error) * len(whole) / SLICE_CHARACTERS)


def _other_tokens(contents: Contents, family: Family) -> int:
    return (
        contents.messages * family.message_tokens
        + contents.names
        + contents.tokens
        + family.reply_tokens
        + contents.images * family.image_tokens
        + contents.has_tools * family.tool_tokens
        + contents.files * FILE_TOKENS
        + contents.references * REFERENCE_TOKENS
        + max(
            -(-contents.opaque_bytes // OPAQUE_BYTES_PER_TOKEN),
            contents.pages * (family.image_tokens + PAGE_TOKENS),
        )
    )


def _encodable(text: str) -> str:
    """Without lone surrogates, which JSON allows and UTF-8 does not."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _size_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@dataclass(slots=True)
class Contents:
    """What the model reads, in either provider's protocol: texts, and numbers of other parts.

    ``tokens`` are those that the client has made, ``files`` are documents at a URL or an id,
    ``references`` items of earlier responses; ``has_documents``: there are files in the request;
    ``opaque_bytes`` is the length of parts that cannot be counted, as JSON, and ``pages`` those of
    PDF files among them. Nothing is validated: parts of an unknown form are counted as JSON.
    """

    texts: list[str] = field(default_factory=list)
    messages: int = 0
    names: int = 0
    tokens: int = 0
    images: int = 0
    files: int = 0
    references: int = 0
    opaque_bytes: int = 0
    pages: int = 0
    has_tools: bool = False
    has_documents: bool = False
    _parts: int = 0
    _streams: int = 0

    def add_message(self, message: object) -> None:
        """A message of a body: its role, its content, and its other fields. Embeddings are made of
        texts, or of tokens."""
        if isinstance(message, int | list):
            self.tokens += 1 if isinstance(message, int) else len(message)
            return
        self.messages += 1
        if not isinstance(message, Mapping):
            self.texts.append(message if isinstance(message, str) else json_text(message))
            return
        kind = message.get("type")
        if kind == REFERENCE_KIND or (kind is None and "id" in message and "role" not in message):
            self.references += 1
            return
        if isinstance(kind, str) and kind in IMAGE_KINDS:
            self.images += 1
            return
        for name, value in message.items():
            if name in CONTENT:
                self.add_content(value)
            elif name == ENCRYPTED and isinstance(value, str):
                self.opaque_bytes += len(value) * 3 // 4
            elif value is not None:
                self.names += name == "name"
                self.texts.append(value if isinstance(value, str) else json_text(value))

    def add_content(self, content: object) -> None:
        """A text, or parts; the result of a tool contains parts."""
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
        """Count a part; returns its own content, which is to be counted as well."""
        kind, text = part.get("type"), part.get("text")
        if not isinstance(kind, str):
            self.texts.append(json_text(part))
        elif kind in IMAGE_KINDS:
            self.images += 1
        elif kind in FILE_KINDS and not (inline := _inline(part)):
            self.files += 1
        elif kind in FILE_KINDS:
            if not _is_text(part):
                self.has_documents = True
                for data in inline:
                    if isinstance(data, str):
                        self._add_pages(data)
            self._add_opaque(part)
        elif kind in TEXT_KINDS and isinstance(text, str):
            self.texts.append(text)
        elif kind in JSON_KINDS | TEXT_KINDS:
            around = {name: value for name, value in part.items() if name != "content"}
            self.texts.append(json_text(around))
            return [part.get("content")]
        else:
            self._add_opaque(part)
        return []

    def _add_pages(self, data: str) -> None:
        """Count the pages of a PDF file in base64, also of a data URL, as far as they can be found;
        none of another file, or of an encrypted one with compressed objects."""
        try:
            content = binascii.a2b_base64(data.rpartition(",")[2])
        except ValueError:
            return
        self.pages += len(PAGE.findall(content))
        for piece in content.split(b"/ObjStm", MOST_STREAMS - self._streams)[1:]:
            self._streams += 1
            compressed = piece.partition(b"stream")[2].lstrip(b"\r\n")
            with suppress(zlib.error):
                objects = zlib.decompressobj().decompress(compressed, STREAM_BYTES)
                self.pages += len(PAGE.findall(objects))

    def _add_opaque(self, part: object) -> None:
        self.opaque_bytes += len(json_text(part).encode("utf-8", "surrogatepass"))


def of_body(fields: Mapping[str, object]) -> Contents:
    """Return the contents of a request to any address of OpenAI or Anthropic that generates."""
    contents = Contents()
    for messages in [fields[name] for name in MESSAGES if name in fields]:
        for message in messages if isinstance(messages, list) else [messages]:
            contents.add_message(message)
    for name in SYSTEM:
        if instructions := fields.get(name):
            contents.messages += 1
            contents.add_content(instructions)
    for name in (*TOOLS, *SCHEMAS):
        if fields.get(name):
            contents.texts.append(json_text(fields[name]))
            contents.has_tools |= name in TOOLS
    return contents


def _inline(part: Mapping[object, object]) -> list[object]:
    """Return what the request itself contains of a document; nothing if it is at a URL or an id."""
    places = (part, part.get("source"), part.get("file"))
    values = [place.get(name) for place in places if isinstance(place, Mapping) for name in INLINE]
    return [value for value in values if value]


def _is_text(part: Mapping[object, object]) -> bool:
    """Return whether a document is a text as it is, and not a file such as a PDF."""
    source = part.get("source")
    return isinstance(source, Mapping) and source.get("type") in {"text", "content"}


def json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the models of a family count.

    Without an ``encoding``, a text has a token for every ``bytes_per_token`` bytes. Of the counted
    tokens ``text_percent`` are estimated, and ``least_percent`` are certain. A message has
    ``message_tokens`` besides its role and content, a prompt ``reply_tokens`` that open the answer,
    and ``tool_tokens`` if it offers tools. An image has ``image_tokens``.
    """

    encoding: Encoding | None
    bytes_per_token: int = 1
    text_percent: int = 100
    least_percent: int = 90  # a long text is counted by samples
    message_tokens: int = 3
    reply_tokens: int = 3
    image_tokens: int
    tool_tokens: int


# OpenAI's cookbook, "How to count tokens with tiktoken": each message is 3 tokens and its texts,
# a name one more, and every reply is primed with 3. The definitions of tools end with 12; the model
# gets them in fewer tokens than their JSON has. Images: 1920 × 1080 at high detail is 1,105
# for models that count tiles of 512 pixels and 2,448 for those that count patches of 32.
O200K: Final = Family(encoding="o200k_base", image_tokens=2_500, tool_tokens=12)
CL100K: Final = Family(encoding="cl100k_base", image_tokens=2_500, tool_tokens=12)
# The exception in OpenAI's guide to images: 2,833 tokens and 5,667 a tile, 6 tiles for 1920 × 1080.
O200K_DEAR_IMAGES: Final = Family(encoding="o200k_base", image_tokens=36_835, tool_tokens=12)

# Anthropic publishes no tokenizer. Against its own counts for Claude Haiku 4.5 (the corpus of the
# public benchmark jschoemaker/bpe-lite, 22 of its samples), cl100k is the nearest one: the real
# count is 0.8 to 1.4 times cl100k's in prose, code, JSON, CSV, SQL, Chinese, Japanese, Korean and
# Arabic, and more only in lists of emoji (1.6) and arrows (2.3). o200k would need a factor of 2 for
# Arabic and Korean. The same benchmark has 7 tokens around a single message, as OpenAI's rule has.
# Tools: Anthropic's table of tool-use prompts, its largest. Images: the documented maximum.
CLAUDE: Final = Family(
    encoding="cl100k_base", text_percent=140, least_percent=75, image_tokens=1_600, tool_tokens=530
)
# Anthropic's page on token counting: from Claude Opus 4.7 on the same text has about 30 % more
# tokens; 1.4 × 1.3. Images may be larger there.
CLAUDE_FROM_4_7: Final = Family(
    encoding="cl100k_base", text_percent=182, least_percent=75, image_tokens=4_784, tool_tokens=530
)
OFFLINE: Final = Family(
    encoding=None,
    bytes_per_token=BYTES_PER_TOKEN,
    message_tokens=0,
    reply_tokens=0,
    image_tokens=0,
    tool_tokens=0,
)

# All newer models have o200k, as far as OpenAI says.
_CL100K_SLUGS: Final = re.compile(r"gpt-3\.5.*|gpt-4(-32k|-turbo)?")
_CLAUDE_BEFORE_4_7: Final = re.compile(r"claude-3-.*|claude-(opus|sonnet|haiku)-4(-[0-6])?")


def family_of(model: Model) -> Family:
    """Return the family of a model; for an unknown model the one that counts most."""
    if model.protocol == "offline":
        return OFFLINE
    slug = model.slug.removeprefix(f"{model.upstream}/")
    if model.protocol == "openai":
        if slug == "gpt-4o-mini":
            return O200K_DEAR_IMAGES
        return CL100K if _CL100K_SLUGS.fullmatch(slug) else O200K
    return CLAUDE if _CLAUDE_BEFORE_4_7.fullmatch(slug) else CLAUDE_FROM_4_7


class Tokenizer(Protocol):
    """Counts the tokens of a text without lone surrogates. Holds Python's lock meanwhile."""

    def count(self, text: str) -> int: ...


@cache
def tokenizer(encoding: Encoding) -> Tokenizer:
    """OpenAI's tokenizer from bpe-openai's wheel, loaded at its first use in the process: 30 MB for
    cl100k, 60 MB for o200k. No download; linear in the length of any input."""
    return cast(Tokenizer, _compiled().tokenizer_for_encoding(encoding))


def load_tokenizer(model: Model) -> None:
    """Load the tokenizer of the model, which takes 0.1 s, before its first call needs it."""
    if encoding := family_of(model).encoding:
        tokenizer(encoding)


def _compiled() -> ModuleType:
    """Return the compiled part of bpe-openai alone: 0.1 s. The import of the whole package decodes
    its tables into dictionaries, for functions that are not used here: one second and 70 MB."""
    if COMPILED in sys.modules:
        return sys.modules[COMPILED]
    package = importlib.util.find_spec(PACKAGE)
    places = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec(COMPILED, list(places or ()))
    if spec is None or spec.loader is None:
        raise ImportError(f"{COMPILED} is missing; install bpe-openai as requirements.txt says")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # A later import of the whole package uses it too: a compiled module is initialised once.
    return sys.modules.setdefault(COMPILED, module)
