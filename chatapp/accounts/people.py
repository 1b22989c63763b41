"""People behind a trusted key: a chat UI has one key, and says with each request for whom it calls.

Only a key with this right names people: see `ApiKey.people`.
"""

from __future__ import annotations

import re
import unicodedata
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import unquote

from chatapp.accounts import IDENTITIES

#: Open WebUI's, the first one that is sent. An email address is what operators recognise, and what
#: several UIs have in common.
HEADERS: Final = ("X-OpenWebUI-User-Email", "X-OpenWebUI-User-Id", "X-OpenWebUI-User-Name")
MOST_NEW: Final = 100
NAME_MAX_CHARACTERS: Final = 256
#: How LibreChat sends what Latin-1 cannot.
_BASE64: Final = "b64:"
CONTROL: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: JSON, and ids of sessions as agents send them: `user_…_account_…_session_…`, `sess-…`. Those
#: have no @ and no space, which tells them from an email or a name with that word.
_NO_NAME: Final = re.compile(r"(?i)[\[{\"]|(?=[^@ ]*$)([^@ ]*[_:-])?sess(ion)?(_?id)?[_:-]")


class InvalidNameError(ValueError):
    """What names a person cannot be a name; the message is for the client."""


@dataclass(frozen=True, slots=True)
class People:
    """How a key names people, and what new ones get.

    ``headers`` are tried in this order; without any, the body's `user` names them. ``plan`` None is
    that of the key's owner. ``most_new`` people an hour are accepted of this key.
    """

    headers: tuple[str, ...] = HEADERS
    plan: str | None = None
    most_new: int = MOST_NEW

    @classmethod
    def from_row(cls, stored: Mapping[str, Any] | None) -> People | None:
        return None if stored is None else cls(**{**stored, "headers": tuple(stored["headers"])})

    def as_row(self) -> dict[str, object]:
        return {**asdict(self), "headers": list(self.headers)}

    def named_by(self, header: Callable[[str], str | None]) -> str | None:
        """Return the person that the headers of a request name; None if they name none. Raises
        InvalidNameError."""
        text = next(filter(None, map(header, self.headers)), "")
        with suppress(UnicodeError):  # servers decode it as Latin-1; Open WebUI escapes the rest
            text = text.encode("latin-1").decode()
        if text.startswith(_BASE64):
            with suppress(ValueError):  # a name with that beginning
                text = b64decode(text.removeprefix(_BASE64), validate=True).decode()
        return person_in(unquote(text))

    def named_in(self, body: Mapping[str, object]) -> str | None:
        """Return the person that a body names; None if it names none, or if headers do. Raises
        InvalidNameError."""
        if self.headers:
            return None
        metadata = body.get("metadata")
        inner = metadata.get("user_id") if isinstance(metadata, dict) else None
        sent = (body.get("user"), inner, body.get("user_id"))
        return next(filter(None, (person_in(name) for name in sent if isinstance(name, str))), None)


def person_in(text: str) -> str | None:
    """Return the name of a person; None for nothing, JSON and the id of a session.

    InvalidNameError for what is too long, does not fit into a line, or has a reserved prefix.

    >>> person_in(" alice@example.com "), person_in('{"device_id": "5f"}'), person_in("sess-1")
    ('alice@example.com', None, None)
    """
    name = text.strip()
    if not name or _NO_NAME.match(name):
        return None
    problem = ""
    if len(name) > NAME_MAX_CHARACTERS:
        problem = f"has {len(name)} characters; at most {NAME_MAX_CHARACTERS} are allowed"
    elif name.startswith(IDENTITIES):
        problem = f"begins with {name.partition(':')[0]!r} and a colon, which is reserved"
    elif any(unicodedata.category(character) in CONTROL for character in name):
        problem = "has control characters"
    if problem:
        raise InvalidNameError(f"The user's name {problem}. Send an email address or an id.")
    return name
