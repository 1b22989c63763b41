"""From the key that a request shows to its owner, mostly without asking the database."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Final, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts.api_key import PresentedKey, parse
from chatapp.accounts.principal import Principal
from chatapp.accounts.remembered import Remembered
from chatapp.accounts.tables import ApiKey, User
from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

T = TypeVar("T")


#: How long an answer of the database holds, s: a revoked key works this long at most, and a new
#: plan applies after that time.
ANSWER_HOLDS_S: Final = 5.0
#: How long a key that was valid goes on working while the database is away, s. Nobody can revoke
#: one meanwhile.
STALE_HOLDS_S: Final = 300.0
#: How long a database that has failed is not asked again, s: its timeouts would fill all threads.
PAUSE_S: Final = 1.0
MOST_KEYS: Final = 4096

NOT_OURS: Final = "The API key is not known here; check that it is whole and of this server."


class KeyRefusedError(Exception):
    """The key gives no access; the message is for its holder."""


class AccountsUnavailableError(Exception):
    """The database gives no answer, and no recent one is remembered."""


class Store(Protocol):
    """What authentication asks of the accounts."""

    def any_key(self) -> bool: ...
    def find(self, public_id: str) -> tuple[ApiKey, User] | None: ...
    def note_use(self, public_id: str, day: date) -> None: ...


class Authenticator:
    """Knows who a key belongs to, and whether keys are asked for at all."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._valid: Remembered[bytes, tuple[Principal, datetime | None]]
        self._valid = Remembered(MOST_KEYS, clock)
        self._refused: Remembered[bytes, str] = Remembered(MOST_KEYS, clock)
        self._required: Remembered[str, bool] = Remembered(1, clock)
        self._away_since: float | None = None
        # Noting a use is a write, and no request waits for that.
        self._notes = PerProcess(lambda: ThreadPoolExecutor(1, "last-use"))

    @property
    def required(self) -> bool:
        """Whether accounts are on: whether there is any key. Once on, they stay on.

        AccountsUnavailableError where that is not known: a lost database must not open the door.
        """
        if self._required.get("on", within_s=float("inf")):
            return True
        known = self._required.get("on", within_s=ANSWER_HOLDS_S)
        if known is None:
            try:
                known = self._ask(self._store.any_key)
            except AccountsUnavailableError:
                known = self._required.get("on", within_s=STALE_HOLDS_S)
                if known is None:
                    raise
            else:
                self._required.put("on", known)
        return known

    def authenticate(self, text: str) -> Principal:
        """The owner of the key in that text.

        KeyRefusedError where it gives no access, AccountsUnavailableError where that is not known.
        """
        presented = parse(text)
        if presented is None:
            raise KeyRefusedError(
                "The API key is malformed: a key of this server is "
                "sk-chat-<16 characters>-<43 characters>."
            )
        digest = sha256(presented.text.encode("ascii")).digest()
        if sentence := self._refused.get(digest, within_s=ANSWER_HOLDS_S):
            raise KeyRefusedError(sentence)
        known = self._valid.get(digest, within_s=ANSWER_HOLDS_S)
        if known is None:
            known = self._looked_up(digest, presented)
        principal, expires_at = known
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise KeyRefusedError(_expired(principal.key_id, expires_at))
        return principal

    def _looked_up(
        self, digest: bytes, presented: PresentedKey
    ) -> tuple[Principal, datetime | None]:
        try:
            found = self._ask(lambda: self._store.find(presented.public_id))
        except AccountsUnavailableError:
            stale = self._valid.get(digest, within_s=STALE_HOLDS_S)
            if stale is None:
                raise
            return stale
        try:
            known = _checked(presented, found)
        except KeyRefusedError as refusal:
            self._valid.forget(digest)
            self._refused.put(digest, str(refusal))
            raise
        self._valid.put(digest, known)
        assert found is not None
        today = datetime.now(UTC).date()
        if found[0].last_used_on != today:
            self._notes.get().submit(self._note_use, presented.public_id, today)
        return known

    def _ask(self, question: Callable[[], T]) -> T:
        since = self._away_since
        if since is not None and self._clock() - since < PAUSE_S:
            raise AccountsUnavailableError
        try:
            answer = question()
        except (SQLAlchemyError, OSError) as error:
            self._away_since = self._clock()
            log.error("The accounts cannot be read: %s", error)
            raise AccountsUnavailableError from error
        self._away_since = None
        return answer

    def _note_use(self, public_id: str, day: date) -> None:
        try:
            self._store.note_use(public_id, day)
        except (SQLAlchemyError, OSError) as error:
            log.warning("The use of key %s could not be noted: %s", public_id, error)


def _checked(
    presented: PresentedKey, found: tuple[ApiKey, User] | None
) -> tuple[Principal, datetime | None]:
    if found is None or not presented.has_secret(found[0].secret_sha256):
        raise KeyRefusedError(NOT_OURS)
    key, user = found
    # Only who has the secret is told more.
    if key.revoked_at is not None:
        raise KeyRefusedError(f"The API key {key.public_id} was revoked; ask for a new one.")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise KeyRefusedError(_expired(key.public_id, key.expires_at))
    return Principal(user.name, user.plan, key.public_id), key.expires_at


def _expired(public_id: str, at: datetime) -> str:
    return f"The API key {public_id} expired on {at:%Y-%m-%d}; ask for a new one."
