"""Users and API keys: their tables and all queries of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Final

from sqlalchemy import ForeignKey, String, bindparam, exists, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from chatapp.accounts.api_key import PresentedKey, new_key
from chatapp.database import Base, Instant
from chatapp.database.connection import Database


class User(Base):
    """A user. The policy defines what the plan allows."""

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


#: Built once, which saves two fifths of the query: a request whose key is not cached waits for it.
_FIND: Final = (
    select(ApiKey, User)
    .join(User, ApiKey.user == User.name)
    .where(ApiKey.public_id == bindparam("public_id"))
)


class UnknownUserError(LookupError):
    """No user has that name."""


class UnknownKeyError(LookupError):
    """No key has that public id."""


class OtherPlanError(ValueError):
    """The user exists and has another plan: ``plan``."""

    def __init__(self, user: str, plan: str) -> None:
        super().__init__(f"{user!r} has the plan {plan!r}")
        self.plan = plan


class Accounts:
    """The users and keys. Raises SQLAlchemy's errors and those above."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def any_key(self) -> bool:
        """Whether a key was ever made. Revoked keys count: revoking the last key must not open the
        server to everyone."""
        with self._reading() as session:
            return bool(session.scalar(select(exists(select(ApiKey.public_id)))))

    def create_key(
        self,
        user: str,
        *,
        plan: str | None,
        default_plan: str,
        name: str = "",
        expires_at: datetime | None = None,
    ) -> PresentedKey:
        """Make a key, and its user if new, with ``plan`` or else ``default_plan``.

        OtherPlanError if the user exists with another plan: a new key must not change the plan of
        the user's other keys.
        """
        made = new_key()
        now = datetime.now(UTC)
        with self._writing() as session:
            owner = session.get(User, user)
            if owner is None:
                owner = User(name=user, plan=plan or default_plan, created_at=now)
                session.add(owner)
                session.flush()
            elif plan not in {None, owner.plan}:
                raise OtherPlanError(user, owner.plan)
            session.add(
                ApiKey(
                    public_id=made.public_id,
                    user=user,
                    secret_sha256=made.secret_sha256,
                    name=name,
                    created_at=now,
                    expires_at=expires_at,
                )
            )
        return made

    def find(self, public_id: str) -> tuple[ApiKey, User] | None:
        """The key of that id, with its user."""
        with self._reading() as session:
            row = session.execute(_FIND, {"public_id": public_id}).one_or_none()
        return None if row is None else (row[0], row[1])

    def all_keys(self) -> Sequence[ApiKey]:
        """All keys, by user and time of creation."""
        with self._reading() as session:
            return session.scalars(select(ApiKey).order_by(ApiKey.user, ApiKey.created_at)).all()

    def users(self) -> Sequence[User]:
        """All users, by name."""
        with self._reading() as session:
            return session.scalars(select(User).order_by(User.name)).all()

    def revoke(self, public_id: str) -> ApiKey:
        """Revoke a key; a revoked key stays as it is. UnknownKeyError if it does not exist."""
        with self._writing() as session:
            key = session.get(ApiKey, public_id)
            if key is None:
                raise UnknownKeyError(public_id)
            key.revoked_at = key.revoked_at or datetime.now(UTC)
        return key

    def set_plan(self, user: str, plan: str) -> None:
        """Change a user's plan. UnknownUserError if there is no such user."""
        with self._writing() as session:
            found = session.get(User, user)
            if found is None:
                raise UnknownUserError(user)
            found.plan = plan

    def note_use(self, public_id: str, day: date) -> None:
        """Store that the key was used that day."""
        is_older = or_(ApiKey.last_used_on.is_(None), ApiKey.last_used_on < day)
        with self._writing() as session:
            session.execute(
                update(ApiKey)
                .where(ApiKey.public_id == public_id, is_older)
                .values(last_used_on=day)
                .execution_options(synchronize_session=False)
            )

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with (
            self._database.reading() as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with (
            self._database.writing() as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()
