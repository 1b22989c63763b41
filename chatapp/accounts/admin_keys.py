"""Management keys: `sk-admin-<public id>-<secret>`, of whose secret only a digest is stored. They
call no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import JSON, Column, Connection, String, Table, insert, select, update

from chatapp.accounts.api_key import ADMIN_PREFIX, PresentedKey, new_key
from chatapp.accounts.store import UnusableKeyError
from chatapp.database import METADATA, Instant
from chatapp.database.connection import Database

ADMIN_KEYS: Final = Table(
    "admin_keys",
    METADATA,
    Column("public_id", String(16), primary_key=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("scopes", JSON, nullable=False),
    # No foreign key: a key of a team that is gone sees nothing.
    Column("team", String(64)),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)


@dataclass(frozen=True, slots=True)
class AdminKey:
    """A management key, without its secret; ``team``: it is bound to that team."""

    public_id: str
    secret_sha256: str = field(repr=False)
    name: str
    scopes: Sequence[str]
    team: str | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    @property
    def is_usable(self) -> bool:
        now = datetime.now(UTC)
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


class UnknownAdminKeyError(LookupError, ValueError):
    """There is no management key of that public id."""


class AdminKeys:
    """The management keys. Raises SQLAlchemy's errors, UnknownAdminKeyError, UnusableKeyError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Sequence[AdminKey]:
        query = select(ADMIN_KEYS).order_by(ADMIN_KEYS.c.created_at)
        with self._database.reading() as connection:
            return [AdminKey(*row) for row in connection.execute(query)]

    def find(self, public_id: str) -> AdminKey | None:
        query = select(ADMIN_KEYS).where(ADMIN_KEYS.c.public_id == public_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else AdminKey(*row)

    def create(
        self, name: str, scopes: Sequence[str], *, team: str | None, expires_at: datetime | None
    ) -> PresentedKey:
        with self._database.writing() as connection:
            return _add(connection, name, scopes, team, expires_at)

    def revoke(self, public_id: str) -> AdminKey:
        """Revoke a key; a revoked key stays as it is."""
        with self._database.writing() as connection:
            key = _of(connection, public_id)
            revoked = replace(key, revoked_at=key.revoked_at or datetime.now(UTC))
            _change(connection, public_id, revoked_at=revoked.revoked_at)
        return revoked

    def rotate(self, public_id: str, *, overlap: timedelta) -> tuple[PresentedKey, AdminKey]:
        """Make a key like this one, which expires after ``overlap``; returns both."""
        with self._database.writing() as connection:
            old = _of(connection, public_id)
            if not old.is_usable:
                raise UnusableKeyError(public_id)
            made = _add(connection, old.name, old.scopes, old.team, old.expires_at)
            end = min(filter(None, [old.expires_at, datetime.now(UTC) + overlap]))
            _change(connection, public_id, expires_at=end)
        return made, replace(old, expires_at=end)


def _add(
    connection: Connection,
    name: str,
    scopes: Sequence[str],
    team: str | None,
    expires_at: datetime | None,
) -> PresentedKey:
    made = new_key(ADMIN_PREFIX)
    values = {"name": name, "scopes": list(scopes), "team": team, "expires_at": expires_at}
    own = {"public_id": made.public_id, "secret_sha256": made.secret_sha256}
    values |= {**own, "created_at": datetime.now(UTC)}
    connection.execute(insert(ADMIN_KEYS).values(values))
    return made


def _of(connection: Connection, public_id: str) -> AdminKey:
    query = select(ADMIN_KEYS).where(ADMIN_KEYS.c.public_id == public_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UnknownAdminKeyError(public_id)
    return AdminKey(*row)


def _change(connection: Connection, public_id: str, **values: object) -> None:
    of_key = ADMIN_KEYS.c.public_id == public_id
    connection.execute(update(ADMIN_KEYS).where(of_key).values(values))
