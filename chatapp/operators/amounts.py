"""Amounts of single users, keys and teams in place of the policy's.

An amount without an end is a part of the account, in the database. One with an end is an override,
in the limits' storage, and comes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from chatapp.accounts import TEAM, USER
from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import ApiKey, Owner, User
from chatapp.operators import callers
from chatapp.operators.change_log import DatabaseChangeLog
from chatapp.operators.errors import unknown
from chatapp.services import current_services
from chatapp.web.current_request import team_identity, user_identity
from ratelimit_ext import (
    ConfigurationError,
    OperatorError,
    Override,
    PolicyLimit,
    StorageUnavailable,
)
from ratelimit_ext.operators import State, span_text, time_text

#: The identity that the limits of an owner count, by the policy's name.
COUNTED: Final[Mapping[Owner, str]] = {"user": "user", "key": "api_key", "team": "team"}
OWNERS: Final = tuple(COUNTED)
#: What the identity of an owner in limits has before the name.
PREFIXES: Final[Mapping[Owner, str]] = {"user": USER, "key": "", "team": TEAM}


def known_limits(owner: Owner, *, plan: str | None) -> Mapping[str, PolicyLimit]:
    """Return the limits of the plan whose amounts can differ for such an owner, by their names."""
    services = current_services()
    plan = None if plan is None else services.known_plan(plan)
    return services.policy.adjustable(key=COUNTED[owner], plan=plan) if services.policy else {}


def checked(
    owner: Owner, amounts: Iterable[tuple[str, str]], *, plan: str | None
) -> dict[str, str]:
    """Return the amounts by name. OperatorError for an unknown name, or another unit or period."""
    limits = known_limits(owner, plan=plan)
    for name, amount in amounts:
        if name not in limits:
            listed = ", ".join(f"{n} ({limit.text})" for n, limit in limits.items()) or "none"
            near = get_close_matches(name, limits, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            where = "The policy" if plan is None else f"The plan {plan}"
            raise OperatorError(
                "unknown_limit",
                f"{where} has no limit {name!r} that counts {owner}s; it has: {listed}.{meant}",
            )
        try:
            limits[name].check_amount(amount)
        except ConfigurationError as error:
            raise OperatorError("invalid_amount", f"{name}: {error}") from None
    return dict(amounts)


class OwnersAmounts:
    """The amounts of owners, with the overrides that apply now as far as they can be read."""

    def __init__(self) -> None:
        self._overrides: list[Override] = []
        with contextlib.suppress(OperatorError, StorageUnavailable):
            self._overrides = callers.shared_operators().overrides()

    def of(
        self, owner: Owner, name: str, limits: Mapping[str, str] | None, *, with_ends: bool = True
    ) -> dict[str, str]:
        """Return an owner's amounts by the names of limits, each with its end if it has one."""
        overrides = self.current(owner, name)
        shown = {o.limit: _shown(o.amount, o.until) if with_ends else o.amount for o in overrides}
        return {**(limits or {}), **shown}

    def current(self, owner: Owner, name: str) -> list[Override]:
        identity = identity_of(owner, name)
        return [override for override in self._overrides if override.identity == identity]


def set_amount(
    owner: Owner, name: str, limit: str, amount: str, *, until: float | None, reason: str, by: str
) -> str:
    """Give the owner a :func:`checked` amount, for good or until then; returns the change in a
    sentence."""
    identity = identity_of(owner, name)
    if until is None:
        if current_services().accounts.set_amount(owner, name, limit, amount):
            callers.note("amount", identity, limit=limit, amount=amount, reason=reason, by=by)
    else:
        override(limit, identity, amount, until=until, reason=reason, by=by)
    return given_text(name, limit, amount, until)


def given_text(name: str, limit: str, amount: str, until: float | None) -> str:
    return f"{name} has {limit}={_shown(amount, until)}; all workers apply it within 5 s."


def override(
    limit: str,
    identity: str,
    amount: str,
    *,
    until: float | None,
    reason: str,
    by: str,
    as_written: bool = False,
) -> Override:
    """Give an identity an amount of a limit until then; ``as_written``: see `Operators.override`.
    The same one a second time changes nothing."""
    operators = callers.shared_operators()
    names = {identity, callers.identity_of(identity)} if as_written else {identity}
    for present in operators.overrides():
        is_same = (present.limit, present.amount, present.until) == (limit, amount, until)
        if is_same and present.identity in names:
            return present
    return operators.override(
        limit, identity, amount, until=until, reason=reason, by=by, as_written=as_written
    )


def of_team(team: str | None) -> str:
    """Return how a team's administrator is marked in the log of changes."""
    return "" if team is None else f" of the team {team}"


