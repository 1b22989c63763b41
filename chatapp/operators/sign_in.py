"""From what an operator presents to who they are."""

from __future__ import annotations

import hmac
from typing import Final

from chatapp.accounts.admin_keys import AdminKey
from chatapp.accounts.api_key import ADMIN_PREFIX, parse
from chatapp.operators import arguments
from chatapp.operators.amounts import of_team
from chatapp.operators.rights import Operator
from chatapp.services import current_services

#: Who makes a change by the token alone, in the log of operators.
NAMELESS: Final = "admin token"


def operator_with(text: str) -> Operator | None:
    """Return the operator with that key; None for any other text. The shared token, the first key,
    and the secrets of others are compared in constant time."""
    token = current_services().settings.admin_token
    if token is not None and hmac.compare_digest(text.encode("utf-8", "replace"), token.encode()):
        return Operator(NAMELESS)
    presented = parse(text, ADMIN_PREFIX)
    if presented is None:
        return None
    key = current_services().admin_keys.find(presented.public_id)
    if key is None or not presented.has_secret(key.secret_sha256):
        return None
    return operator_of(key)


def operator_named(identity: str) -> Operator | None:
    """Return the operator whom a trusted proxy has identified; None for one without rights."""
    rights, name = current_services().settings.admin_sign_on, identity.lower()
    domain = f"*@{name.rpartition('@')[2]}" if "@" in name else "*"
    text = next((rights[each] for each in (name, domain, "*") if each in rights), None)
    if text is None or not name:
        return None
    words = text.split()
    team = next((each.removeprefix("team:") for each in words if each.startswith("team:")), None)
    scopes = frozenset(each for each in words if not each.startswith("team:"))
    name = arguments.name(identity, most=arguments.USER)
    return Operator(f"{name} (single sign-on{of_team(team)})", scopes, team)


def operator_of(key: AdminKey | None) -> Operator | None:
    """Return the operator of a key as it is now; None if it is revoked or has expired."""
    if key is None or not key.is_usable:
        return None
    by = f"{key.name} (admin key {key.public_id}{of_team(key.team)})"
    return Operator(by, frozenset(key.scopes), team=key.team, key_id=key.public_id)
