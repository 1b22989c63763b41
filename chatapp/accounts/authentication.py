"""Authentication: from the API key of a request to its owner, mostly without a query."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Final, TypeAlias, TypeVar

from cachetools import TTLCache
from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts.accounts_on import AccountsOn
from chatapp.accounts.api_key import PresentedKey, parse
from chatapp.accounts.people import People
from chatapp.accounts.store import Accounts, ApiKey, User, amounts_of
from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long an answer about a key is used, in seconds: a new plan applies after that time, and a
#: revocation where the limits do not stop the key at once.
ANSWER_HOLDS_S: Final = 5.0
#: How long a valid key works while the database is unavailable, in seconds. It cannot be revoked
#: meanwhile.
STALE_HOLDS_S: Final = 300.0
#: The pause after a failed query, in seconds: its timeouts would occupy all threads.
PAUSE_S: Final = 1.0
MOST_KEYS: Final = 4096
MOST_PEOPLE: Final = 16_384
#: Uses that wait to be noted. Others are noted after a later query.
MOST_NOTES: Final = 1000

LOST: Final = (
    "Accounts were on, but the database has no API key: all requests are refused. Restore the "
    "database with its journal (`chat db restore`), correct DATABASE_URL, or create a key. "
    "`flask --app wsgi chat keys off` serves without keys again."
)
UNKNOWN_KEY: Final = "The API key is unknown; check that it is complete and belongs to this server."


class KeyRefusedError(Exception):
    """The key gives no access; the message is for its holder."""


class PersonRefusedError(Exception):
    """The key may not act for this person; the message is for the holder of the key."""


class AccountsUnavailableError(Exception):
    """The database does not answer, and there is no recent answer."""


class AccountsLostError(AccountsUnavailableError):
    """Accounts were on, and the database has no key."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a valid key; ``key_id`` is the key's public part.

    ``limits`` are the amounts that the user, the team and the key have of their own, by the names
    of limits; ``models`` are the patterns of the key, empty for all; ``files``: it may name files
    that the providers keep. ``traffic_class`` is the key's, None for that of the plan. ``people``:
    how the key names the users for whom it acts, None for its own user alone. ``is_named``: the
    user is one whom the key has named.
    """

    user: str
    plan: str
    key_id: str
    team: str | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    files: bool = False
    traffic_class: str | None = None
    people: People | None = None
    key_name: str = ""
    is_named: bool = False


#: The owner of a key, and when it expires.
KeyOwner: TypeAlias = tuple[Principal, datetime | None]


class Authenticator:
    """Finds the owner of a key, and whether keys are required. Safe from any thread."""

    def __init__(
        self, store: Accounts, accounts_on: AccountsOn, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.accounts_on = accounts_on
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()  # of the caches
        self._valid: TTLCache[bytes, KeyOwner] = TTLCache(MOST_KEYS, ANSWER_HOLDS_S, clock)
        self._stale: TTLCache[bytes, KeyOwner] = TTLCache(MOST_KEYS, STALE_HOLDS_S, clock)
        # Apart, so that invented keys do not push out the valid ones.
        self._refused: TTLCache[bytes, str] = TTLCache(MOST_KEYS, ANSWER_HOLDS_S, clock)
        #: Valid keys that were looked up again because they are blocked.
        self._confirmed: TTLCache[bytes, bool] = TTLCache(MOST_KEYS, ANSWER_HOLDS_S, clock)
        self._people: TTLCache[tuple[str, str], Principal] = TTLCache(
            MOST_PEOPLE, ANSWER_HOLDS_S, clock
        )
        self._stale_people: TTLCache[tuple[str, str], Principal] = TTLCache(
            MOST_PEOPLE, STALE_HOLDS_S, clock
        )
        self._required = self._may_be_off = self._said_lost = False
        self._failed_at: float | None = None
        # A note of a use is a write, and requests do not wait for it.
        self._notes = PerProcess(lambda: ThreadPoolExecutor(1, "last-use"))
        self._notes_left = threading.BoundedSemaphore(MOST_NOTES)

    @property
    def required(self) -> bool:
        """Whether accounts are on: whether any key was ever made. Once on, they stay on.

        Until then, each request asks the database: another process may make the first key.
        AccountsUnavailableError if unknown, or if the database has lost its keys.
        """
        if not self._required:
            self._required = self._ask(self._store.any_key)
            if self._required:
                self._notes.get().submit(self.accounts_on.set)
            elif not self._may_be_off:
                self._check_accounts_on()
        return self._required

    def _check_accounts_on(self) -> None:
        """AccountsLostError if accounts were on. This process does not ask again after a No."""
        if is_set := self.accounts_on.is_set():
            if not self._said_lost:
                log.error(LOST)
            self._said_lost = True
            raise AccountsLostError
        self._may_be_off = is_set is False

    def authenticate(self, text: str, *, again: bool = False) -> Principal:
        """Return the owner of the key in that text. ``again``: a query has to confirm the blocked
        key; each five seconds at most.

        KeyRefusedError if it gives no access, AccountsUnavailableError if that is unknown.
        """
        presented = parse(text)
        if presented is None:
            raise KeyRefusedError(
                "The API key is malformed; keys of this server have the form "
                "sk-chat-<16 characters>-<43 characters>."
            )
        digest = sha256(presented.text.encode("ascii")).digest()
        with self._lock:
            refusal, cached = self._refused.get(digest), self._valid.get(digest)
            if again and digest not in self._confirmed:
                cached, self._confirmed[digest] = None, True
        if refusal is not None:
            raise KeyRefusedError(refusal)
        principal, expires_at = cached or self._looked_up(digest, presented)
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise KeyRefusedError(_expired(principal.key_id, expires_at))
        return principal

    def act_for(
        self, key: Principal, name: str, *, before_wait: Callable[[], None] = lambda: None
    ) -> Principal:
        """Return the person of that name, for whom this key acts; ``before_wait`` is called before
        a query.

        PersonRefusedError for one who is deactivated, NewPeopleError for a new one too many,
        AccountsUnavailableError if there is no recent answer.
        """
        assert key.people is not None
        person_id, people = (key.key_id, name), key.people
        with self._lock:
            person = self._people.get(person_id)
        if person is not None:
            return person
        before_wait()
        try:
            row = self._ask(lambda: self._store.person(key.key_id, name, people))
        except AccountsUnavailableError:
            with self._lock:
                stale = self._stale_people.get(person_id)
            if stale is None:
                raise
            return stale
        if row is None:  # the key was deleted a moment ago
            raise PersonRefusedError(UNKNOWN_KEY)
        if row[1].deactivated_at is not None:
            with self._lock:
                self._stale_people.pop(person_id, None)
            raise PersonRefusedError(_deactivated(name))
        person = _principal(*row, people=None)
        with self._lock:
            self._people[person_id] = self._stale_people[person_id] = person
        return person

    def _looked_up(self, digest: bytes, presented: PresentedKey) -> KeyOwner:
        try:
            row = self._ask(lambda: self._store.find(presented.public_id))
        except AccountsUnavailableError:
            with self._lock:
                stale = self._stale.get(digest)
            if stale is None:
                raise
            return stale
        try:
            checked = _checked(presented, row)
        except KeyRefusedError as refusal:
            with self._lock:
                self._stale.pop(digest, None)
                self._refused[digest] = str(refusal)
            raise
        with self._lock:
            self._valid[digest] = self._stale[digest] = checked
        assert row is not None
        today = datetime.now(UTC).date()
        if row[0].last_used_on != today and self._notes_left.acquire(blocking=False):
            self._notes.get().submit(self._note_use, presented.public_id, today)
        return checked

    def _ask(self, query: Callable[[], T]) -> T:
        failed_at = self._failed_at
        if failed_at is not None and self._clock() - failed_at < PAUSE_S:
            raise AccountsUnavailableError
        try:
            answer = query()
        except (SQLAlchemyError, OSError) as error:
            self._failed_at = self._clock()
            log.error("The accounts cannot be read: %s", error)
            raise AccountsUnavailableError from error
        self._failed_at = None
        return answer

    def _note_use(self, public_id: str, day: date) -> None:
        try:
            self._store.note_use(public_id, day)
        except (SQLAlchemyError, OSError) as error:
            log.warning("The last use of key %s was not recorded: %s", public_id, error)
        finally:
            self._notes_left.release()


def _checked(presented: PresentedKey, row: tuple[ApiKey, User] | None) -> KeyOwner:
    if row is None or not presented.has_secret(row[0].secret_sha256):
        raise KeyRefusedError(UNKNOWN_KEY)
    key, user = row
    # Only the holder of the secret learns more.
    if key.revoked_at is not None:
        raise KeyRefusedError(
            f"API key {key.public_id} was revoked; ask the operator for a new one."
        )
    if user.deactivated_at is not None:
        raise KeyRefusedError(_deactivated(user.name))
    if key.expires_at is not None and key.has_expired:
        raise KeyRefusedError(_expired(key.public_id, key.expires_at))
    if not key.is_for(user):
        raise KeyRefusedError(
            f"API key {key.public_id} is valid only while {user.name} is in the team "
            f"{key.bound_team}; ask your team's administrator or the operator for a new one."
        )
    return _principal(key, user, people=People.from_row(key.people)), key.expires_at


def _principal(key: ApiKey, user: User, *, people: People | None) -> Principal:
    return Principal(
        user.name,
        user.plan,
        key.public_id,
        team=user.team_name,
        limits=amounts_of(user.team, user, key),
        models=tuple(key.models or ()),
        files=bool(key.files),
        traffic_class=key.traffic_class,
        people=people,
        key_name=key.name,
        is_named=people is None and key.people is not None,
    )


def _deactivated(user: str) -> str:
    return f"The account of {user} is deactivated; ask the operator to activate it."


def _expired(public_id: str, at: datetime) -> str:
    return f"API key {public_id} expired on {at:%Y-%m-%d}; ask the operator for a new one."
