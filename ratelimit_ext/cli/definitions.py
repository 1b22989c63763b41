"""``flask ratelimit check`` and ``show``: which limits there are, and where each is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from flask.cli import with_appcontext

from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.operators.operators import all_operators
from ratelimit_ext.operators.texts import listed, span_text
from ratelimit_ext.terminal import echo_json, echo_table, with_json
from ratelimit_ext.web.inventory import Row


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
    policy = checked.policy
    # Limits of app.config are checked, too, and are not of the file.
    places = [limit.place for limit in policy.all_limits()]
    count = sum(place is not None and not place.origin.python for place in places)
    if as_json:
        shown = {"file": str(checked.file), "limits": count, "plans": [*policy.plans]}
        echo_json({**shown, "warnings": list(checked.warnings)})
        return
    plans = ", ".join(policy.plans) or "none"
    limits = "1 limit" if count == 1 else f"{count} limits"
    click.echo(f"{checked.file} is valid: {limits}; plans: {plans}.")
    for warning in checked.warnings:
        click.echo(f"Warning: {warning}")


@click.command()
@with_appcontext
@click.option("--endpoint", help="Only the limits of this endpoint.")
@with_json
def show(endpoint: str | None, *, as_json: bool) -> None:
    """List every endpoint with its limits, and where each is written.

    Endpoints that have the same limits are listed together.
    """
    limits_of: dict[str, list[dict[str, Any]]] = {}
    operators = all_operators()
    words = operators.limit_keywords
    for group, found in operators.groups(endpoint or ""):
        shown = limits_of.setdefault(group.title, [])
        shown += [
            _definition(each, words) if isinstance(each, Row) else _dynamic(each) for each in found
        ]
    if as_json:
        echo_json([{"endpoint": title, "limits": limits} for title, limits in limits_of.items()])
        return
    titles: dict[str, list[str]] = {}
    for title, limits in limits_of.items():
        titles.setdefault(json.dumps(limits, default=str), []).append(title)
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


def _definition(row: Row, words: Iterable[str]) -> dict[str, Any]:
    limit = row.limit
    name = f"{row.name} ({row.method})" if row.method else row.name
    return {
        "limit": name,
        "amount": str(row.runtime.limit),
        "strategy": limit.strategy,
        "burst": limit.burst,
        "key": row.key,
        "plan": row.plan or None,
        "mode": None if limit.mode == "enforce" else limit.mode,
        "keep": limit.keep_text or None,
        "wait": limit.wait and span_text(limit.wait),
        "fair": limit.fair_text or None,
        "candidate": limit.candidate and str(limit.outside(limit.candidate)),
        "optional": "yes" if row.is_optional else None,
        **{word: row.keywords.get(word) for word in words},
        "on_failure": row.on_failure,
        "source": _source(row.source),
    }


def _dynamic(definition: Any) -> dict[str, Any]:
    function = getattr(definition.limit_provider, "__name__", "a function")
    source = getattr(definition, "source", "")
    return {
        "limit": f"returned by {function}",
        "amount": "asked at each request",
        "source": _source(str(getattr(source, "located", source))),
    }


def _source(text: str) -> str:
    """Return a place, as a path from here if it lies below; of app.config, the key."""
    key = re.match(r'app\.config\["\w+"\]', text)
    return key[0] if key else text.removeprefix(f"{Path.cwd()}{os.sep}")
