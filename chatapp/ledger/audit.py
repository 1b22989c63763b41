"""Whether the ledger can be believed: every call finished, every sum what its tokens cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from chatapp.ledger.table import usage_of
from chatapp.providers import Usage


class Prices(Protocol):
    """What a check asks of the catalogue."""

    def price(self, slug: str, usage: Usage) -> int: ...


@dataclass(slots=True)
class Findings:
    """What a check found. ``running`` are the users of calls under way, ``spent_micro_usd`` is by
    user and month."""

    calls: int = 0
    running: list[str] = field(default_factory=list)
    older_than_the_prices: int = 0
    problems: list[str] = field(default_factory=list)
    spent_micro_usd: dict[tuple[str, str], int] = field(default_factory=dict)


def check(
    rows: Iterable[Mapping[Any, Any]],
    prices: Prices,
    *,
    now: datetime,
    lease: timedelta,
    priced_since: datetime,
) -> Findings:
    """Look at every call.

    One that is unfinished and older than ``lease`` lost its worker: what it really used is not
    known here, but what a stream had used when it was heard of last. A cost that is not the price
    of its tokens is a mistake, in a call since the prices hold: since ``priced_since``.
    """
    found = Findings()
    for row in rows:
        found.calls += 1
        month = (row["user"], f"{row['started_at']:%Y-%m}")
        found.spent_micro_usd[month] = found.spent_micro_usd.get(month, 0) + row["cost_micro_usd"]
        if row["status"] == "unfinished":
            if now - row["started_at"] <= lease:
                found.running.append(row["user"])
            else:
                known = "an estimate" if usage_of(row) is None else "what it was known to have used"
                found.problems.append(
                    f"{row['id']} of {row['user']} began at {row['started_at']:%Y-%m-%d %H:%M:%S} "
                    f"and is unfinished: its worker died; its cost is {known}"
                )
        if row["started_at"] < priced_since:
            found.older_than_the_prices += 1
            continue
        expected = _expected(row, prices)
        if row["cost_micro_usd"] != expected:
            found.problems.append(
                f"{row['id']} of {row['user']} cost {row['cost_micro_usd']} micro-dollars, and its "
                f"tokens are worth {expected}"
            )
    return found


def _expected(row: Mapping[Any, Any], prices: Prices) -> int:
    usage = usage_of(row)
    if usage is None and row["status"] == "unfinished":
        usage = Usage(row["estimated_input_tokens"], row["estimated_output_tokens"])
    return 0 if usage is None else prices.price(row["slug"], usage)
