"""``flask ratelimit check`` and ``show``: which limits there are, and where each is written."""

from __future__ import annotations

import json
from pathlib import Path

import click
from flask.cli import with_appcontext

from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.operators.api import all_operators
from ratelimit_ext.operators.definitions import definitions_of, policy_as_json
from ratelimit_ext.operators.texts import listed
from ratelimit_ext.terminal import echo_json, echo_table, with_json


@click.command()
@with_appcontext
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@with_json
def check(file: Path | None, *, as_json: bool) -> None:
    """Check FILE, or the configured policy.

    Prints every mistake with its line, and then exits with 1. Needs no storage.
    """
    try:
        checked = all_operators().checked_policy(file)
    except ValueError as error:  # every mistake of the files
        raise OperatorError("invalid_policy", str(error)) from error
    shown = policy_as_json(checked)
    if as_json:
        echo_json(shown)
        return
    plans = ", ".join(shown["plans"]) or "none"
    limits = "1 limit" if shown["limits"] == 1 else f"{shown['limits']} limits"
    click.echo(f"{checked.file} is valid: {limits}; plans: {plans}.")
    for warning in checked.warnings:
        click.echo(f"Warning: {warning}")
    for sentence in checked.unapplied:
        click.echo(f"Note: {sentence}")


@click.command()
@with_appcontext
@click.option("--endpoint", help="Only the limits of this endpoint.")
@with_json
def show(endpoint: str | None, *, as_json: bool) -> None:
    """List every endpoint with its limits, and where each is written.

    Endpoints that have the same limits are listed together.
    """
    groups = definitions_of(all_operators(), endpoint or "")
    if as_json:
        echo_json(groups)
        return
    titles: dict[str, list[str]] = {}
    for group in groups:
        attached = [limit.pop("attached", None) for limit in group["limits"]]
        at = ", ".join(dict.fromkeys(filter(None, attached)))
        title = group["endpoint"] + (f"  (@limiter.group at {at})" if at else "")
        titles.setdefault(json.dumps(group["limits"], default=str), []).append(title)
    for number, (text, alike) in enumerate(titles.items()):
        click.echo(("\n" if number else "") + "\n".join(alike))
        limits = json.loads(text)
        if not limits:
            click.echo("  no limits")
            continue
        heads = [key for key in limits[0] if any(limit.get(key) for limit in limits)]
        table = [[str(listed(limit.get(key)) or "-") for key in heads] for limit in limits]
        echo_table(
            [f"  {heads[0].upper()}", *(h.upper().replace("_", " ") for h in heads[1:])],
            [[f"  {first}", *rest] for first, *rest in table],
        )
