"""What operators do with keys, and the states of keys. Each change is in the log of operators, and
is returned in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from chatapp.accounts import EVERYONE
from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.authentication import ANSWER_HOLDS_S
from chatapp.accounts.people import People
from chatapp.accounts.store import ApiKey, UnknownUserError
from chatapp.operators import blocks, callers
from chatapp.operators.amounts import OwnersAmounts
from chatapp.services import current_services
from ratelimit_ext import OperatorError, StorageUnavailable

#: The name of keys that people get by signing in, and of who changes something then.
SIGN_IN: Final = "sign-in"
#: In place of a class: that of the key's plan.
PLAN: Final = "plan"


def set_fields(key: ApiKey, fields: Mapping[str, Any], *, reason: str, by: str) -> list[str]:
    """Give a key the models, files, class or people that differ; each change in a sentence."""
    done = []
    for field, value in fields.items():
        if (value or None) == (getattr(key, field) or None):
            continue
        action = amount = field
        match field:
            case "models":
                amount = ", ".join(value or ()) or "all models of its plan"
                sentence = f"allows {amount}"
            case "files":
                amount = "on" if value else "off"
                sentence = "may name files" if value else "may not name files"
            case "traffic_class":
                action, amount = "class", value or PLAN
                sentence = f"has the class {value or 'of its plan'}"
            case _:
                acts = people_of(People.from_row(value))
                amount, sentence = acts or "off", acts or "acts only for its own user"
        current_services().accounts.change("key", key.public_id, **{field: value})
        callers.note(action, key.public_id, amount=amount, reason=reason, by=by)
        done.append(f"Key {key.public_id} {sentence}; all workers apply it within 5 s.")
    return done


def people_of(people: People | None) -> str:
    """Return in words for whom a key acts; empty if for its own user alone."""
    if people is None:
        return ""
    return f"acts for the users in {', '.join(people.headers) or 'the body'}"


def revoke_key(key: str, *, reason: str, by: str) -> tuple[str, bool]:
    """Revoke a key: its public part, or the whole key. Returns the change in a sentence, and
    whether no worker accepts another call with it; otherwise each has to notice first. Raises
    UnknownKeyError."""
    accounts, public_id = current_services().accounts, public_id_of(key)
    row = accounts.find(public_id)
    revoked = accounts.revoke(public_id)
    is_immediate = blocks.stop_key(public_id)
    limit = blocks.KEY_SWITCH if is_immediate else ""
    callers.note("revoke-key", public_id, limit=limit, reason=reason or f"of {revoked.user}", by=by)
    done = f"is revoked; {since_when(is_immediate=is_immediate)}"
    if row is not None and row[0].revoked_at is not None:
        done = f"was already revoked on {row[0].revoked_at:%Y-%m-%d}"
    return f"Key {public_id} of {revoked.user} {done}.", is_immediate


def turn_accounts_off(*, reason: str = "", by: str) -> None:
    """Forget that accounts were on: no request needs a key. OperatorError if there are keys."""
    services = current_services()
    if services.accounts.any_key():
        raise OperatorError("has_keys", "The database has keys, and accounts stay on.")
    try:
        services.authenticator.accounts_on.clear()
    except services.limiter.storage.base_exceptions as error:
        raise StorageUnavailable(str(error)) from error
    callers.note("accounts-off", EVERYONE, reason=reason, by=by)


def usable_keys(user: str) -> list[str]:
    """Return the public ids of the user's keys that are not revoked. Raises UnknownUserError."""
    accounts = current_services().accounts
    if accounts.user(user) is None:
        raise UnknownUserError(user)
    return [key.public_id for key in accounts.all_keys(user) if key.revoked_at is None]


def as_json(key: ApiKey, amounts: OwnersAmounts) -> dict[str, object]:
    return {
        "id": key.public_id,
        "user": key.user,
        "name": key.name,
        "created": key.created_at.isoformat(timespec="seconds"),
        "last_used": key.last_used_on and str(key.last_used_on),
        "expires": key.expires_at and key.expires_at.isoformat(timespec="seconds"),
        "revoked": key.revoked_at and key.revoked_at.isoformat(timespec="seconds"),
        "state": state_of(key),
        "limits": amounts.of("key", key.public_id, key.limits),
        "models": list(key.models or ()),
        "files": bool(key.files),
        "class": key.traffic_class,
        "people": key.people,
        "team": key.bound_team,
    }


def since_when(*, is_immediate: bool, what: str = "it") -> str:
    if is_immediate:
        return f"no worker accepts a call with {what}"
    return f"all workers apply it within {ANSWER_HOLDS_S:.0f} s"


def state_of(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "valid"
    return f"{'expired' if key.has_expired else 'valid until'} {key.expires_at:%Y-%m-%d}"
