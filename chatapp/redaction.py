"""Providers' texts without the key that they may quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KEY_HEADERS: Final = ("authorization", "x-api-key", "api-key")
INSTEAD: Final = "***"


def without_key(text: str, sent: Mapping[str, str]) -> str:
    """The text, in which the key of the request with these headers does not stand."""
    for header in KEY_HEADERS:
        if key := sent.get(header, "").removeprefix("Bearer "):
            text = text.replace(key, INSTEAD)
    return text
