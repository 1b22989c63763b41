"""Management keys: `sk-admin-<public id>-<secret>`, of whose secret only a digest is stored. They
call no model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import JSON, Column, String, Table, select

from chatapp.accounts.api_key import ADMIN_PREFIX, PresentedKey
from chatapp.accounts.store import Key, KeyTable
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
class AdminKey(Key):
    """A management key, without its secret; ``team``: it is bound to that team."""

    public_id: str
    secret_sha256: str = field(repr=False)
    name: str
    scopes: Sequence[str]
    team: str | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def as_json(self) -> dict[str, object]:
        return {
            "id": self.public_id,
            "name": self.name,
            "scopes": list(self.scopes),
            "team": self.team,
            "created": self.created_at.isoformat(timespec="seconds"),
            "expires": self.expires_at and self.expires_at.isoformat(timespec="seconds"),
            "revoked": self.revoked_at and self.revoked_at.isoformat(timespec="seconds"),
        }


class UnknownAdminKeyError(LookupError, ValueError):
    """There is no management key of that public id."""


_KEYS: Final = KeyTable(ADMIN_KEYS, AdminKey, UnknownAdminKeyError, ADMIN_PREFIX)


class AdminKeys:
    """The management keys. Raises SQLAlchemy's errors, UnknownAdminKeyError, RefusedChangeError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Sequence[AdminKey]:
        query = select(ADMIN_KEYS).order_by(ADMIN_KEYS.c.created_at)
        with self._database.reading() as connection:
            return [AdminKey(*row) for row in connection.execute(query)]

    def find(self, public_id: str) -> AdminKey | None:
        with self._database.reading() as connection, suppress(UnknownAdminKeyError):
            return _KEYS.find(connection, public_id)
        return None

    def create(
        self, name: str, scopes: Sequence[str], *, team: str | None, expires_at: datetime | None
    ) -> PresentedKey:
        values = {"name": name, "scopes": list(scopes), "team": team, "expires_at": expires_at}
        with self._database.writing() as connection:
            return _KEYS.add(connection, **values)

    def revoke(self, public_id: str) -> AdminKey:
        """Revoke a key; a revoked key stays as it is."""
        with self._database.writing() as connection:
            return _KEYS.revoke(connection, public_id)

    def rotate(self, public_id: str, *, overlap: timedelta) -> tuple[PresentedKey, AdminKey]:
        """Make a key like this one, which expires after ``overlap``; returns both."""
        with self._database.writing() as connection:
            return _KEYS.rotate(connection, public_id, overlap)
