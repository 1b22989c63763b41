"""`chat block` and `chat unblock`: see chatapp/operators/blocks.py."""

from __future__ import annotations

from datetime import timedelta

import click
from flask.cli import with_appcontext

from chatapp.cli import arguments, output
from chatapp.operators import blocks
from chatapp.operators.blocks import KINDS, Kind


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False, type=arguments.USER)
@click.option("--for", "length", type=arguments.DURATION, help="How long: 90s, 15m, 2h, 7d.")
@click.option(
    "--abnormal", is_flag=True, help="Give abnormal usage of a user or key as the reason."
)
@output.changes
@with_appcontext
def block(
    *,
    kind: Kind,
    name: str | None,
    length: timedelta | None,
    abnormal: bool,
    as_json: bool,
    **why: str,
) -> None:
    """Block a user, a key, a model, or all calls.

    A key is named by its public part, or whole. Without --for, the block holds until `chat
    unblock`. Running calls continue.
    """
    target = blocks.target_of(kind, name)
    if abnormal:
        if kind not in ("user", "key"):
            raise click.UsageError(f"--abnormal is for a user or a key, not for {kind}.")
        target = target._replace(reason="abnormal-usage")
    done = blocks.block(target, length=length, **why)
    output.echo_done(
        done.sentence,
        as_json=as_json,
        limit=target.limit,
        identity=target.identity,
        until=None if done.until is None else done.until.isoformat(timespec="seconds"),
        changed=done.is_new,
    )


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False, type=arguments.USER)
@output.changes
@with_appcontext
def unblock(*, kind: Kind, name: str | None, as_json: bool, **why: str) -> None:
    """Remove a block, the pause of a provider, or a surge.

    After a surge, the usual amount of the user or key is forgotten.
    """
    target = blocks.target_of(kind, name)
    done = blocks.unblock(kind, target, **why)
    facts = {"limit": target.limit, "identity": target.identity}
    output.echo_done(done.sentence, as_json=as_json, **facts, changed=done.is_new)
