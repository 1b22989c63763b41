"""`chat usage`: what somebody has left of his limits, and has spent."""

from __future__ import annotations

import click
from flask import json
from flask.cli import with_appcontext

from chatapp.cli import arguments, dollar_limits, errors, users
from chatapp.ledger.spending import spent_usd
from chatapp.services import current_services
from chatapp.web.call_limits import remaining_limits


@click.command()
@click.argument("user", type=arguments.USER)
@with_appcontext
def usage(user: str) -> None:
    """Tell what USER has left of each limit, and has spent, as JSON: what GET /usage tells him.

    USER is a name, or ip:ADDRESS for whoever calls from there and says none.
    """
    services = current_services()
    limiter = services.limiter
    in_reach = not limiter.enabled or dollar_limits.can_be_read(limiter)
    with errors.reported():
        identity = users.found(user)
        assert identity is not None
        plan = users.plan_of(identity, users.plans_by_name())
        with users.request_of(identity, plan):
            limits = _limits_of(identity) if in_reach else None
            plan = limiter.present_plan() or plan
    told = {
        "user": users.name_of(identity),
        "plan": plan,
        "limits": limits,
        "spent": spent_usd(services.reports, identity),
    }
    click.echo(json.dumps(told, indent=2, sort_keys=False))
    if not in_reach:
        click.echo(f"The limits are not in it: {dollar_limits.OUT_OF_REACH}", err=True)


def _limits_of(identity: str) -> list[dict[str, object]]:
    """Those that count the user. His addresses and keys have limits of their own at the edge."""
    left = remaining_limits(current_services().limiter)
    return [limit.as_json() for limit in left if limit.identity == identity]
