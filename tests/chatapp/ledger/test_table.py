"""Rows of the ledger in a real database."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from chatapp.catalogue.usage import Usage
from chatapp.database import METADATA
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.reports import Reports
from chatapp.ledger.table import MOST_ROWS, row_of, usage_of
from tests.chatapp.ledger.calls import USAGE, begun, finished, renewed


def test_a_call_is_one_row_from_beginning_to_end(database: Database) -> None:
    """Every field reads back, the time to the microsecond."""
    call = begun()
    table.write(database, [call])
    (row,) = Reports(database).calls()
    assert dict(row) == row_of(call)
    assert usage_of(row) is None
    ended = finished(call, client_left=True, status="cut_off", estimated=True, attempts=3)
    table.write(database, [ended])
    (row,) = Reports(database).calls()
    assert dict(row) == row_of(ended)
    assert usage_of(row) == USAGE


def test_a_nul_is_no_error(database: Database) -> None:
    """PostgreSQL has none: there it becomes another character."""
    call = begun(model="a\0b")
    table.write(database, [call, begun()])
    assert Reports(database).call("\0", user=call.user) is None
    (row,) = (row for row in Reports(database).calls() if row["id"] == call.id)
    assert row["model"] == ("a\0b" if database.is_sqlite else "a\ufffdb")


def test_a_stream_is_one_row_as_often_as_it_is_renewed(database: Database) -> None:
    """Each renewal replaces the one before, and the end replaces them all."""
    call = begun()
    table.write(database, [call])
    for output_tokens in (10, 20):
        known = renewed(call, usage=Usage(900, output_tokens))
        table.write(database, [known])
        (row,) = Reports(database).calls()
        assert dict(row) == row_of(known)
    table.write(database, [finished(call)])
    table.write(database, [renewed(call)])
    (row,) = Reports(database).calls()
    assert dict(row) == row_of(finished(call))


def test_an_end_without_a_beginning_is_kept(database: Database) -> None:
    """As after an outage that lost the beginning."""
    ended = finished(begun())
    table.write(database, [ended])
    (row,) = Reports(database).calls()
    assert dict(row) == row_of(ended)


def test_what_is_finished_never_changes(database: Database) -> None:
    """A late beginning or a second end changes nothing."""
    call = begun()
    ended = finished(call)
    table.write(database, [ended])
    table.write(database, [call, ended._replace(cost_micro_usd=9)])
    (row,) = Reports(database).calls()
    assert dict(row) == row_of(ended)


def test_tool_calls_are_kept_by_name(database: Database) -> None:
    """Of web searches in a column of their own, which earlier versions know."""
    used = Usage(1, 2, tool_calls={"web_search": 3, "file_search": 1, "code_interpreter": 2})
    table.write(database, [finished(begun())._replace(usage=used)])
    (row,) = Reports(database).calls()
    assert row["web_searches"] == 3
    assert row["other_tool_calls"] == "file_search:1+code_interpreter:2"
    assert table.usage_of(row) == used


def test_one_batch_takes_many(database: Database) -> None:
    """Beginnings and ends together."""
    old = [begun() for _ in range(500)]
    table.write(database, old)
    table.write(database, [*map(finished, old), *(begun() for _ in range(500))])
    statuses = [row["status"] for row in Reports(database).calls()]
    assert sorted(statuses) == ["answered"] * 500 + ["unfinished"] * 500


def test_no_other_writer_waits_for_a_whole_batch(tmp_path: Path) -> None:
    """A thread among a thousand waits for Python's lock before each statement: if it held SQLite's
    meanwhile, other workers would find the ledger locked. So there are few, and each commits."""
    database, statements = Database(f"sqlite:///{tmp_path}/chat.db"), 0
    METADATA.create_all(database._create_engine())
    other = sqlite3.connect(tmp_path / "chat.db", timeout=0, isolation_level=None)

    def before_a_statement(statement: str) -> None:
        nonlocal statements
        if statement.startswith("INSERT"):
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
            statements += 1

    with database.reading() as connection:
        traced: Any = connection.connection.driver_connection
    traced.set_trace_callback(before_a_statement)
    table.write(database, [begun() for _ in range(2 * MOST_ROWS + 1)])
    assert statements == 3
    assert len(list(Reports(database).calls())) == 2 * MOST_ROWS + 1


def test_what_a_caller_chose_fits_or_is_cut(database: Database) -> None:
    """A call with a long or odd name is recorded."""
    odd = begun(user="user:" + "ü" * 1000, model="'; DROP TABLE calls; --" * 50, endpoint="e" * 99)
    table.write(database, [odd])
    (row,) = Reports(database).calls()
    assert row["user"] == odd.user[:300]
    assert row["model"] == odd.model[:256]


def test_a_row_for_the_log_has_everything() -> None:
    """One line of JSON with the whole row."""
    line = table.as_json(finished(begun()))
    assert "\n" not in line
    read = json.loads(line)
    assert read["cost_micro_usd"] == 1485
    assert read["started_at"] == "2026-11-25T12:00:00.123456+00:00"
    assert read["cached_input_tokens"] == 600
