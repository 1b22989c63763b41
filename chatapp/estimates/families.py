"""How the models of a family count: which tokenizer, which factor, what stands around messages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from chatapp.catalogue import Model
from chatapp.estimates.tokenizer import Encoding
from chatapp.providers.offline import BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where there is no ``encoding``, a text has a token for every ``bytes_per_token`` bytes.

    ``text_percent`` of the counted tokens are estimated, and ``least_percent`` are certain. A
    message has ``message_tokens`` besides its role and content, a prompt ``reply_tokens`` that
    open the answer, and ``tool_tokens`` if it offers tools. An image has ``image_tokens``.
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
# a name one more, and every reply is primed with 3. The definitions of tools end with 12; they are
# told to the model in fewer tokens than their JSON has. Images: 1920 × 1080 at high detail is 1,105
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

# Everything newer has o200k, as far as it is published.
_CL100K_SLUGS: Final = re.compile(r"gpt-3\.5.*|gpt-4(-32k|-turbo)?")
_CLAUDE_BEFORE_4_7: Final = re.compile(r"claude-3-.*|claude-(opus|sonnet|haiku)-4(-[0-6])?")


def family_of(model: Model) -> Family:
    """The family of a model; of one that nobody knows, the one that counts most."""
    if model.provider == "offline":
        return OFFLINE
    if model.provider == "openai":
        if model.slug == "gpt-4o-mini":
            return O200K_DEAR_IMAGES
        return CL100K if _CL100K_SLUGS.fullmatch(model.slug) else O200K
    return CLAUDE if _CLAUDE_BEFORE_4_7.fullmatch(model.slug) else CLAUDE_FROM_4_7
