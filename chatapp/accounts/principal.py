"""Who has been authenticated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a valid key; ``key_id`` is the key's public part."""

    user: str
    plan: str
    key_id: str
