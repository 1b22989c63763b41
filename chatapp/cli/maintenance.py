"""`chat providers` and `chat db`, and what `ratelimit check` checks of chatapp's policy."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext

from chatapp import catalogue, guards_file
from chatapp.catalogue import CatalogueError, providers_file
from chatapp.catalogue.maintained_list import PACKAGE, maintained_prices
from chatapp.cli import output
from chatapp.database import backup as backups
from chatapp.database import migration
from chatapp.operators import blocks
from chatapp.operators.keys import turn_accounts_off
from chatapp.operators.user_file import COLUMNS, exported
from chatapp.server.valid_files import POLICY, PROVIDERS, configured_file
from chatapp.services import current_services
from chatapp.upstreams.keys import Keys
from chatapp.web.identities import check_plans, without_plan
from chatapp.web.policy_keywords import without_effect
from ratelimit_ext import CheckedPolicy, OperatorError, toml_line
from ratelimit_ext.terminal import with_json

FILE = click.Path(dir_okay=False, path_type=Path)

db = AppGroup("db", help="Upgrade, back up and restore the database of accounts and ledger.")

prices = AppGroup("prices", help="Compare the prices of models with a maintained list.")


def checked_policy(file: Path | None) -> CheckedPolicy:
    """Return the policy of the file, or the configured one, with the guards and the plans of users.
    Raises ConfigurationError or SettingsError."""
    file = Path(file or current_app.config.get(POLICY) or configured_file(POLICY))
    services = current_services()
    with guards_file.added(current_app.config, file):
        checked = services.limiter.operators.check_policy_file(file)
    check_plans(services.settings.plans, tuple(checked.plans), policy_file=str(file))
    unlimited = without_plan(checked, guards_file.calls(current_app.view_functions))
    warnings = [*filter(None, [unlimited]), *without_effect(checked, services.catalogue)]
    return CheckedPolicy(checked, file, tuple(warnings))


@click.command("check")
@with_appcontext
@click.argument("file", required=False, type=FILE)
@with_json
def check_providers(file: Path | None, *, as_json: bool) -> None:
    """Check FILE, or the configured providers file.

    Prints every mistake with its line and exits with 1. In a valid file, it prints which keys are
    missing on this machine. It calls no upstream.
    """
    file = file or configured_file(PROVIDERS)
    try:
        upstreams = providers_file.read(file, toml_line)
        catalogue.load(upstreams=upstreams)
    except CatalogueError as mistakes:
        raise click.ClickException(str(mistakes)) from mistakes
    keys = {name: Keys(name, table.keys) for name, table in upstreams.upstreams.items()}
    shown = ", ".join(_shown(*item) for item in keys.items())
    facts = {n: {"keys": len(k.names), "missing": list(k.missing)} for n, k in keys.items()}
    output.echo_done(f"{file} is valid: {shown}.", as_json=as_json, file=str(file), upstreams=facts)


@prices.command("check")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@with_json
def check_prices(models: tuple[str, ...], *, as_json: bool) -> None:
    """Compare the prices of all models, or of each MODEL, with the package genai-prices.

    Prints what to write into the providers file for prices that differ and for models that are not
    listed. Exits with 1 if a price differs. Compare it with your contract before you use it.
    """
    services, now = current_services(), datetime.now(UTC)
    try:
        listed = list(maintained_prices(services.catalogue, now))
    except ImportError as error:
        raise OperatorError("no_list", f"{error}. Run: pip install {PACKAGE}") from error
    if unknown := set(models) - {price.name for price in listed}:
        raise OperatorError("unknown_model", f"{PACKAGE} has no {', '.join(sorted(unknown))}.")
    tariffs = services.catalogue.tariffs
    chosen = [price for price in listed if not models or price.name in models]
    absent = [price for price in chosen if price.is_new]
    differ = [p for p in chosen if not p.is_new and p.differs(tariffs[p.name])]
    equal = len(chosen) - len(differ) - len(absent)
    if as_json:
        names = {"differ": differ, "absent": absent}
        shown = {kind: [price.name for price in names[kind]] for kind in names}
        output.echo_json({"equal": equal, **shown})
    else:
        tables = "\n".join(price.table() for price in (*differ, *absent))
        click.echo(f"version = 1\nas_of = {now:%Y-%m-%d}\n\n{tables}" if tables else "", nl=False)
        done = f"{equal} equal, {len(differ)} different, {len(absent)} not listed here."
        click.echo(done, err=True)
    if differ:
        raise click.exceptions.Exit(1)


def _shown(name: str, keys: Keys) -> str:
    """Return an upstream with its keys: "azure (2 keys, AZURE_KEY_2 is missing)"."""
    count = f"{len(keys.names)} key{'s' * (len(keys.names) != 1)}"
    missing = [f"{variable} is missing" for variable in keys.missing]
    return f"{name} ({', '.join([count, *missing])})"


@click.command("export")
@with_appcontext
@with_json
def export_users(*, as_json: bool) -> None:
    """Print all users as CSV, in the form that `import` reads."""
    rows = [exported(user) for user in current_services().accounts.users()]
    if as_json:
        output.echo_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    else:
        output.echo_csv(COLUMNS, rows)


@db.command()
@with_json
def upgrade(*, as_json: bool) -> None:
    """Upgrade the schema to this version. You may run it repeatedly and concurrently."""
    changed = migration.upgrade(current_services().database)
    state = "is now at" if changed else "was already at"
    done = f"The schema {state} {migration.HEAD}."
    output.echo_done(done, as_json=as_json, schema=migration.HEAD, changed=changed)


@db.command()
@click.argument("file", type=FILE)
@with_json
def backup(file: Path, *, as_json: bool) -> None:
    """Write a consistent copy of the SQLite database to FILE, while workers use it.

    The copy is checked before it replaces a former backup in FILE.
    """
    made = backups.backup(current_services().database, file)
    done = f"{file} has {made}; schema {made.schema}."
    output.echo_done(done, as_json=as_json, file=str(file), **asdict(made))


@db.command()
@click.argument("file", type=FILE)
@click.option("--without-keys", is_flag=True, help="Restore even if that turns accounts off.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@with_json
def restore(file: Path, *, without_keys: bool, yes: bool, as_json: bool) -> None:
    """Replace the SQLite database with the backup in FILE. Workers may keep running.

    The backup is checked first: it must be complete, have a schema that this version knows, and not
    turn accounts off. The old database is kept beside it.
    """
    contents = backups.contents_of(file)
    if not yes:
        click.confirm(f"{file} has {contents}. Replace the database?", abort=True, err=True)
    services = current_services()
    valid = services.accounts.valid_keys()
    kept = backups.restore(services.database, file, without_keys=without_keys)
    for public_id in services.accounts.valid_keys() - valid:
        blocks.release_key(public_id)
    if not contents.keys:
        turn_accounts_off(reason=f"restored {file.name}", by="")
    state = "on" if contents.keys else "off"
    done = (
        f"Restored {contents}; accounts are {state}. The old database is {kept}. Compare the "
        "limits with `chat ledger check`."
    )
    output.echo_done(done, as_json=as_json, kept=str(kept), accounts=state, **asdict(contents))
