"""Management keys, which an operator with the scope ``all`` makes."""

from __future__ import annotations

from pydantic import Field

from chatapp.blueprints.management.accounts import End, KeyName, Rotation, Team
from chatapp.blueprints.management.actions import Call, Change, action, of_field
from chatapp.operators import admin_keys
from chatapp.services import current_services
from chatapp.settings import Scope


class NewAdminKey(Change):
    name: KeyName
    scopes: list[Scope] = Field(min_length=1)
    team: Team | None = None
    expires: End | None = None


@action("GET /admin-keys", "all", order="name id")
def list_admin_keys(_call: Call) -> list[dict[str, object]]:
    """The management keys, without their secrets."""
    return [admin_keys.as_json(each) for each in current_services().admin_keys.all()]


@action("POST /admin-keys", "all", body=NewAdminKey)
def create_admin_key(call: Call) -> dict[str, object]:
    """Create a management key. The answer has it, this one time."""
    body = call.body
    with of_field("team"):
        made = admin_keys.create(
            body.name, body.scopes, team=body.team, expires_at=body.expires, **call.why
        )
    return {"id": made.public_id, "key": made.text}


@action("DELETE /admin-keys/<key>", "all")
def revoke_admin_key(call: Call, key: str) -> dict[str, object]:
    """Revoke a management key; a revoked key stays as it is."""
    return {"done": f"Key {key} of {admin_keys.revoke(key, **call.why).name} is revoked."}


@action("POST /admin-keys/<key>/rotate", "all", body=Rotation)
def rotate_admin_key(call: Call, key: str) -> dict[str, object]:
    """Create a management key like this one, which expires after the overlap."""
    made, old = admin_keys.rotate(key, overlap=call.body.overlap, **call.why)
    return {"id": made.public_id, "key": made.text, "replaces": key, "expires": old.expires_at}
