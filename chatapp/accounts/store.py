"""Users, teams and API keys: their tables and all queries of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Date,
    ForeignKey,
    Row,
    String,
    Table,
    Text,
    bindparam,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)

from chatapp.accounts.api_key import PREFIX, PresentedKey, new_key
from chatapp.accounts.people import People
from chatapp.database import METADATA, Instant
from chatapp.database.connection import Database

_JSON: Final = JSON(none_as_null=True)

TEAMS: Final = Table(
    "teams",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("limits", _JSON),
)
USERS: Final = Table(
    "users",
    METADATA,
    Column("name", String(256), primary_key=True),
    Column("plan", String(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    # No foreign key in the database: SQLite cannot add one to a table.
    Column("team", String(64), key="team_name"),
    Column("limits", _JSON),
    Column("deactivated_at", Instant),
    # No foreign key: a user stays if the key is deleted.
    Column("brought_by", String(16), index=True),
)
KEYS: Final = Table(
    "api_keys",
    METADATA,
    Column("public_id", String(16), primary_key=True),
    Column("user", String(256), ForeignKey("users.name"), nullable=False, index=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("last_used_on", Date),
    Column("limits", _JSON),
    Column("models", _JSON),
    Column("files", Boolean),
    Column("traffic_class", String(64)),
    Column("people", _JSON),
    Column("bound_team", String(64)),
)
#: It is here because a new database has the tables of what every start imports.
SIGN_INS: Final = Table(
    "sign_ins",
    METADATA,
    Column("device_sha256", String(64), primary_key=True),
    Column("user_code", String(8), nullable=False, index=True),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("polled_at", Instant),
    Column("browser_sha256", String(64), index=True),
    Column("result", Text),
)


@dataclass(frozen=True, slots=True)
class Team:
    """Users who share budgets above their own limits. ``limits``: see User."""

    name: str
    created_at: datetime
    limits: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A user, in one team or none.

    ``limits`` are amounts in place of the policy's, as limit strings by the name of the limit. No
    key of a deactivated user gives access. ``team`` is None if there is no team of that name.
    ``brought_by`` is the public id of the key that named the user first.
    """

    name: str
    plan: str
    created_at: datetime
    team_name: str | None = None
    limits: Mapping[str, str] | None = None
    deactivated_at: datetime | None = None
    brought_by: str | None = None
    team: Team | None = None


class Key(Protocol):
    """What is alike in keys of callers and of operators (`admin_keys.py`)."""

    __slots__ = ()

    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def revoked_at(self) -> datetime | None: ...

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    @property
    def is_usable(self) -> bool:
        return self.revoked_at is None and not self.has_expired


K = TypeVar("K", bound=Key)


@dataclass(frozen=True, slots=True)
class ApiKey(Key):
    """A key, without its secret. It is deleted only with its user, because the ledger names it.

    ``limits``: see User. ``models`` are patterns; None: all that the plan allows. ``files``: it
    may name files that a provider keeps. ``traffic_class``: None for that of the plan. ``people``:
    a `People` as it is stored; None: it acts only for its own user. ``bound_team``: the team whose
    administrator has made it; it gives access only while its user is in that team.
    """

    public_id: str
    user: str
    secret_sha256: str = field(repr=False)
    name: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_on: date | None = None
    limits: Mapping[str, str] | None = None
    models: Sequence[str] | None = None
    files: bool | None = None
    traffic_class: str | None = None
    people: Mapping[str, Any] | None = None
    bound_team: str | None = None

    def is_for(self, user: User) -> bool:
        """Return whether its user is in the team that it is bound to, if any."""
        return self.bound_team in {None, user.team_name}


#: Built once, which saves two fifths of a query: while there is no key, every request waits for
#: this one, and later each whose key is not cached for the other.
_ANY_KEY: Final = select(exists(select(KEYS.c.public_id)))
_OF_TEAM: Final = USERS.c.team_name == TEAMS.c.name
_USERS: Final = select(*USERS.c, *TEAMS.c).outerjoin_from(USERS, TEAMS, _OF_TEAM)
_FIND: Final = (
    select(*KEYS.c, *USERS.c, *TEAMS.c)
    .join_from(KEYS, USERS)
    .outerjoin(TEAMS, _OF_TEAM)
    .where(KEYS.c.public_id == bindparam("public_id"))
)


