"""The form of an API key, `sk-chat-<public id>-<secret>`, and what is kept of its secret."""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

PREFIX: Final = "sk-chat-"
SECRET_BYTES: Final = 32
FORM: Final = re.compile(r"sk-chat-([0-9a-f]{16})-([A-Za-z0-9_-]{43})", re.ASCII)
LONGEST: Final = 100


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A key as its owner holds it. It prints without its secret."""

    public_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The whole key."""
        return f"{PREFIX}{self.public_id}-{self.secret}"

    @property
    def secret_sha256(self) -> str:
        """What is kept of the secret.

        A plain digest, not a slow one: those make guessable passwords dear to guess, and nobody
        guesses 256 bits from `secrets`. Nor would a server-wide key add to that.
        """
        return sha256(self.secret.encode("ascii")).hexdigest()

    def has_secret(self, kept_sha256: str) -> bool:
        """Whether the secret is the one of which this was kept; the time it takes tells nothing."""
        return hmac.compare_digest(self.secret_sha256, kept_sha256)


def new_key() -> PresentedKey:
    """A key that nobody has had."""
    return PresentedKey(secrets.token_hex(8), secrets.token_urlsafe(SECRET_BYTES))


def parse(text: str) -> PresentedKey | None:
    """The key in that text; None where it has not a key's form."""
    match = FORM.fullmatch(text) if len(text) <= LONGEST else None
    return None if match is None else PresentedKey(match[1], match[2])


def public_id_of(text: str) -> str:
    """The public part of what may be a whole key, or that part alone."""
    return text.removeprefix(PREFIX).partition("-")[0]
