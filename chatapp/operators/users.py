"""What operators change of users and teams. Each change is in the log of operators, and functions
that return a text return the change in a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from chatapp.accounts import FORMER
from chatapp.accounts.store import Owner, User, UserChange
from chatapp.ledger import table
from chatapp.operators import blocks, callers, keys
from chatapp.operators.amounts import OwnersAmounts, fit, identity_of, listed
from chatapp.services import current_services
from chatapp.web.current_request import user_identity
from ratelimit_ext import OperatorError, Override, StorageUnavailable

#: The answer to a PUT that had nothing to change.
NOTHING: Final = "Nothing was changed."


def state_of(user: User) -> str:
    if user.deactivated_at is None:
        return "active"
    return f"deactivated {user.deactivated_at:%Y-%m-%d}"


def as_json(user: User, amounts: OwnersAmounts) -> dict[str, object]:
    return {
        "user": user.name,
        "plan": user.plan,
        "team": user.team_name,
        "limits": amounts.of("user", user.name, user.limits),
        "state": state_of(user),
    }


class Put(NamedTuple):
    """Whether what was put is new, and what that has changed, in sentences."""

    is_new: bool
    done: str


def put(name: str, values: Mapping[str, Any], *, active: bool | None, reason: str, by: str) -> Put:
    """Create or update a user with these ``values`` of UserChange, and activate or deactivate them.
    The log has what that changes, and a second time nothing."""
    services, identity = current_services(), user_identity(name)
    before = services.accounts.user(name)
    changed = {k: v for k, v in values.items() if before is None or getattr(before, k) != v}
    note = partial(callers.note, reason=reason, by=by)
    if before is None or changed:
        services.accounts.import_users(
            [UserChange(name, changed)], default_plan=services.default_plan
        )
    done, has = [], []
    if before is None:
        note("create-user", identity)
        done.append(f"{name} is created.")
    if "plan" in changed:
        note("plan", identity, amount=changed["plan"])
        has.append(f"the plan {changed['plan']}")
    if changed.get("team_name") or (before and "team_name" in changed):
        team = changed["team_name"]
        note("team", identity, amount=team or "none")
        has.append(f"the team {team}" if team else "no team")
    if before is not None and changed and "limits" not in values:
        fit({name: before}, by=by)
    if "limits" in changed:
        _note_amounts(identity, (before and before.limits) or {}, changed["limits"] or {}, note)
        has.append(listed(changed["limits"] or {}) or "no amounts")
    if has:
        done.append(f"{name} has {', '.join(has)}; all workers apply it within 5 s.")
    if active is not None:
        done.append((activate if active else deactivate)(name, reason=reason, by=by))
    return Put(before is None, " ".join(done) or NOTHING)


def put_amounts(
    owner: Owner,
    name: str,
    before: Mapping[str, str],
    limits: Mapping[str, str],
    *,
    reason: str,
    by: str,
) -> list[str]:
    """Give an owner these amounts and no others. Returns the change in a sentence, if it is one."""
    if limits == before:
        return []
    current_services().accounts.change(owner, name, limits=dict(limits) or None)
    note = partial(callers.note, reason=reason, by=by)
    _note_amounts(identity_of(owner, name), before, limits, note)
    has = listed(limits) or "no amounts"
    return [f"{owner.capitalize()} {name} has {has}; all workers apply it within 5 s."]


def _note_amounts(
    identity: str, before: Mapping[str, str], after: Mapping[str, str], note: Callable[..., None]
) -> None:
    for limit in sorted({*before, *after}):
        if limit not in after:
            note("clear-amount", identity, limit=limit)
        elif after[limit] != before.get(limit):
            note("amount", identity, limit=limit, amount=after[limit])


def deactivate(name: str, *, reason: str, by: str) -> str:
    """Refuse all keys of the user until they are activated."""
    public_ids = keys.usable_keys(name)
    if not current_services().accounts.set_active(name, active=False):
        return f"{name} was already deactivated."
    since = _stop(public_ids)
    callers.note("deactivate", user_identity(name), reason=reason, by=by)
    return f"{name} is deactivated; {since}. Running calls continue."


def activate(name: str, *, reason: str, by: str) -> str:
    if not current_services().accounts.set_active(name, active=True):
        return f"{name} was not deactivated."
    for public_id in keys.usable_keys(name):
        blocks.release_key(public_id)
    callers.note("activate", user_identity(name), reason=reason, by=by)
    return f"{name} is active again; {keys.since_when(is_immediate=False)}."


def delete(name: str, *, reason: str, by: str) -> str:
    """Delete the user, their keys, amounts, overrides and block, and what limits have counted. The
    ledger keeps their calls under another identity, so a new user of that name is someone else.
    OperatorError if the limits cannot be reached."""
    services, identity = current_services(), user_identity(name)
    public_ids = keys.usable_keys(name)
    try:
        overrides = _overrides_of({identity, *public_ids})
    except StorageUnavailable as error:
        raise OperatorError(
            "storage",
            f"The limits cannot be reached: {error}. {name} was not deleted, because a new user of "
            f"that name would have {name}'s overrides and block; deactivate {name} meanwhile.",
        ) from error
    # At most 300 characters; the time tells former users of one name apart.
    former = f"{FORMER}{name} (deleted {datetime.now(UTC):%Y-%m-%d %H:%M:%S})"
    services.accounts.delete_user(name, also=partial(table.rename, user=identity, to=former))
    since = _stop(public_ids)
    services.stored_answers.disown(identity)
    callers.note("delete-user", identity, reason=reason, by=by)
    try:
        _clear(overrides, identity, reason=reason, by=by)
    except StorageUnavailable as error:
        raise OperatorError(
            "storage",
            f"{name} is deleted with all keys, but then the limits could not be reached: {error}. "
            f"Create a user {name} and delete them again, to remove {name}'s overrides and block.",
        ) from error
    return (
        f"{name} is deleted with all keys; {since}. Running calls continue. The ledger keeps "
        f"their calls as {former}."
    )


def _overrides_of(identities: Container[str]) -> list[Override]:
    with contextlib.suppress(OperatorError):  # processes share no limits, or the storage keeps none
        return [o for o in callers.shared_operators().overrides() if o.identity in identities]
    return []


def _clear(overrides: Sequence[Override], identity: str, *, reason: str, by: str) -> None:
    """Remove the overrides, and the block of the user."""
    with contextlib.suppress(OperatorError):  # there may be no such switch
        operators = callers.shared_operators()
        for override in overrides:
            operators.clear_override(override.limit, override.identity, reason=reason, by=by)
        for guard in [state for state in operators.states(identity) if state.is_guard]:
            operators.unblock(guard.row.name, identity)
        operators.reset(identity, reason=reason, by=by)  # raises if nothing was counted


def _stop(public_ids: Sequence[str]) -> str:
    """Have no worker accept another call with the keys; returns since when, in words."""
    are_stopped = [blocks.stop_key(public_id) for public_id in public_ids]
    # Workers know the people of a trusted key for as long as keys.
    is_named = any(key.people for key in current_services().accounts.all_keys())
    return keys.since_when(is_immediate=all(are_stopped) and not is_named, what="their keys")
