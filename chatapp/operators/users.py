"""What operators change of users. Each change is in the log of operators."""

from __future__ import annotations

from chatapp.operators import callers
from chatapp.services import current_services
from chatapp.web.current_request import user_identity


def set_plan(name: str, plan: str, *, reason: str, by: str) -> str:
    """Change the user's plan; returns the change in a sentence."""
    current_services().accounts.set_plan(name, plan)
    callers.note("plan", user_identity(name), amount=plan, reason=reason, by=by)
    return f"{name} has the plan {plan}; all workers apply it within 5 s."


def set_team(name: str, team: str | None, *, reason: str, by: str) -> str:
    """Move the user to a team, or out of theirs; returns the change in a sentence."""
    current_services().accounts.set_team(name, team)
    callers.note("team", user_identity(name), amount=team or "none", reason=reason, by=by)
    shown = "no team" if team is None else f"the team {team}"
    return f"{name} has {shown}; all workers apply it within 5 s."
