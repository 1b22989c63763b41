"""New keys, and the states of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import click

from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import ApiKey, OtherPlanError, OtherTeamError, UnknownTeamError
from chatapp.operators.amounts import checked
from chatapp.services import current_services
from chatapp.web.identities import DEFAULT_PLAN


def create_key(
    user: str,
    *,
    plan: str | None,
    team: str | None,
    name: str,
    expires_at: datetime | None,
    limits: Sequence[tuple[str, str]] = (),
    models: Sequence[str] = (),
) -> PresentedKey:
    """Make a key, and its user if new. ClickException if the user has another plan or team."""
    accounts = current_services().accounts
    known = accounts.user(user)
    own_plan = known.plan if known else plan or DEFAULT_PLAN
    amounts: Mapping[str, str] = checked("key", limits, plan=own_plan)
    try:
        return accounts.create_key(
            user,
            plan=plan,
            default_plan=DEFAULT_PLAN,
            team=team,
            name=name,
            expires_at=expires_at,
            limits=amounts,
            models=models,
        )
    except OtherPlanError as error:
        raise click.ClickException(
            f"{user} has the plan {error.plan}; no key was created, as all keys of a user have "
            "the user's plan. Leave --plan out, or change the plan first: "
            f"`chat plans set {user} {plan}`."
        ) from None
    except OtherTeamError as error:
        own = "no team" if error.team is None else f"the team {error.team}"
        raise click.ClickException(
            f"{user} has {own}; no key was created, as all keys of a user count toward the "
            "user's team. Leave --team out, or move the user first: "
            f"`chat users set-team {user} {team}`."
        ) from None
    except UnknownTeamError:
        raise click.ClickException(
            f"There is no team {team!r}; `chat teams create {team}` creates it."
        ) from None


def state_of(key: ApiKey) -> str:
    """Valid, expired or revoked, and when."""
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "valid"
    expired = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if expired else 'valid until'} {key.expires_at:%Y-%m-%d}"
