"""Writing rows of the ledger: one statement, which may be repeated as often as need be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite

from chatapp.database.connection import Database
from chatapp.ledger.call import Call
from chatapp.ledger.table import AT_THE_END, CALLS, row_of


def write(database: Database, calls: Sequence[Call]) -> None:
    """Insert what is new and update what was unfinished, in one transaction.

    A finished call is never touched again: what comes late or twice changes nothing.
    """
    with database.writing() as connection:
        connection.execute(_statement(database), [row_of(call) for call in calls])


def as_json(call: Call) -> str:
    """The row in one line, for a log that has to stand in for the database."""
    return json.dumps(row_of(call), default=_text)


def _statement(database: Database) -> Any:
    insert = (sqlite if database.is_sqlite else postgresql).insert(CALLS)
    return insert.on_conflict_do_update(
        index_elements=[CALLS.c.id],
        set_={name: insert.excluded[name] for name in AT_THE_END},
        where=CALLS.c.status == "unfinished",
    )


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
