"""Users, their plans and their API keys. Here: how limits and the ledger name callers."""

from __future__ import annotations

from typing import Final

#: Prefix of a user's identity. It keeps a user with the name 10.0.0.1 apart from that address.
USER: Final = "user:"
#: Prefix of a caller without a name.
ADDRESS: Final = "ip:"
TEAM: Final = "team:"
SESSION: Final = "session:"
#: Prefix of a deleted user in the ledger. A new user of that name is someone else.
FORMER: Final = "former:"
#: No user's name begins with one of them.
IDENTITIES: Final = (USER, ADDRESS, TEAM, SESSION, FORMER)
#: The identity of limits that count all callers together.
EVERYONE: Final = "*"
