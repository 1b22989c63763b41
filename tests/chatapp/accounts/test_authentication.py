"""Authentication: how often it queries the database, and what holds during an outage."""

import logging
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from chatapp.accounts.api_key import PresentedKey, new_key
from chatapp.accounts.authentication import (
    ANSWER_HOLDS_S,
    LOST,
    PAUSE_S,
    STALE_HOLDS_S,
    AccountsLostError,
    AccountsUnavailableError,
    Authenticator,
    KeyRefusedError,
    Principal,
)
from chatapp.accounts.store import ApiKey, User


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Shelf:
    """A store that counts its queries, and can be unavailable, and the time."""

    clock: Clock = field(default_factory=Clock)
    kept: dict[str, tuple[ApiKey, User]] = field(default_factory=dict)
    away: bool = False
    asked: int = 0
    uses: list[str] = field(default_factory=list)

    def any_key(self) -> bool:
        self._answer()
        return bool(self.kept)

    def find(self, public_id: str) -> tuple[ApiKey, User] | None:
        self._answer()
        return self.kept.get(public_id)

    def note_use(self, public_id: str, day: date) -> None:
        self.uses.append(public_id)

    def add(self, *, user: str = "alice", expires_at: datetime | None = None) -> PresentedKey:
        made = new_key()
        key = ApiKey(
            public_id=made.public_id,
            user=user,
            secret_sha256=made.secret_sha256,
            name="",
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        self.kept[made.public_id] = (key, User(user, "pro", key.created_at))
        return made

    def change_user(self, public_id: str, **fields: Any) -> None:
        key, user = self.kept[public_id]
        self.kept[public_id] = key, replace(user, **fields)

    def revoke(self, public_id: str) -> None:
        key, user = self.kept[public_id]
        self.kept[public_id] = replace(key, revoked_at=datetime.now(UTC)), user

    def _answer(self) -> None:
        self.asked += 1
        if self.away:
            raise OperationalError("SELECT", {}, Exception("connection refused"))


class Mark:
    """A mark that accounts were on; None: it cannot be read."""

    def __init__(self) -> None:
        self.state: bool | None = False
        self.asked = 0

    def is_set(self) -> bool | None:
        self.asked += 1
        return self.state

    def set(self) -> None:
        self.state = True

    def clear(self) -> None:
        self.state = False


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def authenticator(shelf: Shelf) -> Authenticator:
    return Authenticator(shelf, Mark(), shelf.clock)


def test_a_key_has_an_owner(authenticator: Authenticator, shelf: Shelf) -> None:
    """The user's name and plan, and the public part of the key."""
    made = shelf.add()
    assert authenticator.authenticate(made.text) == Principal("alice", "pro", made.public_id)


def test_a_malformed_key_is_refused_with_the_form_of_one(authenticator: Authenticator) -> None:
    """So that callers who sent half of a key see it."""
    with pytest.raises(KeyRefusedError, match="sk-chat-<16 characters>-<43 characters>"):
        authenticator.authenticate("sk-chat-0123456789abcdef")


def test_most_requests_need_no_query(authenticator: Authenticator, shelf: Shelf) -> None:
    """One query a key while an answer holds, also for wrong keys."""
    made = shelf.add()
    wrong = PresentedKey(made.public_id, new_key().secret)
    for _ in range(100):
        authenticator.authenticate(made.text)
        with pytest.raises(KeyRefusedError):
            authenticator.authenticate(wrong.text)
    assert shelf.asked == 2
    shelf.clock.now += ANSWER_HOLDS_S
    authenticator.authenticate(made.text)
    assert shelf.asked == 3


def test_a_change_acts_within_the_time(authenticator: Authenticator, shelf: Shelf) -> None:
    """Of plan and amounts, and a revocation: at the latest when the answer has expired."""
    made = shelf.add()
    before = authenticator.authenticate(made.text)
    assert (before.plan, before.limits) == ("pro", {})
    shelf.change_user(made.public_id, plan="team", limits={"plan": "1/day"})
    assert authenticator.authenticate(made.text) == before
    shelf.clock.now += ANSWER_HOLDS_S
    after = authenticator.authenticate(made.text)
    assert (after.plan, after.limits) == ("team", {"plan": "1/day"})
    shelf.revoke(made.public_id)
    shelf.clock.now += ANSWER_HOLDS_S
    with pytest.raises(KeyRefusedError, match=f"{made.public_id} was revoked"):
        authenticator.authenticate(made.text)


def test_a_key_expires_to_the_second(authenticator: Authenticator, shelf: Shelf) -> None:
    """Also between two queries."""
    soon = datetime.now(UTC) + timedelta(seconds=60)
    made = shelf.add(expires_at=soon)
    authenticator.authenticate(made.text)
    old = shelf.add(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(KeyRefusedError, match="expired on"):
        authenticator.authenticate(old.text)


def test_a_cached_key_expires_too(
    authenticator: Authenticator, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request compares the cached expiry with the time."""
    made = shelf.add(expires_at=datetime.now(UTC) + timedelta(seconds=60))
    authenticator.authenticate(made.text)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, *_zone: object) -> datetime:
            return datetime.now(UTC) + timedelta(days=1)

    monkeypatch.setattr("chatapp.accounts.authentication.datetime", Tomorrow)
    with pytest.raises(KeyRefusedError, match="expired"):
        authenticator.authenticate(made.text)
    assert shelf.asked == 1


def test_only_the_holder_learns_that_a_key_was_revoked(
    authenticator: Authenticator, shelf: Shelf
) -> None:
    """A wrong secret and an unknown id get the same sentence."""
    made = shelf.add()
    shelf.revoke(made.public_id)
    sentences = set()
    for public_id in (made.public_id, new_key().public_id):
        with pytest.raises(KeyRefusedError) as caught:
            authenticator.authenticate(PresentedKey(public_id, new_key().secret).text)
        sentences.add(str(caught.value))
    assert len(sentences) == 1
    assert "revoked" not in sentences.pop()


def test_accounts_are_on_as_soon_as_there_is_a_key(
    authenticator: Authenticator, shelf: Shelf
) -> None:
    """The next request needs one. They stay on, without a further query."""
    assert not authenticator.required
    shelf.add()
    assert authenticator.required
    asked = shelf.asked
    shelf.kept.clear()
    assert authenticator.required
    assert shelf.asked == asked


def test_an_outage_does_not_open_the_server(authenticator: Authenticator, shelf: Shelf) -> None:
    """Whether keys are required is not guessed, also if none were before: one may have been made
    meanwhile."""
    assert not authenticator.required
    shelf.away = True
    with pytest.raises(AccountsUnavailableError):
        _ = authenticator.required


def test_an_outage_does_not_stop_recent_callers(authenticator: Authenticator, shelf: Shelf) -> None:
    """A valid key works for a bounded time; a key without a recent request does not."""
    made = shelf.add()
    assert authenticator.required
    authenticator.authenticate(made.text)
    shelf.away = True
    shelf.clock.now += STALE_HOLDS_S - 1
    assert authenticator.authenticate(made.text).user == "alice"
    with pytest.raises(AccountsUnavailableError):
        authenticator.authenticate(shelf.add().text)
    shelf.clock.now += 2
    with pytest.raises(AccountsUnavailableError):
        authenticator.authenticate(made.text)


def test_an_outage_is_not_met_by_every_request(
    authenticator: Authenticator, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    """Its timeouts cost one request in a pause; afterwards keys work again."""
    made = shelf.add()
    shelf.away = True
    with caplog.at_level(logging.ERROR):
        for _ in range(50):
            with pytest.raises(AccountsUnavailableError):
                authenticator.authenticate(made.text)
    assert shelf.asked == 1
    assert len(caplog.messages) == 1
    assert made.secret not in caplog.text
    shelf.away = False
    shelf.clock.now += PAUSE_S
    assert authenticator.authenticate(made.text).user == "alice"


def test_a_refusal_ends_the_stale_answer(authenticator: Authenticator, shelf: Shelf) -> None:
    """A key that was seen revoked does not work in the next outage."""
    made = shelf.add()
    authenticator.authenticate(made.text)
    shelf.revoke(made.public_id)
    shelf.clock.now += ANSWER_HOLDS_S
    with pytest.raises(KeyRefusedError):
        authenticator.authenticate(made.text)
    shelf.away = True
    shelf.clock.now += ANSWER_HOLDS_S
    with pytest.raises(AccountsUnavailableError):
        authenticator.authenticate(made.text)


def test_the_caches_are_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented keys do not fill the memory, and do not push out valid ones."""
    monkeypatch.setattr("chatapp.accounts.authentication.MOST_KEYS", 3)
    authenticator = Authenticator(shelf, Mark(), shelf.clock)
    made = shelf.add()
    authenticator.authenticate(made.text)
    for _ in range(10):
        with pytest.raises(KeyRefusedError):
            authenticator.authenticate(new_key().text)
    asked = shelf.asked
    authenticator.authenticate(made.text)
    assert shelf.asked == asked
    assert len(authenticator._refused) == 3


def test_uses_that_wait_to_be_noted_are_bounded(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database writes slowly, further uses are noted after a later query."""
    monkeypatch.setattr("chatapp.accounts.authentication.MOST_NOTES", 3)
    may_write = threading.Event()
    noted = shelf.note_use

    def slowly(public_id: str, day: date) -> None:
        assert may_write.wait(60)
        noted(public_id, day)

    monkeypatch.setattr(shelf, "note_use", slowly)
    authenticator = Authenticator(shelf, Mark(), shelf.clock)
    made = [shelf.add() for _ in range(10)]
    for key in made:
        authenticator.authenticate(key.text)
    may_write.set()
    authenticator._notes.get().shutdown()
    assert shelf.uses == [key.public_id for key in made[:3]]


def test_a_database_that_has_lost_its_keys_does_not_turn_accounts_off(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    """All requests are refused, with one error in the log, until there is a key again or the mark
    is removed."""
    mark = Mark()
    mark.set()
    authenticator = Authenticator(shelf, mark, shelf.clock)
    for _ in range(3):
        with pytest.raises(AccountsLostError):
            _ = authenticator.required
    (record,) = caplog.records
    assert record.getMessage() == LOST
    mark.clear()
    assert not authenticator.required
    shelf.add()
    assert authenticator.required
    authenticator._notes.get().shutdown()
    assert mark.state


def test_without_accounts_the_mark_is_asked_until_it_answers(shelf: Shelf) -> None:
    """An outage of the limits does not turn accounts on; afterwards they are as the mark says."""
    mark = Mark()
    mark.state = None
    authenticator = Authenticator(shelf, mark, shelf.clock)
    assert not authenticator.required
    mark.clear()
    assert not authenticator.required
    assert not authenticator.required
    assert mark.asked == 2
