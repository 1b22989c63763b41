"""What a misspelt word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Longer names are no typing errors, and comparing them would take long.
LONGEST_NAME = 64


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names the known word nearest to ``name``; empty if none is near.

    >>> did_you_mean("brust", ["burst", "limit"])
    " Did you mean 'burst'?"
    """
    near = difflib.get_close_matches(name[:LONGEST_NAME], list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
