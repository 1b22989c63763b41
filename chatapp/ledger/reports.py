"""Reading the ledger: what was spent, by whom, and whether its sums are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, func, or_, select

from chatapp.database.connection import Database
from chatapp.ledger.call import Status
from chatapp.ledger.table import CALLS

COST: Final = func.coalesce(func.sum(CALLS.c.cost_micro_usd), 0)
UNFINISHED: Final[Status] = "unfinished"
# Rows that are fetched at once when all of them are looked at.
PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class DayTotal:
    """What one user did in one day, by UTC."""

    day: str
    user: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost_micro_usd: int


class Reports:
    """Questions to the ledger. Its errors are SQLAlchemy's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def spent_micro_usd(self, user: str, since: datetime) -> int:
        """What that user's calls have cost since then; calls under way by what is known of them."""
        return self._sum(_narrowed(select(COST), user=user, since=since))

    def settled_micro_usd(self, user: str, since: datetime) -> int:
        """The same of the calls that limits are charged for, once nothing is under way.

        A call whose worker died counts as far as its stream had come when its lease was last
        renewed: that much was recorded as spent, and only the rest of the estimate went back.
        """
        known = or_(CALLS.c.status != UNFINISHED, CALLS.c.input_tokens.is_not(None))
        return self._sum(_narrowed(select(COST), user=user, since=since).where(known))

    def totals(self, *, user: str | None, since: datetime | None) -> Sequence[DayTotal]:
        """Sums by day and user, the newest day first."""
        day = func.date(CALLS.c.started_at)
        sums = (
            func.count(),
            func.coalesce(func.sum(CALLS.c.input_tokens), 0),
            func.coalesce(func.sum(CALLS.c.output_tokens), 0),
            func.sum(CALLS.c.cost_micro_usd),
        )
        query = _narrowed(select(day, CALLS.c.user, *sums), user=user, since=since)
        query = query.group_by(day, CALLS.c.user).order_by(day.desc(), CALLS.c.user)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [DayTotal(str(row[0]), row[1], *map(int, row[2:])) for row in rows]

    def _sum(self, query: Select[Any]) -> int:
        with self._database.reading() as connection:
            return int(connection.scalar(query) or 0)

    def calls(
        self, *, user: str | None = None, since: datetime | None = None
    ) -> Iterator[Mapping[Any, Any]]:
        """Every call, the oldest first."""
        query = _narrowed(select(CALLS), user=user, since=since).order_by(CALLS.c.started_at)
        with self._database.reading() as connection:
            yield from connection.execution_options(yield_per=PAGE).execute(query).mappings()


def _narrowed(query: Select[Any], *, user: str | None, since: datetime | None) -> Select[Any]:
    if user is not None:
        query = query.where(CALLS.c.user == user)
    if since is not None:
        query = query.where(CALLS.c.started_at >= since)
    return query
