"""The users, their teams and keys, and the page of one user or team."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask import g
from flask.typing import ResponseReturnValue

from chatapp.accounts.people import People
from chatapp.accounts.store import Owner, Team, User
from chatapp.blueprints.admin.access import bp, query, reported, sessions
from chatapp.blueprints.admin.denials import latest
from chatapp.blueprints.admin.formats import MOST, PAGE, Page, Records, page_of, shown
from chatapp.ledger.reports import MICRO, month_start
from chatapp.operators import amounts
from chatapp.operators.amounts import OwnersAmounts
from chatapp.operators.blocks import KEY_SWITCH, USER_SWITCH
from chatapp.operators.callers import shared_operators
from chatapp.operators.keys import people_of, state_of
from chatapp.operators.reports import forecasts
from chatapp.operators.users import as_json
from chatapp.services import current_services
from chatapp.web.call_limits import SURGE
from chatapp.web.current_request import user_identity
from chatapp.web.errors import ApiError
from ratelimit_ext.operators import State

#: How many denials the page of a user or team has; it looks back for a day.
DENIALS: Final = 5
DAY_S: Final = 86_400


@bp.get("/users")
def users() -> ResponseReturnValue:
    """Return the users, with what they have spent this month, and the teams."""
    services = current_services()
    searched, brought_by = query("q").strip(), query("key") or None
    everyone = services.accounts.names()
    teams = services.accounts.teams()
    overrides = OwnersAmounts()
    matching = [
        name
        for name, _, brought in everyone
        if searched.lower() in name.lower() and brought_by in {None, brought}
    ]
    page = page_of(matching)
    return shown(
        "admin/users.html",
        {"users": _records(matching, overrides)},
        page=Page([*_records(page.rows, overrides)], page.number, page.count),
        searched=searched,
        brought_by=brought_by,
        plans=services.plans,
        teams=[(team, overrides.of("team", team.name, team.limits)) for team in teams],
        members=Counter(team for _, team, _ in everyone),
        is_first=not services.accounts.any_key(),
    )


@bp.get("/user")
def user() -> ResponseReturnValue:
    """Return one user: plan, keys, amounts, what limits have counted, and the latest denials."""
    name, services = query("name"), current_services()
    g.admin.operator.check_user(name)
    identity = user_identity(name)
    row = services.accounts.user(name)
    if row is None:
        raise ApiError(404, "not_found", f"There is no user {name!r}.")
    sees = g.admin.operator.sees_key
    keys = [key for key in services.accounts.all_keys(name) if sees(key, row)]
    spent = services.reports.spent_micro_usd(identity, month_start())
    teams = services.accounts.teams()
    brought = services.accounts.find(row.brought_by) if row.brought_by else None
    public_ids = [key.public_id for key in keys if key.revoked_at is None]
    limits = _limits("user", row, identity, *public_ids, plan=row.plan)
    if row.team_name is not None:
        limits["states"] += amounts.shares(row.team_name, [name])
    denied = {(state.row.name, state.identity) for state in limits["denying"]}
    overrides, new_key = OwnersAmounts(), sessions().handed_over(of=name, to=g.admin)
    return shown(
        "admin/user.html",
        {"limits": (state.as_json() for state in limits["states"])},
        user=row,
        plans=services.plans,
        teams=teams,
        spent=spent,
        keys=[
            (
                key,
                state_of(key),
                not denied.isdisjoint({(KEY_SWITCH, key.public_id), (SURGE, key.public_id)}),
                people_of(People.from_row(key.people)),
                overrides.of("key", key.public_id, key.limits),
            )
            for key in keys
        ],
        usable=len(public_ids),
        brought_by=brought and brought[0],
        is_blocked=(USER_SWITCH, identity) in denied,
        new_key=new_key,
        is_first=new_key and len(services.accounts.all_keys()) == 1,
        **limits,
    )


@bp.get("/team")
def team() -> ResponseReturnValue:
    """Return one team: its members, their spending for it, its budgets, and the latest denials."""
    name, services = query("name"), current_services()
    g.admin.operator.check_team(name)
    row = services.accounts.team(name)
    if row is None:
        raise ApiError(404, "not_found", f"There is no team {name!r}.")
    everyone = services.accounts.names()
    members = [user for user, of, _ in everyone if of == name]
    spent = _spent_this_month(team=name)
    members.sort(key=lambda user: -spent.get(user_identity(user), 0))
    page, overrides = page_of(members), OwnersAmounts()
    limits = _limits("team", row, amounts.identity_of("team", name), plan=None)
    shares = amounts.shares(name, page.rows)
    return shown(
        "admin/team.html",
        {
            "limits": (state.as_json() for state in limits["states"]),
            "members": _records(members, overrides, spent),
        },
        shares=[(state, amounts.share_text(state)) for state in shares],
        ahead=amounts.ahead_text(shares),
        team=row,
        page=Page([*_records(page.rows, overrides, spent)], page.number, page.count),
        others=[user for user, of, _ in everyone if of != name][:MOST],
        spent=spent,
        former=sum(spent.values()) - sum(spent.get(user_identity(m), 0) for m in members),
        **limits,
    )


def _limits(owner: Owner, row: User | Team, *identities: str, plan: str | None) -> dict[str, Any]:
    states: list[State] = []
    denials: list[Any] = []
    ahead: list[Any] = []
    remembers = current_services().settings.remember_denials
    with reported() as problems:
        operators = shared_operators()
        states, ahead = operators.states(*identities), forecasts(identities[0])
        if remembers:
            denials = operators.denials(*identities, since=DAY_S).records
    return {
        "owner": owner,
        "name": row.name,
        "identity": identities[0],
        "amounts": OwnersAmounts().of(owner, row.name, row.limits),
        "lasting": row.limits or {},
        "known": amounts.known_limits(owner, plan=plan),
        "states": [state for state in states if not state.is_guard],
        "denying": [state for state in states if not state.verdict.allowed],
        "forecasts": ahead,
        "problem": "".join(problems),
        "remembers": remembers,
        "denials": latest(denials, DENIALS),
    }


def _records(
    names: Sequence[str], overrides: OwnersAmounts, spent: Mapping[str | None, int] | None = None
) -> Records:
    """Yield the users as the acts show them, with their valid keys and spending."""
    if not names:
        return
    accounts, few = current_services().accounts, names if len(names) <= PAGE else ()
    if spent is None:
        spent = _spent_this_month(users=[*map(user_identity, few)] or None)
    valid = Counter(key.user for key in accounts.all_keys(*few) if key.is_usable)
    users = {user.name: user for user in accounts.users(*few)}
    for user in filter(None, map(users.get, names)):
        usd = spent.get(user_identity(user.name), 0) / MICRO
        yield {**as_json(user, overrides), "valid_keys": valid[user.name], "usd_this_month": usd}


def _spent_this_month(
    *, team: str | None = None, users: Sequence[str] | None = None
) -> dict[str | None, int]:
    """Return micro-dollars by user."""
    reports = current_services().reports
    rows = reports.spending(by="user", since=month_start(), team=team, users=users)
    return {row.subject: row.cost_micro_usd for row in rows}
