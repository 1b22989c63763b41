"""A credit: dollars that a user, a key or a team gets back, as if they had spent less. The ledger
has it as a row with a negative cost, so reports and invoices have it, too."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import insert

from chatapp.accounts.store import Owner
from chatapp.ledger.call import Call, new_call_id
from chatapp.ledger.reports import CREDITED, MICRO
from chatapp.ledger.table import CALLS, row_of
from chatapp.operators import callers
from chatapp.operators.errors import unknown
from chatapp.operators.restoration import covers_call, limits_of
from chatapp.services import current_services
from chatapp.web.call_limits import window_start
from chatapp.web.current_request import team_identity, user_identity
from ratelimit_ext import OperatorError, RequestLimit

#: In place of a model in the ledger.
SLUG: Final = "credit"


def credit(owner: Owner, name: str, usd: Decimal, *, reason: str, by: str) -> str:
    """Give back dollars in all budgets of a user, a key or a team that count now, at most what was
    spent; of a key, also in those of its user, unless it acts for others. Sliding windows are left
    out: they count single calls, none of which has become cheaper. Returns the change in a
    sentence. OperatorError for an unknown owner, and if no budget counts anything."""
    services, operators = current_services(), callers.shared_operators()
    identity, user, calls = _found(owner, name)
    budgets = [
        (counted, each, _spent(each, user=user if counted == user else None, **calls))
        for counted, each in limits_of(dict.fromkeys(filter(None, [identity, user])))
        if counted in {identity, user}
        and each.verdict.charge.limit.unit == "usd"
        and each.verdict.charge.limit.traits.name != "sliding-window"
        and covers_call(each, SLUG)
    ]
    spent = [micro_usd for counted, _, micro_usd in budgets if counted == identity]
    units = int(usd * MICRO)
    most = min(units, max(spent, default=0))
    shown = callers.name_of(name)
    if not most:
        lacks = "No budget counts anything now" if spent else "There is no budget in dollars"
        raise OperatorError(
            "nothing_spent",
            f"{lacks} of {shown}. To let them spend more than a budget, use "
            "`flask ratelimit override set`.",
        )
    given = [(each, min(most, micro_usd)) for _, each, micro_usd in budgets]
    row = Call(
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user=user or identity,
        key_id=calls.get("key"),
        plan=callers.plan_of(user or identity, callers.plans_by_name()),
        endpoint="",
        model=SLUG,
        slug=SLUG,
        provider="",
        estimated_input_tokens=0,
        estimated_output_tokens=0,
        cost_micro_usd=-most,
        status=CREDITED,
        team=calls.get("team"),
    )
    with services.database.writing() as connection:
        connection.execute(insert(CALLS).values(row_of(row)))
        operators.give_back(given)  # an error undoes the row
    amount = f"{Decimal(most) / MICRO} usd"
    callers.note("credit", identity, amount=amount, reason=reason, by=by)
    labels = ", ".join(each.verdict.charge.limit.label for each, back in given if back)
    all_of_it = "" if most == units else ", which is all that was spent"
    return f"{shown} has a credit of {amount} in {labels}{all_of_it}."


def _found(owner: Owner, name: str) -> tuple[str, str | None, dict[str, str]]:
    """Return the identity of the owner, the user's if there is one, and what the calls of others
    than a user have in the ledger. OperatorError for an unknown one."""
    accounts = current_services().accounts
    if owner == "user":
        identity = callers.known_identity(name)
        assert identity is not None
        return identity, identity, {}
    if owner == "key" and (found := accounts.find(name)) is not None:
        key, owned_by = found
        # What such a key spent is its people's, and not its owner's.
        return name, None if key.people else user_identity(owned_by.name), {"key": name}
    if owner == "team" and accounts.team(name) is not None:
        return team_identity(name), None, {"team": name}
    raise unknown(owner, name)


def _spent(budget: RequestLimit, **calls: str | None) -> int:
    """Return what these calls cost in the present window, if they have ended, as far as the limit
    counts it: the estimates of others are not given back."""
    limit, remaining = budget.verdict.charge.limit, budget.verdict.remaining
    since = window_start(limit, budget.window.reset_time)
    spent = current_services().reports.settled_micro_usd(since=since, **calls)
    # An exhausted limit does not show by how much.
    return max(0, min(spent, limit.capacity - remaining) if remaining else spent)