HOUR: Final = timedelta(hours=1)

#: Who can have amounts of their own.
Owner: TypeAlias = Literal["user", "key", "team"]


class UnknownOwnerError(LookupError, ValueError):
    """There is no such ``owner`` of that ``name``: its argument, for a key its public id."""

    owner: ClassVar[Owner]

    @property
    def name(self) -> str:
        return str(self.args[0])


class UnknownUserError(UnknownOwnerError):
    owner = "user"


class UnknownKeyError(UnknownOwnerError):
    owner = "key"


class UnknownTeamError(UnknownOwnerError):
    owner = "team"


class RefusedChangeError(ValueError):
    """The accounts do not allow that; the message is for operators, the ``code`` for programs."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class UserChange:
    """What a user is to have: ``values`` of the columns ``plan``, ``team_name`` and ``limits``."""

    name: str
    values: Mapping[str, Any]


class NewPeopleError(ValueError):
    """The key has brought as many new people as it may in an hour; the next one may come ``at``."""

    def __init__(self, at: datetime) -> None:
        super().__init__(at)
        self.at = at


_OWNERS: Final[Mapping[Owner, tuple[Column[str], type[UnknownOwnerError]]]] = {
    "user": (USERS.c.name, UnknownUserError),
    "key": (KEYS.c.public_id, UnknownKeyError),
    "team": (TEAMS.c.name, UnknownTeamError),
}
_NONE: Final[Mapping[str, str]] = MappingProxyType({})

#: The columns that a key does not pass on to the one that replaces it.
_NOT_COPIED: Final = {"public_id", "secret_sha256", "created_at", "revoked_at", "last_used_on"}


class KeyTable(Generic[K]):
    """The keys of one kind; raises ``unknown`` for an id that it does not have."""

    def __init__(self, table: Table, kind: type[K], unknown: type[Exception], prefix: str) -> None:
        self._table, self._kind, self._unknown, self._prefix = table, kind, unknown, prefix

    def find(self, connection: Connection, public_id: str) -> K:
        query = select(self._table).where(self._table.c.public_id == public_id)
        row = connection.execute(query).one_or_none()
        if row is None:
            raise self._unknown(public_id)
        return self._kind(*row)

    def add(self, connection: Connection, **values: Any) -> PresentedKey:
        new = new_key(self._prefix)
        secret = {"public_id": new.public_id, "secret_sha256": new.secret_sha256}
        row = {**values, **secret, "created_at": datetime.now(UTC)}
        connection.execute(insert(self._table).values(row))
        return new

    def change(self, connection: Connection, public_id: str, **values: Any) -> K:
        is_key = self._table.c.public_id == public_id
        connection.execute(update(self._table).where(is_key).values(values))
        return self.find(connection, public_id)

    def revoke(self, connection: Connection, public_id: str) -> K:
        """Revoke a key; a revoked key stays as it is."""
        revoked_at = self.find(connection, public_id).revoked_at or datetime.now(UTC)
        return self.change(connection, public_id, revoked_at=revoked_at)

    def rotate(
        self, connection: Connection, public_id: str, overlap: timedelta, **others: Any
    ) -> tuple[PresentedKey, K]:
        """Make a key like this one but for ``others``, and have this one expire after the overlap;
        returns both. RefusedChangeError if it is revoked or has expired."""
        old = self.find(connection, public_id)
        if not old.is_usable:
            raise RefusedChangeError("unusable_key", f"Key {public_id} is revoked or has expired.")
        same = {c.key: getattr(old, c.key) for c in self._table.c if c.key not in _NOT_COPIED}
        new = self.add(connection, **{**same, **others})
        end = min(filter(None, [old.expires_at, datetime.now(UTC) + overlap]))
        return new, self.change(connection, public_id, expires_at=end)


_KEYS: Final = KeyTable(KEYS, ApiKey, UnknownKeyError, PREFIX)


class Accounts:
    """The users, teams and keys. Raises SQLAlchemy's errors and those above."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def any_key(self) -> bool:
        """Return whether a key was ever made: revoking the last one must not open the server."""
        with self._database.reading() as connection:
            return bool(connection.scalar(_ANY_KEY))

    def create_key(  # noqa: PLR0913 - what a key and a new user have
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
        files: bool | None = None,
        traffic_class: str | None = None,
        people: People | None = None,
        bound_team: str | None = None,
    ) -> PresentedKey:
        """Make a key, and its user if new, with ``plan`` or else ``default_plan`` and in ``team``.

        RefusedChangeError if the user exists with another plan or team, because a new key must not
        change the user's other keys, or is deactivated. UnknownTeamError if there is no such team.
        """
        with self._database.writing() as connection:
            if team is not None:
                _of(connection, "team", team)
            owner = _user(connection, user)
            if owner is None:
                new = {"name": user, "plan": plan or default_plan, "team_name": team}
                connection.execute(insert(USERS).values(**new, created_at=datetime.now(UTC)))
            elif owner.deactivated_at is not None:
                raise RefusedChangeError(
                    "deactivated_user",
                    f"{user} is deactivated; no key was created. Activate them first.",
                )
            elif plan not in {None, owner.plan}:
                raise RefusedChangeError(
                    "other_plan",
                    f"{user} has the plan {owner.plan}; no key was created, because all keys of a "
                    "user have the user's plan. Leave the plan out, or change the user's first.",
                )
            elif team not in {None, owner.team_name}:
                current = "no team" if owner.team_name is None else f"the team {owner.team_name}"
                raise RefusedChangeError(
                    "other_team",
                    f"{user} has {current}; no key was created, because all keys of a user "
                    "count toward the user's team. Leave the team out, or move the user first.",
                )
            return _KEYS.add(
                connection,
                user=user,
                name=name,
                expires_at=expires_at,
                limits=dict(limits) or None,
                models=list(models) or None,
                files=files,
                traffic_class=traffic_class,
                people=people and people.as_row(),
                bound_team=bound_team,
            )

    def rotate(
        self, public_id: str, *, overlap: timedelta, bound_team: str | None = None
    ) -> tuple[PresentedKey, ApiKey]:
        """Make a key like this one, which expires after ``overlap``; returns both. The new one is
        bound to that team, or to that of the old one.

        UnknownKeyError if it does not exist, RefusedChangeError if it is revoked or has expired.
        """
        others = {} if bound_team is None else {"bound_team": bound_team}
        with self._database.writing() as connection:
            made, old = _KEYS.rotate(connection, public_id, overlap, **others)
            brought = USERS.c.brought_by == public_id
            connection.execute(update(USERS).where(brought).values(brought_by=made.public_id))
        return made, old

    def import_users(
        self, changes: Iterable[UserChange], *, default_plan: str, with_keys: bool = False
    ) -> dict[str, PresentedKey | None]:
        """Create or change users, all or none; returns the new ones, with their keys if wanted."""
        now = datetime.now(UTC)
        made: dict[str, PresentedKey | None] = {}
        with self._database.writing() as connection:
            for change in changes:
                if _user(connection, change.name) is not None:
                    _change(connection, "user", change.name, **change.values)
                    continue
                values = {"plan": default_plan, **change.values}
                connection.execute(insert(USERS).values(name=change.name, created_at=now, **values))
                of_key = {"user": change.name, "name": "key"}
                made[change.name] = _KEYS.add(connection, **of_key) if with_keys else None
        return made

    def find(self, public_id: str) -> tuple[ApiKey, User] | None:
        """Return the key of that id, with its user."""
        with self._database.reading() as connection:
            return _find(connection, public_id)

    def person(self, public_id: str, name: str, people: People) -> tuple[ApiKey, User] | None:
        """Return the key, and the user of that name; a new one has the key's plan for new people
        and its owner's team. None without such a key.

        NewPeopleError if the key may bring no new one now.
        """
        now = datetime.now(UTC)
        with self._database.reading() as connection:
            row, user = _find(connection, public_id), _user(connection, name)
            if row is None:
                return None
            if user is not None:
                return row[0], user
            _check_new(connection, public_id, people, now)
        with self._database.writing() as connection:
            # Its lock: two workers must not count the same people.
            connection.execute(select(KEYS).where(KEYS.c.public_id == public_id).with_for_update())
            if _user(connection, name) is None:
                _check_new(connection, public_id, people, now)
                new = self._database.insert(USERS).values(
                    name=name,
                    plan=people.plan or row[1].plan,
                    team_name=row[1].team_name,
                    brought_by=public_id,
                    created_at=now,
                )
                connection.execute(new.on_conflict_do_nothing())
            user = _user(connection, name)
        return None if user is None else (row[0], user)

    def all_keys(self, *users: str) -> Sequence[ApiKey]:
        """Return all keys, or those of these users, by user and time of creation."""
        query = select(KEYS).order_by(KEYS.c.user, KEYS.c.created_at)
        query = query.where(KEYS.c.user.in_(users)) if users else query
        with self._database.reading() as connection:
            return [ApiKey(*row) for row in connection.execute(query)]

    def valid_keys(self) -> set[str]:
        """Return the public ids of the keys that give access now."""
        users = {user.name: user for user in self.users() if user.deactivated_at is None}
        return {
            key.public_id
            for key in self.all_keys()
            if key.is_usable and key.user in users and key.is_for(users[key.user])
        }

    def users(self, *names: str, team: str | None = None) -> Sequence[User]:
        """Return all users, or those of these names or of that team."""
        query = _USERS.where(USERS.c.name.in_(names)) if names else _USERS
        query = query if team is None else query.where(USERS.c.team_name == team)
        with self._database.reading() as connection:
            return [_user_of(row) for row in connection.execute(query.order_by(USERS.c.name))]

    def names(self) -> Sequence[tuple[str, str | None, str | None]]:
        """Return the names of all users with their ``team_name`` and ``brought_by``: a fifth of the
        work of `users`."""
        query = select(USERS.c.name, USERS.c.team_name, USERS.c.brought_by).order_by(USERS.c.name)
        with self._database.reading() as connection:
            return [(*row,) for row in connection.execute(query)]

    def user(self, name: str) -> User | None:
        with self._database.reading() as connection:
            return _user(connection, name)

    def team(self, name: str) -> Team | None:
        with self._database.reading() as connection:
            row = connection.execute(select(TEAMS).where(TEAMS.c.name == name)).one_or_none()
        return None if row is None else Team(*row)

    def teams(self) -> Sequence[Team]:
        with self._database.reading() as connection:
            return [Team(*row) for row in connection.execute(select(TEAMS).order_by(TEAMS.c.name))]

    def create_team(self, name: str, *, limits: Mapping[str, str] = _NONE) -> None:
        """Make a team without users. RefusedChangeError if the name is taken."""
        values = {"name": name, "created_at": datetime.now(UTC), "limits": dict(limits) or None}
        with self._database.writing() as connection:
            if connection.execute(select(TEAMS).where(TEAMS.c.name == name)).first() is not None:
                raise RefusedChangeError("existing_team", f"The team {name!r} already exists.")
            connection.execute(insert(TEAMS).values(values))

    def revoke(self, public_id: str) -> ApiKey:
        """Revoke a key; a revoked key stays as it is. UnknownKeyError if it does not exist."""
        with self._database.writing() as connection:
            return _KEYS.revoke(connection, public_id)

    def set_active(self, user: str, *, active: bool) -> bool:
        """Let a user's keys give access, or none of them; False if that is so already.
        UnknownUserError if there is no such user."""
        with self._database.writing() as connection:
            was_active = _of(connection, "user", user).deactivated_at is None
            if active != was_active:
                at = None if active else datetime.now(UTC)
                _change(connection, "user", user, deactivated_at=at)
        return active != was_active

    def delete_user(
        self, user: str, *, also: Callable[[Connection], None] = lambda _: None
    ) -> None:
        """Delete a user with all keys, and in the same transaction do ``also``. UnknownUserError if
        there is no such user, RefusedChangeError if no other one has a key: without one, accounts
        would be off."""
        with self._database.writing() as connection:
            _of(connection, "user", user)
            of_user = select(exists(select(KEYS).where(KEYS.c.user == user)))
            of_others = select(exists(select(KEYS).where(KEYS.c.user != user)))
            if connection.scalar(of_user) and not connection.scalar(of_others):
                raise RefusedChangeError(
                    "last_keys",
                    f"{user} has the only keys; nothing was deleted. Create another user's key "
                    "first: accounts are on as long as there is one.",
                )
            connection.execute(delete(KEYS).where(KEYS.c.user == user))
            connection.execute(delete(USERS).where(USERS.c.name == user))
            also(connection)

    def change(self, owner: Owner, name: str, **values: object) -> None:
        """Give an owner these values of columns. UnknownOwnerError if there is no such owner."""
        with self._database.writing() as connection:
            _change(connection, owner, name, **values)

    def set_amount(self, owner: Owner, name: str, limit: str, amount: str | None) -> bool:
        """Give an owner an amount, or with None the policy's again; False if nothing changed."""
        with self._database.writing() as connection:
            before: dict[str, str] = _of(connection, owner, name).limits or {}
            after = {n: text for n, text in {**before, limit: amount}.items() if text is not None}
            _change(connection, owner, name, limits=after or None)
            return after != before

    def note_use(self, public_id: str, day: date) -> None:
        """Store that the key was used that day."""
        is_older = or_(KEYS.c.last_used_on.is_(None), KEYS.c.last_used_on < day)
        query = update(KEYS).where(KEYS.c.public_id == public_id, is_older)
        with self._database.writing() as connection:
            connection.execute(query.values(last_used_on=day))


