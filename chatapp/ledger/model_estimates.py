"""How good estimates were, by model: a row of the ledger has what was expected and what was billed.

It is what `Accuracy` knows of one worker since its start, of all workers and as far back as there
are rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, select

from chatapp.database.connection import Database
from chatapp.ledger.table import CALLS


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one kind in all calls of a model: those that were estimated, those that were used,
    and how many of the calls used more than was estimated."""

    estimated: int
    used: int
    calls_over: int

    @property
    def ratio(self) -> float:
        """Used through estimated: below 1 too much was held, above 1 too little. An estimate of
        nothing is taken for one token."""
        return self.used / max(1, self.estimated)


@dataclass(frozen=True, slots=True)
class ModelEstimates:
    """The answered calls of one model whose usage its provider has told; there is at least one."""

    slug: str
    calls: int
    input: Tokens
    output: Tokens


def model_estimates(database: Database, *, since: datetime | None) -> Sequence[ModelEstimates]:
    """One entry a model, by its slug. Errors are SQLAlchemy's.

    Usages that were estimated themselves are left out, and failures: they tell nothing of a model.
    """
    query = select(
        CALLS.c.slug,
        func.count(),
        *_sums(CALLS.c.estimated_input_tokens, CALLS.c.input_tokens),
        *_sums(CALLS.c.estimated_output_tokens, CALLS.c.output_tokens),
    ).where(CALLS.c.status == "answered", CALLS.c.estimated.is_(False))
    if since is not None:
        query = query.where(CALLS.c.started_at >= since)
    with database.reading() as connection:
        rows = connection.execute(query.group_by(CALLS.c.slug).order_by(CALLS.c.slug)).all()
    # PostgreSQL sums whole numbers to decimals.
    return [
        ModelEstimates(
            row[0], int(row[1]), Tokens(*map(int, row[2:5])), Tokens(*map(int, row[5:8]))
        )
        for row in rows
    ]


def _sums(estimated: ColumnElement[int], used: ColumnElement[int]) -> tuple[Any, Any, Any]:
    over = case((used > estimated, 1), else_=0)
    return func.sum(estimated), func.sum(used), func.sum(over)
