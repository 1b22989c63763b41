"""`chat users import` and `chat users export`: users as CSV. See chatapp/operators/user_file.py."""

from __future__ import annotations

from typing import TextIO

import click
from flask.cli import AppGroup, with_appcontext

from chatapp.cli import output
from chatapp.operators import user_file
from chatapp.operators.user_file import COLUMNS, exported
from chatapp.services import current_services
from ratelimit_ext.terminal import by_operator, echo_json, with_json


def add_commands(group: AppGroup) -> None:
    """Add `import` and `export` to the commands of users."""
    group.add_command(import_users)
    group.add_command(export_users)


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8-sig"))
@click.option("--dry-run", is_flag=True, help="Check the file and say what would change.")
@click.option("--keys", "with_keys", is_flag=True, help="Create a key for each new user.")
@by_operator
@with_json
@with_appcontext
def import_users(
    file: TextIO, *, dry_run: bool, with_keys: bool, reason: str, by: str, as_json: bool
) -> None:
    """Create and change users by FILE (- is standard input), all or none.

    It is CSV with the column user and any of plan, team and limits, as in "usd-day=20 usd/day;
    plan=50/day". An empty cell removes the team or the amounts, and keeps the plan; a missing
    column changes nothing. With --keys, the keys are printed as CSV, this one time.
    """
    done = user_file.import_users(
        file,
        name=getattr(file, "name", "-"),
        dry_run=dry_run,
        with_keys=with_keys,
        reason=reason,
        by=by,
    )
    if done.mistakes:
        for mistake in done.mistakes:
            click.echo(mistake, err=True)
        raise click.ClickException(done.sentence)
    if as_json:
        echo_json(done.as_json())
        return
    if done.keys:
        output.echo_csv(("user", "key"), done.keys.items())
    click.echo(done.sentence, err=bool(done.keys))  # the keys alone on standard output


@click.command("export")
@with_json
@with_appcontext
def export_users(*, as_json: bool) -> None:
    """Print all users as CSV, as `import` takes it."""
    found = current_services().accounts.users()
    if as_json:
        echo_json([dict(zip(COLUMNS, exported(user), strict=True)) for user in found])
        return
    output.echo_csv(COLUMNS, map(exported, found))
