"""Users, teams and API keys: their tables and all queries of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, TypeAlias

from sqlalchemy import JSON, ForeignKey, String, bindparam, delete, exists, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from chatapp.accounts.api_key import PresentedKey, new_key
from chatapp.database import Base, Instant
from chatapp.database.connection import Database

_JSON: Final = JSON(none_as_null=True)


class Team(Base):
    """Users who share budgets above their own limits. ``limits``: see User."""

    __tablename__ = "teams"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Instant)
    limits: Mapped[dict[str, str] | None] = mapped_column(_JSON)


class User(Base):
    """A user, in one team or none.

    The policy defines what the plan allows. ``limits`` are amounts in place of the policy's, as
    limit strings by the name of the limit. No key of a deactivated user gives access.
    """

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    plan: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Instant)
    # No foreign key in the database: SQLite cannot add one to a table.
    team_name: Mapped[str | None] = mapped_column("team", String(64))
    limits: Mapped[dict[str, str] | None] = mapped_column(_JSON)
    deactivated_at: Mapped[datetime | None] = mapped_column(Instant)
    team: Mapped[Team | None] = relationship(
        primaryjoin="foreign(User.team_name) == Team.name", lazy="joined", viewonly=True
    )


class ApiKey(Base):
    """A key, without its secret. It is deleted only with its user, as the ledger names it.

    ``limits``: see User. ``models`` are patterns; None: all that the plan allows. ``files``: it
    may name files that a provider keeps. ``traffic_class``: None for that of the plan.
    """

    __tablename__ = "api_keys"

    public_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    user: Mapped[str] = mapped_column(String(256), ForeignKey("users.name"), index=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_on: Mapped[date | None]
    limits: Mapped[dict[str, str] | None] = mapped_column(_JSON)
    models: Mapped[list[str] | None] = mapped_column(_JSON)
    files: Mapped[bool | None]
    traffic_class: Mapped[str | None] = mapped_column(String(64))

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    @property
    def is_usable(self) -> bool:
        return self.revoked_at is None and not self.has_expired

    def __repr__(self) -> str:
        return f"ApiKey({self.public_id!r} of {self.user!r})"


#: Built once, which saves two fifths of a query: while there is no key, every request waits for
#: this one, and later each whose key is not cached for the other.
_ANY_KEY: Final = select(exists(select(ApiKey.public_id)))
_FIND: Final = (
    select(ApiKey, User)
    .join(User, ApiKey.user == User.name)
    .where(ApiKey.public_id == bindparam("public_id"))
)


#: Who can have amounts of their own.
Owner: TypeAlias = Literal["user", "key", "team"]


class UnknownOwnerError(LookupError, ValueError):
    """There is no such ``owner`` of that ``name``: its argument, for a key its public id."""

    owner: ClassVar[Owner]

    def __str__(self) -> str:
        return f"There is no {self.owner} {self.name!r}."

    @property
    def name(self) -> str:
        return str(self.args[0])


class UnknownUserError(UnknownOwnerError):
    owner = "user"


class UnknownKeyError(UnknownOwnerError):
    owner = "key"


class UnknownTeamError(UnknownOwnerError):
    owner = "team"


class ExistingTeamError(ValueError):
    """A team has that name already."""


class UnusableKeyError(ValueError):
    """The key is revoked or has expired."""


@dataclass(frozen=True, slots=True)
class UserChange:
    """What a user is to have: ``values`` of the columns ``plan``, ``team_name`` and ``limits``."""

    name: str
    values: Mapping[str, Any]


class LastKeysError(ValueError):
    """No other user has a key: without one, accounts would be off."""


class DeactivatedUserError(ValueError):
    """The user is deactivated."""


class OtherPlanError(ValueError):
    """The user exists and has another plan: ``plan``."""

    def __init__(self, user: str, plan: str) -> None:
        super().__init__(f"{user!r} has the plan {plan!r}")
        self.plan = plan


class OtherTeamError(ValueError):
    """The user exists and has another team, or none: ``team``."""

    def __init__(self, user: str, team: str | None) -> None:
        super().__init__(f"{user!r} has the team {team!r}")
        self.team = team


_OWNERS: Final[Mapping[Owner, tuple[type[User | ApiKey | Team], type[UnknownOwnerError]]]] = {
    "user": (User, UnknownUserError),
    "key": (ApiKey, UnknownKeyError),
    "team": (Team, UnknownTeamError),
}
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class Accounts:
    """The users, teams and keys. Raises SQLAlchemy's errors and those above."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def any_key(self) -> bool:
        """Whether a key was ever made. Revoked keys count: revoking the last key must not open the
        server to everyone."""
        with self._database.reading() as connection:
            return bool(connection.scalar(_ANY_KEY))

    def create_key(
        self,
        user: str,
        *,
        plan: str | None,
        default_plan: str,
        team: str | None = None,
        name: str = "",
        expires_at: datetime | None = None,
        limits: Mapping[str, str] = _NONE,
        models: Sequence[str] = (),
    ) -> PresentedKey:
        """Make a key, and its user if new, with ``plan`` or else ``default_plan`` and in ``team``.

        OtherPlanError or OtherTeamError if the user exists with another plan or team: a new key
        must not change the user's other keys. DeactivatedUserError if none gives access.
        UnknownTeamError if there is no such team.
        """
        made = new_key()
        now = datetime.now(UTC)
        with self._writing() as session:
            owner = session.get(User, user)
            if team is not None:
                _of(session, "team", team)
            if owner is None:
                owner = User(name=user, plan=plan or default_plan, created_at=now, team_name=team)
                session.add(owner)
                session.flush()
            elif owner.deactivated_at is not None:
                raise DeactivatedUserError(user)
            elif plan not in {None, owner.plan}:
                raise OtherPlanError(user, owner.plan)
            elif team not in {None, owner.team_name}:
                raise OtherTeamError(user, owner.team_name)
            session.add(
                ApiKey(
                    public_id=made.public_id,
                    user=user,
                    secret_sha256=made.secret_sha256,
                    name=name,
                    created_at=now,
                    expires_at=expires_at,
                    limits=dict(limits) or None,
                    models=list(models) or None,
                )
            )
        return made

    def rotate(self, public_id: str, *, overlap: timedelta) -> tuple[PresentedKey, ApiKey]:
        """Make a key like this one, which expires after ``overlap``; returns both.

        UnknownKeyError if it does not exist, UnusableKeyError if it is revoked or has expired.
        """
        made, now = new_key(), datetime.now(UTC)
        with self._writing() as session:
            old: ApiKey = _of(session, "key", public_id)
            if not old.is_usable:
                raise UnusableKeyError(public_id)
            session.add(
                ApiKey(
                    public_id=made.public_id,
                    user=old.user,
                    secret_sha256=made.secret_sha256,
                    name=old.name,
                    created_at=now,
                    expires_at=old.expires_at,
                    limits=old.limits,
                    models=old.models,
                    files=old.files,
                    traffic_class=old.traffic_class,
                )
            )
            old.expires_at = min(old.expires_at or now + overlap, now + overlap)
        return made, old

    def import_users(
        self, changes: Sequence[UserChange], *, default_plan: str, with_keys: bool = False
    ) -> dict[str, PresentedKey | None]:
        """Create or change users, all or none; returns the new ones, with their keys if wanted."""
        now = datetime.now(UTC)
        made: dict[str, PresentedKey | None] = {}
        with self._writing() as session:
            for change in changes:
                user = session.get(User, change.name)
                if user is None:
                    user = User(name=change.name, plan=default_plan, created_at=now)
                    session.add(user)
                    made[change.name] = key = new_key() if with_keys else None
                    if key is not None:
                        session.flush()
                        session.add(
                            ApiKey(
                                public_id=key.public_id,
                                user=change.name,
                                secret_sha256=key.secret_sha256,
                                name="key",
                                created_at=now,
                            )
                        )
                for attribute, value in change.values.items():
                    setattr(user, attribute, value)
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
        with self._reading() as session:
            return session.scalars(select(User).order_by(User.name)).all()

    def user(self, name: str) -> User | None:
        with self._reading() as session:
            return session.get(User, name)

    def team(self, name: str) -> Team | None:
        with self._reading() as session:
            return session.get(Team, name)

    def teams(self) -> Sequence[Team]:
        with self._reading() as session:
            return session.scalars(select(Team).order_by(Team.name)).all()

    def create_team(self, name: str, *, limits: Mapping[str, str] = _NONE) -> None:
        """Make a team without users. ExistingTeamError if the name is taken."""
        with self._writing() as session:
            if session.get(Team, name) is not None:
                raise ExistingTeamError(name)
            session.add(Team(name=name, created_at=datetime.now(UTC), limits=dict(limits) or None))

    def revoke(self, public_id: str) -> ApiKey:
        """Revoke a key; a revoked key stays as it is. UnknownKeyError if it does not exist."""
        with self._writing() as session:
            key: ApiKey = _of(session, "key", public_id)
            key.revoked_at = key.revoked_at or datetime.now(UTC)
        return key

    def set_active(self, user: str, *, active: bool) -> bool:
        """Let a user's keys give access, or none of them; False if that is so already.
        UnknownUserError if there is no such user."""
        with self._writing() as session:
            found: User = _of(session, "user", user)
            was_active = found.deactivated_at is None
            if active != was_active:
                found.deactivated_at = None if active else datetime.now(UTC)
        return active != was_active

    def delete_user(self, user: str) -> None:
        """Delete a user with all keys. UnknownUserError if there is no such user, LastKeysError if
        no other one has a key."""
        with self._writing() as session:
            found = _of(session, "user", user)
            own = select(exists(select(ApiKey).where(ApiKey.user == user)))
            others = select(exists(select(ApiKey).where(ApiKey.user != user)))
            if session.scalar(own) and not session.scalar(others):
                raise LastKeysError(user)
            session.execute(delete(ApiKey).where(ApiKey.user == user))
            session.delete(found)

    def set_plan(self, user: str, plan: str) -> None:
        """Change a user's plan. UnknownUserError if there is no such user."""
        with self._writing() as session:
            _of(session, "user", user).plan = plan

    def set_team(self, user: str, team: str | None) -> None:
        """Move a user to a team, or out of any. UnknownUserError, UnknownTeamError."""
        with self._writing() as session:
            if team is not None:
                _of(session, "team", team)
            _of(session, "user", user).team_name = team

    def set_amount(self, owner: Owner, name: str, limit: str, amount: str | None) -> bool:
        """Give an owner an amount of their own, or with None the policy's again; False if nothing
        changed. UnknownOwnerError if there is no such owner."""
        with self._writing() as session:
            found = _of(session, owner, name)
            before: dict[str, str] = found.limits or {}
            after = {known: text for known, text in before.items() if known != limit}
            if amount is not None:
                after[limit] = amount
            found.limits = after or None
            return after != before

    def set_models(self, public_id: str, models: Sequence[str]) -> None:
        """Allow a key these models alone; all of its plan if empty. UnknownKeyError."""
        with self._writing() as session:
            _of(session, "key", public_id).models = list(models) or None

    def set_files(self, public_id: str, *, allowed: bool) -> None:
        """Let a key name files of the providers, or not. UnknownKeyError."""
        with self._writing() as session:
            _of(session, "key", public_id).files = allowed

    def set_class(self, public_id: str, name: str | None) -> None:
        """Give a key a class of traffic; None: that of its plan. UnknownKeyError."""
        with self._writing() as session:
            _of(session, "key", public_id).traffic_class = name

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


def amounts_of(*owners: Team | User | ApiKey | None) -> dict[str, str]:
    """The amounts of all these together. A limit counts users, keys or teams, so no two of them
    have an amount for the same one."""
    merged: dict[str, str] = {}
    for owner in owners:
        merged |= (owner and owner.limits) or {}
    return merged


def _of(session: Session, owner: Owner, name: str) -> Any:
    """The row of an owner; UnknownOwnerError without one."""
    table, unknown = _OWNERS[owner]
    found = session.get(table, name)
    if found is None:
        raise unknown(name)
    return found