def fit(before: Mapping[str, User], *, by: str) -> None:
    """Remove what users and their keys had by a plan or a team that they have left. ``before`` has
    the users as they were, by their names.

    Of a plan, that is an amount below the old plan's that is more than the new one's. Of a team, it
    is an amount or an override that the team's administrators gave.
    """
    accounts = current_services().accounts
    places = {name: (user.plan, user.team_name) for name, user in before.items()}
    users = [user for user in accounts.users() if user.name in before]
    moved = {u.name: u for u in users if (u.plan, u.team_name) != places[u.name]}
    if not moved:
        return
    owners: list[tuple[Owner, str, User | ApiKey]] = [("user", u.name, u) for u in moved.values()]
    owners += [("key", k.public_id, k) for k in accounts.all_keys() if k.user in moved]
    overrides = OwnersAmounts()
    givers: dict[tuple[str, str], str] = {}
    for entry in DatabaseChangeLog(current_services().database).read(0.0):
        if entry.action == "amount":
            givers.setdefault((entry.identity, entry.limit), entry.by)  # the newest one
    for owner, name, row in owners:
        user = row if isinstance(row, User) else moved[row.user]
        limits, id_, (plan, team) = row.limits or {}, identity_of(owner, name), places[user.name]
        theirs = () if team in {None, user.team_name} else (f"{of_team(team)})",)
        why = f"given in the team {team}"
        reasons = {n: why for n in limits if givers.get((id_, n), "").endswith(theirs)}
        above = _above(owner, limits, plan, user.plan)
        reasons |= dict.fromkeys(above, f"the plan {user.plan} has less")
        for limit, reason in sorted(reasons.items()):
            accounts.set_amount(owner, name, limit, None)
            callers.note("clear-amount", id_, limit=limit, reason=reason, by=by)
        for override in overrides.current(owner, name):
            if override.by.endswith(theirs):
                callers.shared_operators().clear_override(override.limit, id_, reason=why, by=by)


def _above(owner: Owner, limits: Mapping[str, str], before: str, plan: str) -> Iterator[str]:
    """Yield the amounts that were below the plan's ``before`` and are more than those of this."""
    was, now = (known_limits(owner, plan=name) for name in (before, plan))
    for limit in limits.keys() & was.keys() & now.keys():
        usual = now[limit].parsed[0]
        if usual.amount < usual.with_amount(limits[limit]).amount <= was[limit].parsed[0].amount:
            yield limit


def shares(team: str, users: Iterable[str]) -> list[State]:
    """Return what users have of the budgets that their team shares fairly, as far as readable."""
    if any(limit.options.fair for limit in known_limits("team", plan=None).values()):
        with contextlib.suppress(OperatorError, StorageUnavailable):
            members = map(user_identity, users)
            return callers.shared_operators().shares(team_identity(team), *members)
    return []


def share_text(state: State) -> str:
    """Return what a member has used of their part of a budget."""
    limit = state.row.limit
    text = f"{limit.outside(state.used):g} of {limit.outside(state.most):g} {limit.unit}"
    return text if state.verdict.allowed else f"{text}, free {state.free_text}"


def ahead_text(states: Iterable[State]) -> str:
    """Return by how much a team is ahead of its pace, and for how long; empty if it is not."""
    budgets = {state.row.name: state for state in states}.items()
    return "; ".join(
        f"{name.removesuffix('-share')} is {state.row.limit.outside(share.ahead):g} "
        f"{state.row.limit.unit} ahead of its pace, for {span_text(share.until_us)}"
        for name, state in budgets
        if (share := state.verdict.share) is not None and share.ahead > 0
    )


def named(owner: Owner, text: str) -> str:
    """Return the name of an owner: of a user without `user:`, of a key its public part."""
    if owner == "key":
        return public_id_of(text)
    return callers.name_of(text) if owner == "user" else text


def identity_of(owner: Owner, name: str) -> str:
    return f"{PREFIXES[owner]}{name}"


def listed(limits: Mapping[str, str] | None) -> str:
    """Return the amounts in one line; empty without any."""
    return ", ".join(f"{name}={amount}" for name, amount in (limits or {}).items())


def _shown(amount: str, until: float | None) -> str:
    return amount if until is None else f"{amount} until {time_text(until)}"


def plan_of(owner: Owner, name: str) -> str | None:
    """Return the plan of an owner; None for a team. OperatorError if there is no such owner."""
    accounts = current_services().accounts
    match owner:
        case "user":
            if (user := accounts.user(name)) is not None:
                return user.plan
        case "key":
            if (row := accounts.find(name)) is not None:
                return row[1].plan
        case _:
            if accounts.team(name) is not None:
                return None
    error, policy = unknown(owner, name), current_services().policy
    if policy is None or name not in {limit.options.name for limit in policy.all_limits()}:
        raise error
    order = f"write amounts/{owner}/LIMIT/NAME, or {owner} NAME LIMIT in a command"
    raise OperatorError(error.code, f"{error} {name!r} is a limit: {order}.")
