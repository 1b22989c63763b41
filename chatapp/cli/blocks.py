"""`chat block` and `chat unblock`: the switches that act at once, in every worker."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

import click
from flask.cli import with_appcontext

from chatapp.accounts.api_key import public_id_of
from chatapp.cli import arguments, errors, users
from chatapp.cli.dollar_limits import OUT_OF_REACH, can_be_read
from chatapp.services import current_services
from chatapp.web.call_limits import COOL_DOWN, SURGE
from chatapp.web.identities import user_identity
from ratelimit_ext import BlockReason, Limiter

KINDS: Final = ("user", "key", "model", "all")
EVERYBODY: Final = "*"


class Target(NamedTuple):
    """What is blocked: the limit in the policy, the identity it counts, and how a person calls it.

    ``reason`` is what its callers are told.
    """

    limit: str
    identity: str
    called: str
    reason: BlockReason


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False, type=arguments.USER)
@click.option("--for", "length", type=arguments.DURATION, help="For so long: 90s, 15m, 2h, 7d.")
@click.option("--abnormal", is_flag=True, help="Tell a user or key that its usage is abnormal.")
@with_appcontext
def block(
    *,
    kind: Literal["user", "key", "model", "all"],
    name: str | None,
    length: timedelta | None,
    abnormal: bool,
) -> None:
    """Let no call pass: of a user, of an API key, whole or its public part, to a model, or at all.

    Without --for until `chat unblock`. Calls under way go on.
    """
    target = _target(kind, name)
    if abnormal:
        if kind not in ("user", "key"):
            raise click.UsageError(f"--abnormal is for a user or a key, and not for {kind}.")
        target = target._replace(reason="abnormal-usage")
    limiter = _shared_limiter()
    for_s = None if length is None else length.total_seconds()
    with errors.reported():
        anew = limiter.block(target.limit, target.identity, for_s=for_s, reason=target.reason)
    if not anew:
        click.echo(f"{target.called} is blocked for as long already.")
        return
    until = "until `chat unblock`"
    if length is not None:
        until = f"until {datetime.now(UTC) + length:%Y-%m-%d %H:%M:%S} UTC"
    click.echo(f"{target.called} is blocked {until}, in all workers from now on.")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False, type=arguments.USER)
@with_appcontext
def unblock(kind: Literal["user", "key", "model", "all"], name: str | None) -> None:
    """Lift a block, whoever set it: an operator, the provider of a model, or a surge of the user's
    or key's own, whose past is then forgotten."""
    target = _target(kind, name)
    limiter = _shared_limiter()
    with errors.reported():
        lifted = limiter.unblock(target.limit, target.identity)
        if kind == "model":
            catalogue = current_services().catalogue
            provider = catalogue.providers.get(target.identity, "")
            upstream = catalogue.model(target.identity, provider).upstream
            lifted = _unblocked(limiter, COOL_DOWN, upstream) or lifted
        forgotten = kind in ("user", "key") and _unblocked(limiter, SURGE, target.identity)
    if kind == "all":
        done = "The block of all calls is lifted" if lifted else "There was no block of all calls"
        click.echo(f"{done}; blocks of single users, keys and models are not touched.")
        return
    done = "is not blocked any more" if lifted else "was not blocked"
    if forgotten:
        done += "; if a surge had stopped it, it does so no more: what was usual is forgotten"
    click.echo(f"{target.called} {done}.")


def _unblocked(limiter: Limiter, limit: str, identity: str) -> bool:
    with contextlib.suppress(ValueError):  # a policy of one's own may have no such limit
        return limiter.unblock(limit, identity)
    return False


def _target(kind: Literal["user", "key", "model", "all"], name: str | None) -> Target:
    if kind == "all":
        if name is not None:
            raise click.UsageError(f"`all` takes no name; found {name!r}.")
        return Target("blocked-all", EVERYBODY, "Every call", "closed")
    if name is None:
        raise click.UsageError(f"Say which {kind}: `chat block {kind} NAME`.")
    if kind == "user":
        return _user(name)
    if kind == "key":
        return _key(name)
    slug = current_services().catalogue.slug_of(name)
    if slug is None:
        raise click.ClickException(
            f"There is no model {name!r} in models.toml; name one of its models, or "
            "openai-other or anthropic-other for all of a provider's that it does not list."
        )
    return Target("blocked-model", slug, f"The model {slug}", "closed")


def _user(name: str) -> Target:
    """A user, or with `ip:` in front the address of those who say no name."""
    scheme, _, address = name.partition(":")
    if scheme == "ip" and _is_address(address):
        identity = users.identity_of(name)
        return Target("blocked-user", identity, f"Whoever calls from {address}", "blocked")
    name = users.name_of(name)
    with errors.reported():
        accounts = current_services().accounts
        known = users.plans_by_name() if accounts.any_key() else {name}
    if name not in known:
        raise click.ClickException(f"There is no user {name!r}; `chat keys list` shows them.")
    return Target("blocked-user", user_identity(name), f"The user {name}", "blocked")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _key(text: str) -> Target:
    public_id = public_id_of(text)
    with errors.reported():
        known = {key.public_id for key in current_services().accounts.all_keys()}
    if public_id not in known:
        raise click.ClickException(
            f"There is no key {public_id[:16]}; `chat keys list` shows them."
        )
    return Target("blocked-key", public_id, f"The key {public_id}", "blocked")


def _shared_limiter() -> Limiter:
    limiter = current_services().limiter
    if not can_be_read(limiter):
        raise click.ClickException(f"The limits cannot be changed: {OUT_OF_REACH}")
    return limiter
