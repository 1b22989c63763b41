"""A credit: dollars that a user, a key or a team gets back, as if they had spent less. The ledger
has it as a row with a negative cost, so reports and invoices have it, too.

A call counts for its user, its key and its team, but each of its dollars is given back once,
whichever of them gets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import insert

from chatapp.accounts import ADDRESS, USER
from chatapp.accounts.store import Owner
from chatapp.ledger.call import Call, new_call_id
from chatapp.ledger.reports import CREDITED, MICRO, month_start
from chatapp.ledger.table import CALLS, row_of
from chatapp.operators import callers
from chatapp.operators.errors import unknown
from chatapp.operators.restoration import covers_call, limits_of
from chatapp.services import current_services
from chatapp.web.call_limits import window_s
from chatapp.web.current_request import team_identity, user_identity
from ratelimit_ext import OperatorError, RequestLimit

#: In place of a model in the ledger.
SLUG: Final = "credit"

#: The user, the key and the team of calls; None: any.
Subject = tuple[str | None, str | None, str | None]


def credit(owner: Owner, name: str, usd: Decimal, *, reason: str, by: str) -> str:
    """Give back dollars in all budgets of a user, a key or a team that count now, at most what was
    spent and not given back before; of a key, also in those of its user, unless it acts for others.
    Sliding windows are left out: they count single calls, none of which has become cheaper. Returns
    the change in a sentence. OperatorError for an unknown owner, and if nothing can be given."""
    services, operators = current_services(), callers.shared_operators()
    identity, (user, key, team) = _identity_of(owner, name)
    units, shown = int(usd * MICRO), callers.name_of(name)
    # One after the other, but outside of a transaction: to sum a month's calls takes seconds.
    with services.database.alone("credits"):
        budgets = [
            (counted, budget, _spent(budget, ahead_s, (user, key, team)))
            for counted, budget, ahead_s in limits_of(dict.fromkeys(filter(None, [identity, user])))
            if counted in {identity, user}
            and budget.verdict.charge.limit.unit == "usd"
            and budget.verdict.charge.limit.traits.name != "sliding-window"
            and covers_call(budget, SLUG)
        ]
        spent = [micro_usd for counted, _, micro_usd in budgets if counted == identity]
        most = min(units, max(spent, default=0))
        if not most:
            lacks = "Nothing is spent in the budgets" if spent else "There is no budget in dollars"
            settled = services.reports.settled_micro_usd(user, month_start(), team=team, key=key)
            if spent and settled > 0:
                lacks = "Earlier credits to a user, key or team have given back all spending"
            raise OperatorError(
                "nothing_spent",
                f"{lacks} of {shown}. To let them spend more than a budget, set an amount that "
                "ends, as `flask ratelimit override set` does.",
            )
        refunds = [(budget, min(most, micro_usd)) for _, budget, micro_usd in budgets]
        row = Call(
            id=new_call_id(),
            started_at=datetime.now(UTC),
            user=user or identity,
            key_id=key,
            plan=callers.ChatCallers().plan(user or identity),
            endpoint="",
            model=SLUG,
            slug=SLUG,
            provider="",
            estimated_input_tokens=0,
            estimated_output_tokens=0,
            cost_micro_usd=-most,
            status=CREDITED,
            team=team,
        )
        with services.database.writing() as connection:
            connection.execute(insert(CALLS).values(row_of(row)))
            operators.give_back(refunds)  # an error undoes the row
    amount = f"{Decimal(most) / MICRO} usd"
    callers.note("credit", identity, amount=amount, reason=reason, by=by)
    labels = ", ".join(budget.verdict.charge.limit.label for budget, back in refunds if back)
    all_of_it = "" if most == units else ", which is all that was spent"
    return f"{shown} has a credit of {amount} in {labels}{all_of_it}."


def _identity_of(owner: Owner, name: str) -> tuple[str, Subject]:
    """Return the identity of the owner, and whose calls it may be given back. OperatorError for an
    unknown one."""
    accounts = current_services().accounts
    if owner == "user":
        identity = callers.known_identity(name)
        assert identity is not None
        return identity, (identity, None, None)
    if owner == "key" and (row := accounts.find(name)) is not None:
        key, owned_by = row
        # What such a key spent is its people's, and not its owner's.
        return name, (None if key.people else user_identity(owned_by.name), name, None)
    if owner == "team" and accounts.team(name) is not None:
        return team_identity(name), (None, None, name)
    raise unknown(owner, name)


def _spent(budget: RequestLimit, ahead_s: float, subject: Subject) -> int:
    """Return what the subject's calls cost in the present window, if they have ended, as far as the
    limit counts it and no credit has given it back. This process's clock, which the ledger has, is
    ``ahead_s`` ahead of the one that the window follows."""
    limit, remaining = budget.verdict.charge.limit, budget.verdict.remaining
    since = datetime.fromtimestamp(window_s(limit, budget.window.reset_time)[0] + ahead_s, UTC)
    costs, refunds = Counter[Subject](), Counter[Subject]()
    for user, key, team, is_credit, micro_usd in current_services().reports.by_caller(since):
        if is_credit:  # a team and a key for others have no user
            is_user = user.startswith((USER, ADDRESS))
            refunds[(user if is_user else None, key, team)] -= micro_usd
        else:
            costs[(user, key, team)] += micro_usd
    spent = _left(costs, list(refunds.items()), subject)
    # An exhausted limit does not show by how much.
    return max(0, min(spent, limit.capacity - remaining) if remaining else spent)


def _left(costs: Counter[Subject], refunds: Sequence[tuple[Subject, int]], subject: Subject) -> int:
    """Return how much of the subject's calls no credit has given back, if each credit falls on
    other calls of its own subject as far as possible: a maximal flow from credits to calls.

    >>> costs: Counter[Subject] = Counter({("ann", "k1", None): 3, ("ann", "k2", None): 3})
    >>> ann, k1 = ("ann", None, None), ("ann", "k1", None)
    >>> _left(costs, [(ann, 3)], k1), _left(costs, [(ann, 4)], k1), _left(costs, [(k1, 3)], ann)
    (3, 2, 3)
    """
    owners = [*(of for of, _ in refunds), subject]
    # By the numbers of the owners that cover a call: callers are thousands, such groups are few.
    free, placed = Counter[frozenset[int]](), Counter[tuple[int, frozenset[int]]]()
    for call, micro_usd in costs.items():
        free[frozenset(n for n, of in enumerate(owners) if _covers(of, call))] += micro_usd

    def place(number: int, amount: int, tried: set[int | frozenset[int]]) -> int:
        """Place up to that amount of a credit, and move others for it; returns how much it is."""
        tried.add(number)
        for calls in free:
            if number not in calls or calls in tried:
                continue
            tried.add(calls)
            taken = min(amount, free[calls])
            for other in () if taken else calls:
                moved = min(amount, placed[other, calls])
                if moved and other not in tried and (taken := place(other, moved, tried)):
                    placed[other, calls] -= taken
                    free[calls] += taken
                    break
            if taken:
                free[calls] -= taken
                placed[number, calls] += taken
                return taken
        return 0

    total = 0
    for number, amount in enumerate([*(micro_usd for _, micro_usd in refunds), costs.total()]):
        total = 0
        while total < amount and (more := place(number, amount - total, set())):
            total += more
    return total


def _covers(subject: Subject, call: Subject) -> bool:
    return all(want in (None, has) for want, has in zip(subject, call, strict=True))
