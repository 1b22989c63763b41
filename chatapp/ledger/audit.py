"""An audit of the ledger: every call has finished, and costs the price of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from chatapp.catalogue import Catalogue
from chatapp.catalogue.usage import Usage
from chatapp.ledger.table import usage_of


@dataclass(slots=True)
class Findings:
    """The result of an audit. ``running`` are the users of running calls, and ``running_teams`` the
    teams; ``credited`` are users with a credit; ``unpriced`` counts calls from before the current
    prices; ``spent_micro_usd`` is by user and month."""

    calls: int = 0
    running: list[str] = field(default_factory=list)
    running_teams: set[str] = field(default_factory=set)
    credited: set[str] = field(default_factory=set)
    unpriced: int = 0
    problems: list[str] = field(default_factory=list)
    spent_micro_usd: dict[tuple[str, str], int] = field(default_factory=dict)


def audit(
    rows: Iterable[Mapping[Any, Any]],
    catalogue: Catalogue,
    *,
    now: datetime,
    lease: timedelta,
    priced_since: datetime,
) -> Findings:
    """Check every call.

    An unfinished call older than ``lease`` lost its worker: its real usage is unknown, except for
    what its stream had used when the lease was last renewed. From ``priced_since`` on, a cost must
    be the price of the tokens.
    """
    result = Findings()
    for row in rows:
        month = (row["user"], f"{row['started_at']:%Y-%m}")
        result.spent_micro_usd[month] = result.spent_micro_usd.get(month, 0) + row["cost_micro_usd"]
        if row["status"] == "credited":
            result.credited.add(row["user"])
            continue
        result.calls += 1
        if row["status"] == "unfinished":
            if now - row["started_at"] <= lease:
                result.running.append(row["user"])
                result.running_teams.add(row["team"] or "")
            else:
                cost_is = "an estimate" if usage_of(row) is None else "its last known usage"
                result.problems.append(
                    f"{row['id']} of {row['user']} began at {row['started_at']:%Y-%m-%d %H:%M:%S} "
                    f"and is unfinished: its worker died; its cost is {cost_is}"
                )
        if row["started_at"] < priced_since:
            result.unpriced += 1
            continue
        usage = usage_of(row)
        is_open = usage is None and row["status"] == "unfinished"
        if is_open:
            usage = Usage(row["estimated_input_tokens"], row["estimated_output_tokens"])
        expected = 0 if usage is None else catalogue.price(row["slug"], usage)
        # The cached tokens and tiers of an estimate are not stored.
        is_estimated = is_open and row["cost_micro_usd"] > 0
        if row["cost_micro_usd"] != expected and not is_estimated:
            result.problems.append(
                f"{row['id']} of {row['user']} cost {row['cost_micro_usd']} micro-dollars, but the "
                f"price of its tokens is {expected}"
            )
    return result
