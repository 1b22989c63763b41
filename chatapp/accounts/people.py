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

from chatapp.accounts import ADDRESS, TEAM, USER

#: Open WebUI's, the first one that is sent. An email address is what operators recognise, and what
#: several UIs have in common.
HEADERS: Final = ("X-OpenWebUI-User-Email", "X-OpenWebUI-User-Id", "X-OpenWebUI-User-Name")
MOST_NEW: Final = 100
NAME_MAX_CHARACTERS: Final = 256
#: How LibreChat sends what Latin-1 cannot.
_BASE64: Final = "b64:"
_CONTROL: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: JSON, and ids of sessions as agents send them: `user_…_account_…_session_…`, `sess-…`. Those
#: have no @ and no space, which tells them from an email or a name with that word.
_NO_NAME: Final = re.compile(r"[\[{\"]|([^@ ]*[_:-])?sess(ion)?(_?id)?[_:-][^@ ]*$", re.IGNORECASE)
_IDENTITIES: Final = (USER, ADDRESS, TEAM)


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
        """Return the person that the headers of a request name; None if they name none."""
        text = next(filter(None, map(header, self.headers)), "")
        with suppress(UnicodeError):  # servers decode it as Latin-1; Open WebUI escapes the rest
            text = text.encode("latin-1").decode()
        if text.startswith(_BASE64):
            with suppress(ValueError):  # a name with that beginning
                text = b64decode(text.removeprefix(_BASE64), validate=True).decode()
        return person_in(unquote(text))

    def named_in(self, body: Mapping[str, object]) -> str | None:
        """Return the person that a body names; None if it names none, or if headers do."""
        if self.headers:
            return None
        metadata = body.get("metadata")
        inner = metadata.get("user_id") if isinstance(metadata, dict) else None
        sent = (body.get("user"), inner, body.get("user_id"))
        return next(filter(None, (person_in(each) for each in sent if isinstance(each, str))), None)


def person_in(text: str) -> str | None:
    """Return the name of a person; None for JSON, the id of a session, and what does not fit into
    a line.

    >>> person_in(" alice@example.com "), person_in('{"device_id": "5f"}'), person_in("sess-1")
    ('alice@example.com', None, None)
    """
    name = text.strip()
    if not name or len(name) > NAME_MAX_CHARACTERS or name.startswith(_IDENTITIES):
        return None
    if _NO_NAME.match(name) or any(unicodedata.category(each) in _CONTROL for each in name):
        return None
    return name
