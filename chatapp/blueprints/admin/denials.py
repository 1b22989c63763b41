"""Who was denied lately and why, and what limits in shadow and candidates would have denied, in the
words of `flask ratelimit why` and `shadow report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import bp, query, reported
from chatapp.blueprints.admin.chart import dollars
from chatapp.blueprints.admin.formats import choice, page_of, shown
from chatapp.operators.callers import shared_operators
from chatapp.services import current_services
from ratelimit_ext import OperatorError
from ratelimit_ext.operators import advice_text, explained, record_as_json

#: The time that is shown, in seconds and in words.
SPANS: Final = {
    "15m": (900, "15 minutes"),
    "1h": (3600, "hour"),
    "24h": (86_400, "24 hours"),
    "48h": (2 * 86_400, "48 hours"),
}
#: How many identities and limits the summary has, and how many limits the filter.
TOP: Final = 5
MOST_LIMITS: Final = 100
#: How many shadows their view has, and how many identities each.
MOST_SHADOWS: Final = 50
WORST: Final = 5


@bp.get("/denials")
def denials() -> ResponseReturnValue:
    span, identity, limit = choice("span", list(SPANS), "24h"), query("identity"), query("limit")
    identity = identity.strip()
    seconds, span_words = SPANS[span]
    records: list[Any] = []
    unkept = 0
    with reported() as problems:
        check_remembered()
        records, unkept = shared_operators().denials(*filter(None, [identity]), since=seconds)
    limits = [name for name, _ in _counted((record.limit, record) for record in records)]
    records = [record for record in records if limit in ("", record.limit)]
    return shown(
        "admin/denials.html",
        {"denials": map(record_as_json, reversed(records))},
        span=span,
        spans=[(word, word.replace("m", " min").replace("h", " h")) for word in SPANS],
        span_words=span_words,
        identity=identity,
        limit=limit,
        limits=sorted({*limits[:MOST_LIMITS], *filter(None, [limit])}),
        by_identity=_counted((record.identity, record) for record in records)[:TOP],
        by_limit=_counted((record.limit, record) for record in records)[:TOP],
        identities=len({record.identity for record in records}),
        total=sum(record.count for record in records),
        page=page_of(latest(records, len(records))),
        unkept=unkept,
        problem="".join(problems),
    )


def check_remembered() -> None:
    """Raise OperatorError if neither denials nor shadows are remembered."""
    if not current_services().settings.remember_denials:
        raise OperatorError(
            "not_remembered",
            "Denials and shadows are not remembered. Set CHATAPP_REMEMBER_DENIALS to true.",
        )


def latest(records: list[Any], most: int) -> list[tuple[Any, Any]]:
    """Return the latest denials, the last one first, each with its words."""
    return [(record, explained(record)) for record in records[: -most - 1 : -1]]


def _counted(named: Iterable[tuple[str, Any]]) -> list[tuple[str, int]]:
    """Return the denials by name, the most first."""
    counts: Counter[str] = Counter()
    for name, record in named:
        counts[name] += record.count
    return counts.most_common()


@bp.get("/shadow")
def shadow() -> ResponseReturnValue:
    report: list[dict[str, Any]] = []
    with reported() as problems:
        check_remembered()
        report = shared_operators().shadow_report()
    groups = groupby(report, key=lambda row: (row["limit"], row["amount"], row["enforced"]))
    shadows = [(shadow, list(results)) for shadow, results in groups]
    return shown(
        "admin/shadow.html",
        {"shadow": report},
        shadows=shadows[:MOST_SHADOWS],
        count=len(shadows),
        worst=WORST,
        advice=advice_text,
        amount=lambda units, unit: dollars(units) if unit == "usd" else f"{units:,}",
        problem="".join(problems),
    )
