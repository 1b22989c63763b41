"""What limits in shadow and candidates would have denied, as `flask ratelimit shadow report`."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final

from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import bp, reported
from chatapp.blueprints.admin.chart import dollars
from chatapp.blueprints.admin.denials import check_remembered
from chatapp.blueprints.admin.formats import shown
from chatapp.operators.callers import shared_operators
from ratelimit_ext.operators import advice_text

#: How many shadows the view has, and how many identities each.
MOST_SHADOWS: Final = 50
WORST: Final = 5


@bp.get("/shadow")
def shadow() -> ResponseReturnValue:
    found: list[dict[str, Any]] = []
    with reported() as problems:
        check_remembered()
        found = shared_operators().shadow_report()
    groups = groupby(found, key=lambda each: (each["limit"], each["amount"], each["enforced"]))
    shadows = [(shadow, list(results)) for shadow, results in groups]
    return shown(
        "admin/shadow.html",
        {"shadow": found},
        shadows=shadows[:MOST_SHADOWS],
        count=len(shadows),
        worst=WORST,
        advice=_advice,
        amount=_amount,
        problem="".join(problems),
    )


def _advice(result: dict[str, Any]) -> str:
    text = advice_text(result).replace("`", "")
    return text[0].upper() + text[1:]


def _amount(units: int, unit: str) -> str:
    return dollars(units) if unit == "usd" else f"{units:,}"
