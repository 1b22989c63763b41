"""The users and their keys, and the page of one user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import click
from flask import g, make_response, render_template
from flask.typing import ResponseReturnValue

from chatapp.accounts.store import ApiKey
from chatapp.blueprints.admin.access import bp, query, sessions
from chatapp.blueprints.admin.denials import latest
from chatapp.blueprints.admin.formats import MOST
from chatapp.operators import amounts
from chatapp.operators.amounts import OwnAmounts
from chatapp.operators.errors import reported_errors
from chatapp.operators.keys import state_of
from chatapp.services import current_services
from chatapp.web.current_request import user_identity
from chatapp.web.errors import ApiError
from ratelimit_ext.cli import State, denials_of, states_of

#: How many denials of a user their page has; it looks back for a day.
DENIALS: Final = 5
DAY_S: Final = 86_400


@bp.get("/users")
def users() -> ResponseReturnValue:
    """The users, with what they have spent this month."""
    services = current_services()
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    searched = query("q").strip()
    with reported_errors():
        everyone = services.accounts.users()
        keys = services.accounts.all_keys()
        spent = services.reports.spending(by="user", since=month)
    now = datetime.now(UTC)
    valid: dict[str, int] = {}
    for key in keys:
        valid[key.user] = valid.get(key.user, 0) + _is_valid(key, now)
    own = OwnAmounts()
    found = [each for each in everyone if searched.lower() in each.name.lower()]
    return render_template(
        "admin/users.html",
        users=[
            (user, valid.get(user.name, 0), own.of("user", user.name, user.limits))
            for user in found[:MOST]
        ],
        count=len(found),
        searched=searched,
        spent={each.subject: each.cost_micro_usd for each in spent},
        identity_of=user_identity,
        plans=services.plans,
        teams=services.accounts.teams(),
        is_first=not keys,
    )


@bp.get("/user")
def user() -> ResponseReturnValue:
    """One user: plan, keys, amounts, what limits have counted, and the latest denials."""
    name, services = query("name"), current_services()
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    identity = user_identity(name)
    with reported_errors():
        found = services.accounts.user(name)
        if found is None:
            raise ApiError(404, "not_found", f"There is no user {name!r}.")
        all_keys = services.accounts.all_keys()
        keys = [each for each in all_keys if each.user == name]
        spent = services.reports.spent_micro_usd(identity, month)
    public_ids = [each.public_id for each in keys if each.revoked_at is None]
    states: list[State] = []
    denials: list[Any] = []
    remembers = services.settings.remember_denials
    problem = None
    try:
        with reported_errors():
            states = states_of(identity, *public_ids)
            if remembers:
                denials = denials_of(identity, *public_ids, since=DAY_S).records
    except click.ClickException as error:
        problem = error.message
    denied = {(each.row.name, each.identity) for each in states if not each.verdict.allowed}
    new_key = sessions().handed_over(of=name, to=g.admin)
    page = render_template(
        "admin/user.html",
        user=found,
        plans=services.plans,
        spent=spent,
        keys=[(each, state_of(each), ("blocked-key", each.public_id) in denied) for each in keys],
        is_blocked=("blocked-user", identity) in denied,
        amounts=OwnAmounts().of("user", name, found.limits),
        known=amounts.known_limits("user", plan=found.plan),
        states=[each for each in states if not each.is_guard],
        problem=problem,
        remembers=remembers,
        denials=latest(denials, DENIALS),
        new_key=new_key,
        is_first=len(all_keys) == 1,
    )
    response = make_response(page)
    if new_key is not None:
        sessions().take_back(response)
    return response


def _is_valid(key: ApiKey, now: datetime) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
