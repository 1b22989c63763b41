"""How commands print answers that need more than a table, a list of fields or a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click
from flask import json

from chatapp.cli import output
from chatapp.ledger.reports import MICRO
from chatapp.operators.callers import name_of
from chatapp.operators.reports import counted
from chatapp.services import current_services
from ratelimit_ext.operators import NOT_SHARED, printable, span_text

RESTORE: Final = (
    "If the limits' storage has lost its data, `chat ledger restore` shows what is missing, and "
    "charges it with --apply."
)


def usage(answer: Mapping[str, Any]) -> None:
    """Print what a caller has spent, and what is left of each limit until it is full again."""
    names = ("name", "limit", "remaining", "unit", "share", "forecast")
    rows = [
        {n: row.get(n) for n in names} | {"full again": span_text(int(row["reset_after"] * 1e6))}
        for row in answer["limits"] or ()
    ]
    call({**answer, "limits": rows})
    if answer["limits"] is None:
        click.echo(f"The limits are missing. {NOT_SHARED}", err=True)


def traffic(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line each, as `flask ratelimit simulate` and `suggest` read them."""
    for row in rows:
        click.echo(json.dumps(row, sort_keys=False))


def findings(answer: Mapping[str, Any]) -> None:
    """Print the problems on standard error, and what was checked."""
    if answer["differ"]:
        click.echo(RESTORE, err=True)
    for row in answer["spent"]:
        click.echo(f"{row['month']}  {printable(row['user'])}  {row['cost_usd']:.6f} USD")
    problems: list[str] = answer["problems"]
    since = current_services().catalogue.priced_since.date()
    click.echo(
        f"{counted(answer['calls'], 'call')}, {answer['running']} running, {answer['unpriced']} "
        f"from before the prices of {since} (their costs were not checked); {answer['limits']}; "
        f"{counted(len(problems), 'problem')}."
    )
    for problem in problems:
        click.echo(printable(problem), err=True)


def differences(answer: Mapping[str, Any]) -> None:
    """Days and models that differ by more than rounding, the sums, and problems."""
    rows = [row for row in answer["days"] if row["causes"].keys() - {"rounding"}]
    amounts = [f"{of}_{unit}" for unit in ("tokens", "usd") for of in ("ledger", "reported")]
    output.echo_table_of(rows, columns=["day", "model", *amounts, "causes"], empty="None differs.")
    output.echo_fields({name: value for name, value in answer.items() if name.endswith("_usd")})
    for problem in answer["problems"]:
        click.echo(printable(problem), err=True)


def missing(answer: Mapping[str, Any]) -> None:
    """Limits that count less than the ledger has, and what comes next."""
    limits, names, rows = answer["limits"], ("counts", "ledger", "missing"), []
    for limit in limits:
        units = [f"{n / MICRO:.6f}" if limit["unit"] == "usd" else n for n in limit["usage"]]
        rows.append({**limit, **dict(zip(names, units, strict=True))})
    columns = ("identity", "limit", "unit", *names)
    output.echo_table_of(rows, columns=columns, empty="No limit counts less than the ledger.")
    if limits:
        end = "charged." if answer["applied"] else "to charge. Nothing was changed; use --apply."
        click.echo(f"{counted(len(limits), 'limit')} {end}")


def imported(answer: Mapping[str, Any]) -> None:
    """With keys, these alone on standard output."""
    if keys := answer["keys"]:
        output.echo_csv(("user", "key"), keys.items())
    click.echo(answer["done"], err=bool(keys))


def teams(rows: Sequence[Mapping[str, Any]]) -> None:
    """With the shares of members, if there are any."""
    shown = []
    for row in rows:
        shares = row.get("shares", ())
        texts = {f"{name_of(each['identity'])} {each['limit']}": each["text"] for each in shares}
        shown.append({**row, "shares": texts})
    output.echo_table_of(shown, columns=("team", "limits", "users", "shares?", "ahead?"))


def call(answer: Mapping[str, Any]) -> None:
    """Print a call, and below it a table of its limits."""
    output.echo_fields({**answer, "limits": None})
    if answer["limits"]:
        click.echo()
        output.echo_table_of(answer["limits"])


PRESENTERS: Final[Mapping[str, Callable[[Any], None]]] = {
    "get_call": call,
    "get_usage": usage,
    "list_traffic": traffic,
    "check_ledger": findings,
    "reconcile_ledger": differences,
    "restore_limits": missing,
    "import_users": imported,
    "list_teams": teams,
}
