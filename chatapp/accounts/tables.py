"""Users and API keys as they stand in the database."""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from chatapp.database.schema import Base, Instant


class User(Base):
    """Somebody who has a plan. What the plan allows stands in policy.toml, here only its name."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    plan: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Instant)


class ApiKey(Base):
    """A key, without its secret. Keys are never deleted: the ledger names them."""

    __tablename__ = "api_keys"

    public_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    user: Mapped[str] = mapped_column(String(256), ForeignKey("users.name"), index=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_on: Mapped[date | None]

    def __repr__(self) -> str:
        return f"ApiKey({self.public_id!r} of {self.user!r})"
