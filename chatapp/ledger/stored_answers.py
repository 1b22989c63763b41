"""Who made an answer that its provider keeps: only its user may continue, fetch or delete it.

All users share this server's key, so the provider would give everybody's answers to each of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Index, String, Table, select, update
from sqlalchemy.exc import SQLAlchemyError

from chatapp.background import BackgroundSender, Patience
from chatapp.database import METADATA, Instant
from chatapp.database.connection import Database
from chatapp.ledger.retention import Retention
from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

STORED: Final = Table(
    "stored_answers",
    METADATA,
    Column("id", String(128), primary_key=True),
    Column("user", String(300), nullable=False),
    Column("provider", String(32), nullable=False),
    Column("key", String(300), nullable=False),
    Column("tokens", BigInteger),
    Column("created_at", Instant, nullable=False),
    Index("ix_stored_answers_created_at", "created_at"),
)
#: As long as OpenAI keeps a response.
KEEP: Final = timedelta(days=30)
BATCH: Final = 500
MOST_WAITING: Final = 20_000
LINGER_S: Final = 0.02
#: How long an answer may take from another worker's memory to the database, and between two looks.
PATIENCE_S: Final = 0.5
STEP_S: Final = 0.05
ID_MAX: Final = 128


class StoredAnswersUnavailableError(Exception):
    """The database cannot be read at the moment."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer that a provider keeps, or an item of it. ``key`` is the name of the key that made
    it, if the provider has several: only its organisation has the answer. ``tokens`` are those of
    the whole conversation so far, which the next call continues; None if unknown."""

    id: str
    user: str
    provider: str
    key: str
    tokens: int | None
    created_at: datetime


class StoredAnswers:
    """Remembers who made which answer. Safe from any thread; no caller waits for a write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = PerProcess(self._new_writer, close=BackgroundSender.close)
        self._retention = PerProcess(
            partial(Retention, database, keep=KEEP, began_at=STORED.c.created_at),
            close=Retention.close,
        )

    def note(
        self,
        ids: Sequence[str],
        *,
        user: str,
        provider: str,
        key: str = "",
        tokens: int | None = None,
    ) -> None:
        """The user has made an answer with these ids: its own first, then those of its items."""
        writer, now = self._writer.get(), datetime.now(UTC)
        for place, id_ in enumerate(ids):
            prompt_tokens = tokens if place == 0 else None
            answer = StoredAnswer(id_, user[:300], provider, key[:300], prompt_tokens, now)
            writer.put(id_, answer)

    def find(
        self, ids: Collection[str], *, user: str, before_wait: Callable[[], object] = lambda: None
    ) -> dict[str, StoredAnswer]:
        """Return those of the answers that the user has made.

        An answer that another worker has just forwarded takes a moment to arrive: ``before_wait``
        is called before a wait for it. Raises StoredAnswersUnavailableError.
        """
        answers = self._look(ids)
        until = time.monotonic() + PATIENCE_S
        if len(answers) < len(set(ids)):
            before_wait()
        while len(answers) < len(set(ids)) and time.monotonic() < until:
            time.sleep(STEP_S)
            answers |= self._look({*ids} - answers.keys())
        return {id_: answer for id_, answer in answers.items() if answer.user == user[:300]}

    def of_others(self, ids: Collection[str], *, user: str, provider: str) -> set[str]:
        """Return those of the provider's answers that another user has made, without a wait for the
        latest. Raises StoredAnswersUnavailableError."""
        answers = self._look(ids).items()
        return {i for i, a in answers if a.user != user[:300] and a.provider == provider}

    def disown(self, user: str) -> None:
        """Keep the user's answers from everyone, also from a later user of that name."""
        mine = update(STORED).where(STORED.c.user == user[:300])
        with self._database.writing() as connection:
            connection.execute(mine.values(user=f"deleted {user}"[:300]))

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until this process has written its answers; returns whether it has."""
        return self._writer.get().flush(timeout_s)

    def _look(self, ids: Collection[str]) -> dict[str, StoredAnswer]:
        writer = self._writer.get()
        answers = {id_: answer for id_ in ids if (answer := writer.unsent(id_))}
        missing = [id_ for id_ in ids if id_ not in answers]
        if not missing:
            return answers
        try:
            with self._database.reading() as connection:
                rows = connection.execute(select(STORED).where(STORED.c.id.in_(missing)))
                return answers | {row["id"]: StoredAnswer(**row) for row in rows.mappings()}
        except (SQLAlchemyError, OSError) as error:
            log.error("The stored answers cannot be read: %s", error)
            raise StoredAnswersUnavailableError from error

    def _new_writer(self) -> BackgroundSender[str, StoredAnswer]:
        self._retention.get()
        return BackgroundSender(
            "stored-answers",
            self._write,
            merge=lambda first, later: later if later.user == first.user else first,
            lose=lambda id_, _: log.error("%s was not recorded: its user cannot continue it", id_),
            batch=BATCH,
            most=MOST_WAITING,
            linger_s=LINGER_S,
            patience=Patience(),
        )

    def _write(self, answers: Mapping[str, StoredAnswer]) -> bool:
        rows = [asdict(answer) for answer in answers.values()]
        try:
            with self._database.writing(autocommit=True) as connection:
                connection.execute(_statement(self._database.insert), rows)
        except (SQLAlchemyError, OSError) as error:
            log.warning("%d stored answers wait for the database: %s", len(rows), error)
            return False
        return True


@cache
def _statement(insert_into: Callable[[Table], Any]) -> Any:
    insert = insert_into(STORED)
    # An id never changes its user.
    return insert.on_conflict_do_update(
        index_elements=[STORED.c.id],
        set_={"tokens": insert.excluded.tokens},
        where=STORED.c.user == insert.excluded.user,
    )
