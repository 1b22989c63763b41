"""Blocks: switches that act on the next request of every worker."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from chatapp.accounts import EVERYONE
from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.authentication import STALE_HOLDS_S
from chatapp.operators import callers
from chatapp.operators.errors import unknown
from chatapp.services import current_services
from chatapp.web.current_request import user_identity
from ratelimit_ext import BlockReason, OperatorError, StorageUnavailable
from ratelimit_ext.operators import Operators

Kind: TypeAlias = Literal["user", "key", "model", "all"]
KINDS: Final[tuple[Kind, ...]] = ("user", "key", "model", "all")
KEY_SWITCH: Final = "blocked-key"
USER_SWITCH: Final = "blocked-user"
ENDLESS: Final = "until it is unblocked"
#: Longer than a worker uses what it knows of a key, also one that cannot reach the database.
STOP_S: Final = STALE_HOLDS_S + 60


class Target(NamedTuple):
    """What to block: a limit and an identity, a name for messages, and the response's reason."""

    limit: str
    identity: str
    label: str
    reason: BlockReason


def is_endless(operators: Operators, target: Target) -> bool:
    """Return whether it is blocked so until it is unblocked."""
    states = [s for s in operators.states(target.identity) if s.free_text == "never"]
    return (target.limit, target.reason) in [(s.row.name, s.verdict.reason) for s in states]


def shown(kind: Literal["user", "api_key"], identity: str) -> dict[str, str]:
    """Return until when an identity is blocked, as ``blocked``; nothing if it is not, or if the
    limits cannot be read."""
    with contextlib.suppress(OperatorError, StorageUnavailable):
        for state in callers.shared_operators().states(identity, kind=kind):
            if state.is_guard and not state.verdict.allowed:
                end = state.free_text
                return {"blocked": ENDLESS if end == "never" else f"free {end}"}
    return {}


def stop_key(public_id: str) -> bool:
    """Have no worker accept another call with a key that was valid until now: blocked until each
    has looked it up again. False if the limits cannot be reached."""
    with contextlib.suppress(OperatorError, StorageUnavailable):  # there may be no policy
        callers.shared_operators().block(KEY_SWITCH, public_id, for_s=STOP_S)
        return True
    return False


def release_key(public_id: str) -> None:
    """End what :func:`stop_key` has set, and no block of an operator, which holds for longer."""
    with contextlib.suppress(OperatorError, StorageUnavailable):
        operators = callers.shared_operators()
        for state in operators.states(public_id, kind="api_key"):
            if state.row.name == KEY_SWITCH and 0 < (state.free_us or 0) <= STOP_S * 1_000_000:
                operators.unblock(KEY_SWITCH, public_id)


def identities_of(upstream: str) -> Sequence[str]:
    slugs = callers.slugs_by_upstream(upstream)
    if not slugs:
        upstreams = ", ".join(dict.fromkeys(current_services().router.available_models.values()))
        raise OperatorError(
            "unknown_upstream",
            f"No model of an upstream {upstream!r} can be called here; choose one of {upstreams}.",
        )
    return list(slugs)


def target_of(kind: Kind, name: str) -> Target:
    """Return what that name means, which ``all`` ignores. OperatorError if there is no such user,
    key or model."""
    if kind == "all":
        return Target("blocked-all", EVERYONE, "Every call", "closed")
    if kind == "user":
        return _user(name)
    if kind == "key":
        public_id = public_id_of(name)
        if current_services().accounts.find(public_id) is None:
            raise unknown("key", public_id)
        return Target(KEY_SWITCH, public_id, f"The key {public_id}", "blocked")
    catalogue = current_services().catalogue
    slug = name if name in catalogue.unlisted_slugs else catalogue.slug_of(name)
    if slug is None:
        others = " or ".join(catalogue.unlisted_slugs[1:])  # the first is the offline model's
        raise OperatorError(
            "unknown_model",
            f"There is no model {name!r} in models.toml; choose one of its models, or {others} for "
            "all unlisted models of a provider.",
        )
    return Target("blocked-model", slug, f"The model {slug}", "closed")


def unblocked(operators: Operators, limit: str, identity: str) -> bool:
    with contextlib.suppress(OperatorError):  # there may be no policy
        return operators.unblock(limit, identity)
    return False


def _user(name: str) -> Target:
    """Return a user, or the `ip:` address of callers without a name."""
    scheme, _, address = name.partition(":")
    if scheme == "ip" and callers.is_address(address):
        return Target(USER_SWITCH, callers.identity_of(name), f"The address {address}", "blocked")
    name = callers.name_of(name)
    accounts = current_services().accounts
    if accounts.user(name) is None and callers.is_address(name):
        raise OperatorError("unknown_user", f"There is no user {name!r}; an address is ip:{name}.")
    if accounts.user(name) is None and accounts.any_key():
        raise unknown("user", name)
    return Target(USER_SWITCH, user_identity(name), f"The user {name}", "blocked")
