"""What operators do with management keys. Each change is in the log of operators."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from chatapp.accounts.admin_keys import AdminKey
from chatapp.accounts.api_key import PresentedKey
from chatapp.operators import callers
from chatapp.services import current_services


def create(
    name: str,
    scopes: Sequence[str],
    *,
    team: str | None,
    expires_at: datetime | None,
    reason: str,
    by: str,
) -> PresentedKey:
    """Make a management key with these scopes, bound to a team if one is named."""
    services = current_services()
    found = sorted(set(scopes))
    made = services.admin_keys.create(name, found, team=team, expires_at=expires_at)
    shown = ", ".join([*found, *([] if team is None else [f"team {team}"])])
    callers.note("create-admin-key", made.public_id, amount=shown, reason=reason or name, by=by)
    return made


def revoke(public_id: str, *, reason: str, by: str) -> AdminKey:
    """Revoke a management key, which no worker accepts from then on."""
    key = current_services().admin_keys.revoke(public_id)
    callers.note("revoke-admin-key", public_id, reason=reason or key.name, by=by)
    return key


def rotate(
    public_id: str, *, overlap: timedelta, reason: str, by: str
) -> tuple[PresentedKey, AdminKey]:
    """Make a management key like that one, which expires after the overlap."""
    made, old = current_services().admin_keys.rotate(public_id, overlap=overlap)
    end = None if old.expires_at is None else old.expires_at.timestamp()
    replaced = reason or f"{old.name}, replaced by {made.public_id}"
    callers.note("rotate-admin-key", public_id, until=end, reason=replaced, by=by)
    return made, old


def as_json(key: AdminKey) -> dict[str, object]:
    return {
        "id": key.public_id,
        "name": key.name,
        "scopes": list(key.scopes),
        "team": key.team,
        "created": key.created_at.isoformat(timespec="seconds"),
        "expires": key.expires_at and key.expires_at.isoformat(timespec="seconds"),
        "revoked": key.revoked_at and key.revoked_at.isoformat(timespec="seconds"),
    }
