"""The ledger's table: the row of a call, and the statement that writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    String,
    Table,
    Text,
    update,
)

from chatapp.catalogue.usage import Usage
from chatapp.database import METADATA, Instant
from chatapp.database.connection import Database
from chatapp.ledger.call import Call

SUMMED: Final = ("started_at", "status", "input_tokens", "output_tokens", "cost_micro_usd")
CALLS: Final = Table(
    "calls",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("started_at", Instant, nullable=False),
    Column("user", String(300), nullable=False),
    Column("key_id", String(16)),
    Column("plan", String(64), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("slug", String(100), nullable=False),
    Column("provider", String(32), nullable=False),
    Column("estimated_input_tokens", BigInteger, nullable=False),
    Column("estimated_output_tokens", BigInteger, nullable=False),
    # None while unknown.
    Column("input_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    Column("cache_write_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("cache_write_1h_tokens", BigInteger),
    Column("web_searches", BigInteger),
    # Uses of the provider's other tools, as "file_search:2+code_interpreter:1".
    Column("other_tool_calls", String(128)),
    Column("tiers", String(64)),
    Column("estimated", Boolean, nullable=False),
    Column("cost_micro_usd", BigInteger, nullable=False),
    Column("status", String(32), nullable=False),
    Column("client_left", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="1"),
    Column("team", String(64)),
    Column("tags", JSON(none_as_null=True)),
    Column("basis", String(16)),
    Column("streamed", Boolean),
    Column("limits_ms", Float),
    Column("waited_ms", Integer),
    Column("first_byte_ms", Integer),
    Column("total_ms", BigInteger),
    Column("limits", Text),
    # With what is summed: a million calls are read from it four times as fast as they are sorted.
    *[Index(f"ix_calls_{owner}_started_at", owner, *SUMMED) for owner in ("user", "team")],
    Index("ix_calls_started_at", "started_at"),
)
#: The units of limits, by their initials.
UNITS: Final = {"r": "requests", "t": "tokens", "i": "input_tokens", "o": "output_tokens"}
UNITS.update(c="calls", u="usd")
MICRO: Final = 1_000_000
#: The columns that a Usage has as they are.
USAGE: Final = tuple(name for name in Usage._fields if name.endswith("_tokens"))
WEB_SEARCH: Final = "web_search"
#: The columns that no further write of a call changes, because indexes have them.
_FIXED: Final = ("id", "user", "team", "started_at")


def write(database: Database, calls: Sequence[Call]) -> None:
    """Insert new calls and update unfinished ones; some of them, if it raises an error.

    A finished call never changes again, so calls may be written late and more than once.
    """
    with database.writing(row_by_row=True) as connection:
        connection.execute(_statement(database.insert), [row_of(call) for call in calls])


def rename(connection: Connection, user: str, *, to: str) -> None:
    """Give the calls of a user another identity."""
    connection.execute(update(CALLS).where(CALLS.c.user == user).values(user=to))


@cache
def _statement(insert_into: Callable[[Table], Any]) -> Any:
    insert = insert_into(CALLS)
    return insert.on_conflict_do_update(
        index_elements=[CALLS.c.id],
        set_={c.name: insert.excluded[c.name] for c in CALLS.c if c.name not in _FIXED},
        where=CALLS.c.status == "unfinished",
    )


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
        return dict.fromkeys(CALLS.c.keys()) | row
    row |= {name: getattr(usage, name) for name in USAGE}
    row["web_searches"] = usage.tool_calls.get(WEB_SEARCH, 0)
    row["other_tool_calls"] = _other_tools(usage)
    row["tiers"] = "+".join(usage.tiers or ()) or None
    return row


def usage_of(row: Mapping[Any, Any]) -> Usage | None:
    """Return the usage in a row; None if unknown."""
    if row["input_tokens"] is None:
        return None
    tiers = tuple(row["tiers"].split("+")) if row["tiers"] else None
    tool_calls = {WEB_SEARCH: row["web_searches"]} if row["web_searches"] else {}
    for part in (row["other_tool_calls"] or "").split("+"):
        name, _, count = part.partition(":")
        if name:
            tool_calls[name] = int(count)
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


def _other_tools(usage: Usage) -> str | None:
    calls = (f"{name}:{n}" for name, n in usage.tool_calls.items() if n and name != WEB_SEARCH)
    return "+".join(calls)[:128] or None


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
