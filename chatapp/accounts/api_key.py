"""API keys: `sk-chat-<public id>-<secret>`, of whose secret only a digest is stored. Those of
operators begin with `sk-admin-`, and call no model."""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

PREFIX: Final = "sk-chat-"
SECRET_BYTES: Final = 32
ADMIN_PREFIX: Final = "sk-admin-"
FORM: Final = re.compile(r"(sk-(?:chat|admin)-)([0-9a-f]{16})-([A-Za-z0-9_-]{43})", re.ASCII)
LONGEST: Final = 100


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A whole key. Its repr omits the secret."""

    public_id: str
    secret: str = field(repr=False)
    prefix: str = PREFIX

    @property
    def text(self) -> str:
        """The whole key."""
        return f"{self.prefix}{self.public_id}-{self.secret}"

    @property
    def secret_sha256(self) -> str:
        """The stored digest of the secret.

        A fast hash is enough: slow ones protect guessable passwords, and 256 random bits cannot be
        guessed. For the same reason there is no server-wide pepper.
        """
        return sha256(self.secret.encode("ascii")).hexdigest()

    def has_secret(self, kept_sha256: str) -> bool:
        """Return whether the digest is of this secret, compared in constant time."""
        return hmac.compare_digest(self.secret_sha256, kept_sha256)


def new_key(prefix: str = PREFIX) -> PresentedKey:
    return PresentedKey(secrets.token_hex(8), secrets.token_urlsafe(SECRET_BYTES), prefix)


def parse(text: str, prefix: str = PREFIX) -> PresentedKey | None:
    """Return the key in that text; None if it does not have the form of such a key."""
    match = FORM.fullmatch(text) if len(text) <= LONGEST else None
    if match is None or match[1] != prefix:
        return None
    return PresentedKey(match[2], match[3], prefix)


def public_id_of(text: str) -> str:
    """Return the public part of a whole key, or of that part alone."""
    return text.removeprefix(PREFIX).removeprefix(ADMIN_PREFIX).partition("-")[0]
