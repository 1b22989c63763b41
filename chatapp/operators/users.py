"""What operators change of users and teams. Each change is in the log of operators."""

from __future__ import annotations

from collections.abc import Mapping

from chatapp.accounts.store import ExistingTeamError
from chatapp.operators import arguments, callers
from chatapp.operators.amounts import identity_of, listed
from chatapp.services import current_services
from chatapp.web.current_request import user_identity
from ratelimit_ext import OperatorError


def set_plan(name: str, plan: str, *, reason: str, by: str) -> str:
    """Change the user's plan; returns the change in a sentence."""
    current_services().accounts.set_plan(name, arguments.plan(plan))
    callers.note("plan", user_identity(name), amount=plan, reason=reason, by=by)
    return f"{name} has the plan {plan}; all workers apply it within 5 s."


def set_team(name: str, team: str | None, *, reason: str, by: str) -> str:
    """Move the user to a team, or out of theirs; returns the change in a sentence."""
    current_services().accounts.set_team(name, team)
    callers.note("team", user_identity(name), amount=team or "none", reason=reason, by=by)
    shown = "no team" if team is None else f"the team {team}"
    return f"{name} has {shown}; all workers apply it within 5 s."


def create_team(name: str, *, amounts: Mapping[str, str], reason: str, by: str) -> str:
    """Make a team without members; returns the change in a sentence. OperatorError if there is a
    team of that name."""
    try:
        current_services().accounts.create_team(name, limits=amounts)
    except ExistingTeamError:
        raise OperatorError("existing_team", f"There is a team {name!r} already.") from None
    callers.note("create-team", identity_of("team", name), reason=reason, by=by)
    with_what = f"with {listed(amounts)}" if amounts else "without budgets"
    return f"Team {name} is created {with_what}."
