"""What is being decided now: the decisions of each limit by the minute, and the latest denials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import bp, reported
from chatapp.blueprints.admin.chart import Chart, decisions
from chatapp.blueprints.admin.denials import check_remembered, latest
from chatapp.blueprints.admin.formats import shown
from chatapp.operators.callers import shared_operators

MINUTES: Final = 60
#: The minutes that are "now": the current one, which is not over, and the one before.
NOW: Final = 2
#: How many limits and denials the view has; and of how many stored entries it looks for them.
MOST_LIMITS: Final = 30
MOST_DENIALS: Final = 10
MOST_ENTRIES: Final = 200
#: The outcomes, by the names that the view gives them.
OUTCOMES: Final = {
    "allowed": "admitted",
    "denied": "denied",
    "shadow": "would be denied",
    "degraded": "without the storage",
}


@bp.get("/live")
def live() -> ResponseReturnValue:
    """Return the page. Its script requests it again every few seconds."""
    counted: Mapping[int, Mapping[str, Counter[str]]] = {}
    denied: list[Any] = []
    with reported() as problems:
        check_remembered()
        operators = shared_operators()
        denied = operators.denials(since=MINUTES * 60, most=MOST_ENTRIES).records
        counted = operators.counters(MINUTES)
    minutes = {minute: f"{datetime.fromtimestamp(minute * 60, UTC):%H:%M}" for minute in counted}
    names = {name for limits in counted.values() for name in limits}
    rows = [_row(name, counted, minutes) for name in names]
    rows.sort(key=lambda row: (-row["hour"]["denied"], -row["hour"]["allowed"], row["name"]))
    everything = next((row for row in rows if not row["name"]), None)
    limits = [row for row in rows if row["name"]]
    return shown(
        "admin/live.html",
        {"limits": map(_record, limits)},
        chart=decisions(everything["parts"], list(minutes.values())) if everything else None,
        requests=everything,
        limits=limits[:MOST_LIMITS],
        count=len(limits),
        rows=latest(denied, MOST_DENIALS),
        at=f"{datetime.now(UTC):%H:%M:%S}",
        since=[*minutes.values()][-NOW] if minutes else "",
        problem="".join(problems),
    )


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a limit decided in the hour, and in the last two minutes of it."""
    now = {f"{outcome}_now": row["now"][outcome] for outcome in ("allowed", "denied")}
    return {"limit": row["name"], **now, **{outcome: row["hour"][outcome] for outcome in OUTCOMES}}


def _row(
    name: str, counted: Mapping[int, Mapping[str, Counter[str]]], minutes: Mapping[int, str]
) -> dict[str, Any]:
    by_minute = [(minute, limits.get(name, Counter())) for minute, limits in counted.items()]
    now: Counter[str] = sum((counts for _, counts in by_minute[-NOW:]), Counter())
    hour: Counter[str] = sum((counts for _, counts in by_minute), Counter())
    parts = {
        OUTCOMES[outcome]: {minutes[minute]: counts[outcome] for minute, counts in by_minute}
        for outcome in ("allowed", "denied")
    }
    title = f"{name}, by the minute: {hour['allowed']:,} admitted, {hour['denied']:,} denied"
    return {
        "name": name,
        "now": now,
        "hour": hour,
        "parts": parts,
        "bars": Chart(title, parts, list(minutes.values())),
    }
