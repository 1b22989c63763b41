"""A credit: dollars that a user gets back, as if they had spent less. The ledger has it as a row
with a negative cost, so reports and invoices have it, too."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import insert

from chatapp.ledger.call import Call, new_call_id
from chatapp.ledger.reports import CREDITED, MICRO
from chatapp.ledger.table import CALLS, row_of
from chatapp.operators import callers
from chatapp.operators.restoration import covers_call, limits_of
from chatapp.services import current_services
from chatapp.web.call_limits import window_start
from ratelimit_ext import OperatorError, RequestLimit

#: In place of a model in the ledger.
SLUG: Final = "credit"


def credit(user: str, usd: Decimal, *, reason: str, by: str) -> str:
    """Give back dollars in all budgets of the user that count now, at most what was spent; returns
    the change in a sentence. OperatorError for an unknown user, and if no budget counts anything.
    """
    identity, units = callers.known_identity(user), int(usd * MICRO)
    assert identity is not None
    services, operators = current_services(), callers.shared_operators()
    budgets = [
        each
        for counted, each in limits_of([identity])
        if counted == identity
        and each.verdict.charge.limit.unit == "usd"
        and covers_call(each, SLUG)
    ]
    given = [(each, min(units, _spent(identity, each))) for each in budgets]
    most = max((back for _, back in given), default=0)
    if not most:
        lacks = "No budget counts anything now" if budgets else "There is no budget in dollars"
        raise OperatorError(
            "nothing_spent",
            f"{lacks} of {callers.name_of(identity)}. To let them spend more than a budget, use "
            "`flask ratelimit override set`.",
        )
    row = Call(
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user=identity,
        key_id=None,
        plan=callers.plan_of(identity, callers.plans_by_name()),
        endpoint="",
        model=SLUG,
        slug=SLUG,
        provider="",
        estimated_input_tokens=0,
        estimated_output_tokens=0,
        cost_micro_usd=-most,
        status=CREDITED,
    )
    with services.database.writing() as connection:
        connection.execute(insert(CALLS).values(row_of(row)))
        operators.give_back(given)  # an error undoes the row
    amount = f"{Decimal(most) / MICRO} usd"
    callers.note("credit", identity, amount=amount, reason=reason, by=by)
    labels = ", ".join(each.verdict.charge.limit.label for each, back in given if back)
    all_of_it = "" if most == units else ", which is all that was spent"
    return f"{callers.name_of(identity)} has a credit of {amount} in {labels}{all_of_it}."


def _spent(identity: str, budget: RequestLimit) -> int:
    """Return what calls that have ended cost in the present window, as far as the limit counts it:
    the estimates of others are not given back."""
    limit, remaining = budget.verdict.charge.limit, budget.verdict.remaining
    since = window_start(limit, budget.window.reset_time)
    spent = current_services().reports.settled_micro_usd(identity, since)
    # An exhausted limit does not show by how much.
    return max(0, min(spent, limit.capacity - remaining) if remaining else spent)
