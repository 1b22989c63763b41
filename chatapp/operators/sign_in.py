"""What a sign-in gives: a user with the plan and team of their groups at the identity provider, and
a key that ends unless the provider confirms the person again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from chatapp.accounts.api_key import parse
from chatapp.accounts.openid import Person, RefusedSignInError
from chatapp.accounts.store import ApiKey, UnknownUserError
from chatapp.operators import callers, users
from chatapp.operators.keys import SIGN_IN
from chatapp.services import current_services


def admit(person: Person) -> None:
    """Create or update the user with what their groups give. Raises RefusedSignInError."""
    services, name = current_services(), person.name
    grants = services.settings.sign_in_groups.items()
    grant = next((text for group, text in grants if group in {"*", *person.groups}), "")
    plan, _, team = grant.partition("/")
    user = services.accounts.user(name)
    if not plan:
        raise RefusedSignInError(f"no group of {name} is allowed to")
    if user is not None and user.deactivated_at is not None:
        raise RefusedSignInError(f"the account of {name} is deactivated")
    if team and services.accounts.team(team) is None:
        raise RefusedSignInError(f"the team {team} does not exist here; the operator can create it")
    values = {"plan": plan, "team_name": team or None}
    users.put(name, values, active=None, reason="groups of the identity provider", by=SIGN_IN)


def make_key(user: str) -> str:
    """Make a key for a new sign-in. RefusedChangeError if the user was deactivated meanwhile, and
    UnknownUserError if deleted."""
    services = current_services()
    if services.accounts.user(user) is None:  # with a key, they would come back
        raise UnknownUserError(user)
    key = services.accounts.create_key(
        user, plan=None, default_plan=services.default_plan, name=SIGN_IN, expires_at=_end()
    )
    callers.note("create-key", key.public_id, reason=f"of {user}", by=SIGN_IN)
    return key.text


def key_of(text: str) -> ApiKey | None:
    """Return the key of a sign-in with this text, also an expired one; None if it is revoked."""
    presented = parse(text)
    row = presented and current_services().accounts.find(presented.public_id)
    if presented and row and presented.has_secret(row[0].secret_sha256):
        return row[0] if row[0].name == SIGN_IN and row[0].revoked_at is None else None
    return None


def extend(key: ApiKey, person: Person) -> None:
    """Have the key of that person end later. Raises RefusedSignInError."""
    accounts = current_services().accounts
    if person.name != key.user or accounts.user(key.user) is None:  # deleted meanwhile
        raise RefusedSignInError(f"there is no such key of {person.name}")
    admit(person)
    accounts.change("key", key.public_id, expires_at=_end())


def _end() -> datetime:
    return datetime.now(UTC) + timedelta(hours=current_services().settings.sign_in_hours)
