"""The ledger's table: the row of a call, and the statement that writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from typing import Any, Final

import sqlalchemy as sa

from chatapp.catalogue.usage import Usage
from chatapp.database import METADATA, Instant
from chatapp.database.connection import Database
from chatapp.ledger.call import Call

SUMMED: Final = ("started_at", "status", "input_tokens", "output_tokens", "cost_micro_usd")
#: The columns that a Usage has as they are.
USAGE: Final = tuple(name for name in Usage._fields if name.endswith("_tokens"))
CALLS: Final = sa.Table(
    "calls",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("user", sa.String(300), nullable=False),
    sa.Column("key_id", sa.String(16)),
    sa.Column("plan", sa.String(64), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("slug", sa.String(100), nullable=False),
    sa.Column("provider", sa.String(32), nullable=False),
    sa.Column("estimated_input_tokens", sa.BigInteger, nullable=False),
    sa.Column("estimated_output_tokens", sa.BigInteger, nullable=False),
    # None while unknown.
    *[sa.Column(name, sa.BigInteger) for name in (*USAGE, "web_searches")],
    # Uses of the provider's other tools, as "file_search:2+code_interpreter:1".
    sa.Column("other_tool_calls", sa.String(128)),
    sa.Column("tiers", sa.String(64)),
    sa.Column("estimated", sa.Boolean, nullable=False),
    sa.Column("cost_micro_usd", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("client_left", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="1"),
    sa.Column("team", sa.String(64)),
    sa.Column("tags", sa.JSON(none_as_null=True)),
    sa.Column("basis", sa.String(16)),
    sa.Column("streamed", sa.Boolean),
    sa.Column("limits_ms", sa.Float),
    sa.Column("waited_ms", sa.Integer),
    sa.Column("first_byte_ms", sa.Integer),
    sa.Column("total_ms", sa.BigInteger),
    sa.Column("limits", sa.Text),
    # With what is summed: a million calls are read from it four times as fast as they are sorted.
    *[sa.Index(f"ix_calls_{owner}_started_at", owner, *SUMMED) for owner in ("user", "team")],
    sa.Index("ix_calls_started_at", "started_at"),
)
#: The units of limits, by their initials.
UNITS: Final = {"r": "requests", "t": "tokens", "i": "input_tokens", "o": "output_tokens"}
UNITS.update(c="calls", u="usd")
MICRO: Final = 1_000_000
WEB_SEARCH: Final = "web_search"
NAMES: Final = CALLS.c.keys()
#: Rows that are written at once: SQLite is locked meanwhile, and keeps a statement per number.
MOST_ROWS: Final = 25
#: The columns that no further write of a call changes, because indexes have them.
_FIXED: Final = ("id", "user", "team", "started_at")


def write(database: Database, calls: Sequence[Call]) -> None:
    """Insert new calls and update unfinished ones; some of them, if it raises an error.

    A finished call never changes again, so calls may be written late and more than once.
    """
    with database.writing(autocommit=True) as connection:
        for start in range(0, len(calls), MOST_ROWS):
            rows = [_values(call) for call in calls[start : start + MOST_ROWS]]
            statement = _statement(len(rows), "?" if database.is_sqlite else "%s")
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(rows)))


def rename(connection: sa.Connection, user: str, *, to: str) -> None:
    """Give the calls of a user another identity."""
    connection.execute(sa.update(CALLS).where(CALLS.c.user == user).values(user=to))


@cache
def _statement(rows: int, value: str) -> str:
    """Return what writes so many rows, all values bound. SQLAlchemy's own takes twice as long, and
    a thread that writes one row at a time waits for Python's lock at each."""
    row, names = ", ".join([value] * len(NAMES)), '", "'.join(NAMES)
    changed = ", ".join([f'"{name}" = excluded."{name}"' for name in NAMES if name not in _FIXED])
    insert = f'INSERT INTO calls ("{names}") VALUES ({"), (".join([row] * rows)})'  # noqa: S608
    return f"{insert} ON CONFLICT (id) DO UPDATE SET {changed} WHERE calls.status = 'unfinished'"


def _values(call: Call) -> list[object]:
    """Return the row as both drivers take it. The instants of a connection are in UTC."""
    row, at = row_of(call), call.started_at.astimezone(UTC).replace(tzinfo=None)
    row["started_at"] = at.isoformat(" ", "microseconds")
    row["tags"] = row["tags"] and json.dumps(row["tags"])
    return [*map(row.__getitem__, NAMES)]


def as_json(call: Call) -> str:
    """Return the row in one line, for a log that replaces the database."""
    return json.dumps(row_of(call), default=_text)


def row_of(call: Call) -> dict[str, object]:
    """Return the call as a row. Strings of the caller are cut to the length of their column.

    For each limit that has admitted it, a line has its charge, what was left of it, the initial of
    its unit, and its name. A limit in shadow that would deny has no charge.
    """
    row: dict[str, Any] = {**call._asdict(), "limits": None}
    del row["usage"], row["decisions"]
    row |= {"user": call.user[:300], "endpoint": call.endpoint[:64], "model": call.model[:256]}
    row["tags"] = dict(call.tags) or None
    if call.status != "unfinished":
        row["limits"] = "\n".join(
            [
                f"{verdict[0].cost if verdict[1] else '-'} {verdict[2]} {limit.unit[0]} "
                f"{limit.name or limit.label}"
                for event in call.decisions
                for verdict in event.decision.verdicts
                if (limit := verdict[0].limit).visible and not verdict[0].meta
            ]
        )
    if (usage := call.usage) is None:
        return dict.fromkeys(NAMES) | row
    row |= {name: getattr(usage, name) for name in USAGE}
    row["web_searches"] = usage.tool_calls.get(WEB_SEARCH, 0)
    others = [f"{name}:{n}" for name, n in usage.tool_calls.items() if n and name != WEB_SEARCH]
    row["other_tool_calls"] = "+".join(others)[:128] or None
    row["tiers"] = "+".join(usage.tiers or ()) or None
    return row


def usage_of(row: Mapping[Any, Any]) -> Usage | None:
    """Return the usage in a row; None if unknown."""
    if row["input_tokens"] is None:
        return None
    tiers = tuple(row["tiers"].split("+")) if row["tiers"] else None
    tool_calls = {WEB_SEARCH: row["web_searches"]} if row["web_searches"] else {}
    parts = [part.partition(":") for part in (row["other_tool_calls"] or "").split("+")]
    tool_calls |= {name: int(count) for name, _, count in parts if name}
    tokens: dict[str, Any] = {name: row[name] or 0 for name in USAGE}
    return Usage(**tokens, tool_calls=tool_calls, tiers=tiers)


def limits_of(row: Mapping[Any, Any]) -> Iterator[dict[str, object]]:
    """Yield the limits that have admitted the call in a row, in dollars."""
    for line in (row["limits"] or "").splitlines():
        *units, initial, name = line.split(" ", 3)
        amounts: list[float] = [0 if text == "-" else int(text) for text in units]
        if initial == "u":
            amounts = [amount / MICRO for amount in amounts]
        verdict = "would deny" if units[0] == "-" else "admitted"
        named = {"limit": name, "verdict": verdict, "unit": UNITS.get(initial, initial)}
        yield {**named, "charged": amounts[0], "left": amounts[1]}


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
