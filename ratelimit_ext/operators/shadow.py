"""What limits in shadow and candidates would have denied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import flask

from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.core.money import shown_dollars
from ratelimit_ext.records.shadow import Counts, Shadow
from ratelimit_ext.web.components import Components

#: How many identities a report names.
WORST: Final = 10


def shadow_results(
    enabled: Iterable[Components], app: flask.Flask, limit: str | None
) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    labels: dict[str, None] = {}
    for components in enabled:
        limits = [row.limit for row in components.inventory.all_rows(app)]
        tried = (rule for rule in limits if rule.is_shadow or rule.candidate is not None)
        labels.update(dict.fromkeys(rule.label for rule in tried))
        for period, hours in (("hour", 1), ("day", 24)):
            shadows = components.recorder.require_enabled().shadows.read(hours)
            labels.update(dict.fromkeys(shadow.limit for shadow in shadows))
            shown += [_result(shadow, counts, period) for shadow, counts in shadows.items()]
    if limit is not None and limit not in labels:
        names = ", ".join(labels) or "none"
        raise OperatorError(
            "not_in_shadow", f"No limit {limit!r} is in shadow or has a candidate; found: {names}."
        )
    matching = [result for result in shown if limit in (None, result["limit"])]
    return sorted(matching, key=lambda result: (result["limit"], result["amount"]))


def _result(shadow: Shadow, counts: Counts, period: str) -> dict[str, Any]:
    enough = counts.enough() if shadow.is_window else None
    is_above = enough is not None and not shadow.enforced and enough > shadow.capacity
    return {
        "limit": shadow.limit,
        "amount": shadow.amount,
        "enforced": shadow.enforced or None,
        "period": period,
        "unit": shadow.unit,
        "requests": counts.requests,
        "denied": counts.denied,
        "identities": len(counts.used),
        "identities_denied": len(counts.by_identity),
        "is_estimate": counts.is_rough,
        "worst": [
            {"identity": identity, "denied": denied}
            for identity, denied in counts.by_identity.most_common(WORST)
        ],
        "enough_for_99_percent": None if is_above else enough,
        "source": "usage" if enough is not None and not is_above else "suggest",
    }


def advice_text(result: Mapping[str, Any]) -> str:
    """Return the smallest amount that is enough for nearly all, by the result of a day."""
    enough = result["enough_for_99_percent"]
    if enough is None:
        return (
            "what was counted does not show which amount is enough for 99 %; `flask ratelimit "
            "suggest` proposes one from traffic or the ledger."
        )
    shown = f"{shown_dollars(enough)} usd" if result["unit"] == "usd" else f"{enough}"
    number = result["identities"]
    callers = f"{number} caller{'s' * (number != 1)}"
    return f"At {shown}, 99 % of {callers} would have had no refusal in the last day."
