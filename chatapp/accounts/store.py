"""Users and keys in the database: every query that concerns accounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from chatapp.accounts.api_key import PresentedKey, new_key
from chatapp.accounts.tables import ApiKey, User
from chatapp.database.connection import Database


class UnknownUserError(LookupError):
    """There is no user of that name."""


class UnknownKeyError(LookupError):
    """There is no key of that public id."""


class OtherPlanError(ValueError):
    """The user is there, and has another plan than the one that was named: ``plan``."""

    def __init__(self, user: str, plan: str) -> None:
        super().__init__(f"{user!r} has the plan {plan!r}")
        self.plan = plan


class Accounts:
    """Everything that is known of users and keys. Its errors are SQLAlchemy's and its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def any_key(self) -> bool:
        """Whether a key was ever made. One that is revoked counts: taking the last key from
        somebody must not open the door to everybody."""
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
        """Make a key, and its user where he is new, with ``plan``, or with ``default_plan`` where
        that is None.

        OtherPlanError where he is not new and has another plan: all his keys would change with
        the new one, which nobody would look for in the making of a key.
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
        query = select(ApiKey, User).join(User, ApiKey.user == User.name)
        with self._reading() as session:
            row = session.execute(query.where(ApiKey.public_id == public_id)).one_or_none()
        return None if row is None else (row[0], row[1])

    def all_keys(self) -> Sequence[ApiKey]:
        """All keys, by user and age."""
        with self._reading() as session:
            return session.scalars(select(ApiKey).order_by(ApiKey.user, ApiKey.created_at)).all()

    def users(self) -> Sequence[User]:
        """All users, by name."""
        with self._reading() as session:
            return session.scalars(select(User).order_by(User.name)).all()

    def revoke(self, public_id: str) -> ApiKey:
        """End a key; one that is revoked stays as it is. UnknownKeyError where there is none."""
        with self._writing() as session:
            key = session.get(ApiKey, public_id)
            if key is None:
                raise UnknownKeyError(public_id)
            key.revoked_at = key.revoked_at or datetime.now(UTC)
        return key

    def set_plan(self, user: str, plan: str) -> None:
        """Give a user another plan. UnknownUserError where there is none of that name."""
        with self._writing() as session:
            found = session.get(User, user)
            if found is None:
                raise UnknownUserError(user)
            found.plan = plan

    def note_use(self, public_id: str, day: date) -> None:
        """Remember that the key was used that day."""
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
