"""Tokens by a rule of thumb, where nobody has counted them: an interrupted call, for instance."""

from __future__ import annotations

from typing import Final

# English has 4 to 5 bytes a token with either vendor's tokenizer, code and other scripts less.
# An estimate that is used for a bill errs on the side of the one who pays the provider.
BYTES_PER_TOKEN: Final = 3


def tokens_of(size_bytes: int) -> int:
    """The tokens of a text of that size in UTF-8."""
    return -(-size_bytes // BYTES_PER_TOKEN)
