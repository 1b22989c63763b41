"""Sign-ins that wait for their person: the device flow of RFC 8628, for all workers together.

The table has no secret: digests of what device and browser have, and a sealed result.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final

from sqlalchemy import delete, func, insert, select, update

from chatapp.accounts.store import SIGN_INS
from chatapp.database.connection import Database

LENGTH_S: Final = 600
#: How many may wait. Each address may begin 300 in that time, so attackers have to have many.
MOST: Final = 10_000
#: How often a device may ask. A poll that comes up to a second early is in time.
INTERVAL_S: Final = 5
#: RFC 8628, 6.1: no vowels, so no words, and nothing that looks alike.
LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
#: The result of a sign-in that was denied. A pending one has none.
DENIED: Final = ""


class PollError(Exception):
    """There is no result; the message is the error's name in RFC 8628, 3.5."""


class FullError(Exception):
    """Too many sign-ins wait."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s


_WAITING: Final = select(func.min(SIGN_INS.c.expires_at), func.count()).select_from(SIGN_INS)


def begin(database: Database) -> tuple[str, str]:
    """Return a new device's secret code, and the code for its person. Raises FullError."""
    device, now = secrets.token_urlsafe(32), datetime.now(UTC)
    code = "".join(secrets.choice(LETTERS) for _ in range(8))
    row = {"user_code": code, "expires_at": now + timedelta(seconds=LENGTH_S)}
    with database.writing() as connection:
        connection.execute(delete(SIGN_INS).where(SIGN_INS.c.expires_at <= now))
        first, count = connection.execute(_WAITING).one()
        if count >= MOST:
            raise FullError((first - now).total_seconds())
        connection.execute(insert(SIGN_INS).values(device_sha256=digest(device), **row))
    return device, f"{code[:4]}-{code[4:]}"


def change(database: Database, column: str, value: str, **values: str) -> bool:
    """Change the pending sign-in with this value; False without one."""
    is_pending = (SIGN_INS.c.expires_at > datetime.now(UTC), SIGN_INS.c.result.is_(None))
    query = update(SIGN_INS).where(SIGN_INS.c[column] == value, *is_pending).values(values)
    with database.writing() as connection:
        return connection.execute(query).rowcount == 1


def poll(database: Database, device: str) -> str:
    """Return the result, once. Raises PollError."""
    now, of_device = datetime.now(UTC), SIGN_INS.c.device_sha256 == digest(device)
    with database.writing() as connection:
        row = connection.execute(select(SIGN_INS).where(of_device).with_for_update()).one_or_none()
        if row is None or row.expires_at <= now:
            raise PollError("expired_token")
        if row.result is not None:
            connection.execute(delete(SIGN_INS).where(of_device))
        elif row.polled_at and now - row.polled_at < timedelta(seconds=INTERVAL_S - 1):
            raise PollError("slow_down")
        else:
            connection.execute(update(SIGN_INS).where(of_device).values(polled_at=now))
    if not row.result:
        raise PollError("authorization_pending" if row.result is None else "access_denied")
    return str(row.result)


def digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "replace")).hexdigest()