def amounts_of(*owners: Team | User | ApiKey | None) -> dict[str, str]:
    """Return the amounts of all these together. A limit counts users, keys or teams, so no two of
    them have an amount for the same one."""
    merged: dict[str, str] = {}
    for owner in owners:
        merged |= (owner and owner.limits) or {}
    return merged


def _of(connection: Connection, owner: Owner, name: str) -> Row[*tuple[Any, ...]]:
    """Return the row of an owner; UnknownOwnerError without one."""
    column, unknown = _OWNERS[owner]
    row = connection.execute(select(column.table).where(column == name)).one_or_none()
    if row is None:
        raise unknown(name)
    return row


def _change(connection: Connection, owner: Owner, name: str, **values: object) -> None:
    """Change these columns of an owner; UnknownOwnerError without one."""
    column, unknown = _OWNERS[owner]
    changed = connection.execute(update(column.table).where(column == name).values(values))
    if not changed.rowcount:
        raise unknown(name)


def _check_new(connection: Connection, public_id: str, people: People, now: datetime) -> None:
    """NewPeopleError if the key has brought too many people in the hour before."""
    brought = (USERS.c.brought_by == public_id, USERS.c.created_at > now - HOUR)
    recent = select(USERS.c.created_at).where(*brought).order_by(USERS.c.created_at.desc())
    times = connection.scalars(recent.limit(people.most_new)).all()
    if len(times) >= people.most_new:
        raise NewPeopleError(times[-1] + HOUR)


def _find(connection: Connection, public_id: str) -> tuple[ApiKey, User] | None:
    row = connection.execute(_FIND, {"public_id": public_id}).one_or_none()
    columns = len(KEYS.c)
    return None if row is None else (ApiKey(*row[:columns]), _user_of(row[columns:]))


def _user(connection: Connection, name: str) -> User | None:
    row = connection.execute(_USERS.where(USERS.c.name == name)).one_or_none()
    return None if row is None else _user_of(row)


def _user_of(row: Sequence[Any]) -> User:
    columns = len(USERS.c)
    user, team = User(*row[:columns]), row[columns:]
    return user if team[0] is None else replace(user, team=Team(*team))
