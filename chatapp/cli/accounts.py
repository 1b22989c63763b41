"""`chat keys`, `chat plans`, `chat users` and `chat teams`: who may call, and on which plan."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, Final, TextIO

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.people import HEADERS, MOST_NEW, People
from chatapp.accounts.store import ApiKey, Owner, UnknownKeyError
from chatapp.cli import arguments, output
from chatapp.cli.arguments import with_overlap
from chatapp.operators import amounts as known_amounts
from chatapp.operators import keys as known_keys
from chatapp.operators import user_file
from chatapp.operators import users as known_users
from chatapp.operators.amounts import (
    OwnersAmounts,
    ahead_text,
    checked,
    listed,
    share_text,
    shares,
)
from chatapp.operators.callers import name_of
from chatapp.operators.keys import PLAN, people_of, state_of
from chatapp.operators.user_file import COLUMNS, exported
from chatapp.services import current_services
from chatapp.web.allowed_models import unknown
from ratelimit_ext import OperatorError
from ratelimit_ext.terminal import echo_json, echo_table, with_json

HEADS: Final = ("ID", "USER", "NAME", "CREATED", "LAST USED", "STATE")
LIMIT_HELP: Final = (
    'An amount in place of the policy\'s, as in "usd-day=20 usd/day"; may be repeated.'
)
MODEL_HELP: Final = 'Allow only this model, or these, as in "gpt-5*"; may be repeated.'


def acts_for_users(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a key that acts for users; the command gets them as ``people``."""

    @click.option(
        "--user-header",
        "headers",
        type=arguments.HEADER,
        multiple=True,
        help="The header that names the user; may be repeated. Default: Open WebUI's.",
    )
    @click.option("--user-in-body", is_flag=True, help="The body's user names the user.")
    @click.option("--plan-of-new", help="The plan of new users; default: that of the key.")
    @click.option(
        "--most-new",
        type=click.IntRange(1, 100_000),
        help=f"How many new users the key may bring in an hour; default {MOST_NEW}.",
    )
    @wraps(command)
    def with_people(
        *args: Any,
        headers: tuple[str, ...],
        user_in_body: bool,
        plan_of_new: str | None,
        most_new: int | None,
        **others: Any,
    ) -> None:
        if headers and user_in_body:
            raise click.UsageError("Give --user-header or --user-in-body, not both.")
        named_by = () if user_in_body else headers or HEADERS
        command(*args, people=People(named_by, plan_of_new, most_new or MOST_NEW), **others)

    return with_people


keys = AppGroup("keys", help="Create, list, change and revoke API keys.")
plans = AppGroup("plans", help="List plans, and change the plan of a user.")
users = AppGroup("users", help="List, import and export users; change their teams and amounts.")
teams = AppGroup("teams", help="Create and list teams, and change their budgets.")


def add_amounts(group: AppGroup, owner: Owner) -> None:
    """Add `set-amount` and `clear-amount` to the commands of that kind of owner."""

    @group.command("set-amount")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    @click.argument("amount")
    @output.changes
    def set_amount(
        *, limit: str, amount: str, reason: str, by: str, as_json: bool, **named: str
    ) -> None:
        """Set the amount of LIMIT, as in "20 usd/day"; usage is kept.

        The account keeps it. For some time alone, use `flask ratelimit override set`, which
        comes before it.
        """
        name, why = known_amounts.named(owner, named[owner]), {"reason": reason, "by": by}
        done = known_amounts.set_amount(owner, name, limit, amount, until=None, **why)
        facts = {owner: name, "limit": limit, "amount": amount}
        output.echo_done(done, as_json=as_json, **facts)

    @group.command("clear-amount")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    @output.changes
    def clear_amount(*, limit: str, reason: str, by: str, as_json: bool, **named: str) -> None:
        """Remove the amount of LIMIT, and its override; the policy's applies again.

        An optional limit no longer applies then.
        """
        name = known_amounts.named(owner, named[owner])
        done = known_amounts.clear_amount(owner, name, limit, reason=reason, by=by)
        output.echo_done(done, as_json=as_json, **{owner: name}, limit=limit)


add_amounts(keys, "key")
add_amounts(users, "user")
add_amounts(teams, "team")


# -- keys --------------------------------------------------------------------------------------


@keys.command("create")
@click.option("--user", type=arguments.NEW_USER, required=True, help="The user of the key.")
@click.option("--plan", help="The plan of a new user.")
@click.option("--team", type=arguments.TEAM, help="The team of a new user.")
@click.option("--name", type=arguments.KEY_NAME, default="key", help="A name for the key.")
@click.option("--expires", type=arguments.END, help="When it expires: 90d, 2026-11-27.")
@click.option("--limit", "limits", type=arguments.OWN_LIMIT, multiple=True, help=LIMIT_HELP)
@click.option("--model", "models", type=arguments.MODELS, multiple=True, help=MODEL_HELP)
@click.option("--acts-for-users", is_flag=True, help="The key's requests name other users.")
@acts_for_users
@output.changes
def create_key(  # noqa: PLR0913 - one for each option
    *,
    user: str,
    plan: str | None,
    team: str | None,
    name: str,
    expires: datetime | None,
    limits: tuple[tuple[str, str], ...],
    models: tuple[str, ...],
    acts_for_users: bool,
    people: People,
    as_json: bool,
    **why: str,
) -> None:
    """Create a key and print it, this one time.

    With --acts-for-users it is for a program with users of its own, such as Open WebUI: each has a
    plan, budgets and a part of the ledger here.

    The first key turns accounts on: from then on every request needs a key.
    """
    services = current_services()
    is_first = not services.accounts.any_key()
    if not acts_for_users and people != People():
        raise click.UsageError("Add --acts-for-users: other options are about such a key.")
    made = known_keys.create_key(
        user,
        plan=plan,
        team=team,
        name=name,
        expires_at=expires,
        limits=limits,
        models=models,
        people=people if acts_for_users else None,
        **why,
    )
    for pattern in unknown(models, services.catalogue):
        click.echo(
            f"No model of models.toml matches {pattern!r}. Unless an upstream serves one, the key "
            "has no use for that name; revoke it and create another if it is misspelt.",
            err=True,
        )
    if as_json:
        end = None if expires is None else expires.isoformat(timespec="seconds")
        echo_json({"key": made.text, "id": made.public_id, "user": user, "expires": end})
        return
    # The key alone on standard output, for scripts.
    click.echo(made.text)
    until = "without expiry" if expires is None else f"until {expires:%Y-%m-%d}"
    click.echo(f"Key {made.public_id} of {user}, {until}. It is shown only this once.", err=True)
    if is_first:
        click.echo("Accounts are on: every request now needs a key.", err=True)


@keys.command("list")
@click.option("--user", type=arguments.USER, help="Only keys of this user.")
@with_json
def list_keys(user: str | None, *, as_json: bool) -> None:
    """List keys, without their secrets."""
    name = None if user is None else name_of(user)
    accounts = current_services().accounts
    found = [key for key in accounts.all_keys() if name in {None, key.user}]
    if not found and accounts.any_key():
        raise OperatorError("unknown_user", f"There is no key of user {name!r}.")
    amounts = OwnersAmounts()
    if as_json:
        echo_json([known_keys.as_json(key, amounts) for key in found])
        return
    if not found:
        click.echo("There are no keys yet; `chat keys create --user NAME` creates one.", err=True)
        return
    echo_table(HEADS, [_row(key, amounts) for key in found])


@keys.command()
@click.argument("key")
@with_overlap
@output.changes
def rotate(key: str, overlap: timedelta, *, as_json: bool, **why: str) -> None:
    """Create a key like KEY and print it, this one time; KEY expires after the overlap.

    The new key has the same user, name, amounts, models, files, class and end, and budgets of its
    own. Blocks and overrides of KEY do not apply to it.
    """
    public_id = public_id_of(key)
    made, old, end = known_keys.rotate_key(public_id, overlap=overlap, **why)
    assert old.expires_at is not None
    if as_json:
        replaced = {"id": public_id, "expires": old.expires_at.isoformat(timespec="seconds")}
        echo_json({"key": made.text, "id": made.public_id, "user": old.user, "replaces": replaced})
        return
    click.echo(made.text)
    click.echo(
        f"Key {made.public_id} of {old.user} replaces {public_id}, which {end}. "
        "The new key is shown only this once.",
        err=True,
    )


@keys.command()
@click.argument("keys", metavar="[KEY...]", nargs=-1)
@click.option("--user", type=arguments.USER, help="Revoke all keys of this user.")
@output.changes
def revoke(keys: tuple[str, ...], *, user: str | None, as_json: bool, **why: str) -> None:
    """Revoke each KEY: its public part, or the whole key. If one is unknown, none is revoked.

    No worker accepts a call with it then, or within 5 s if the command cannot reach the limits.
    """
    if bool(keys) == bool(user):
        raise click.UsageError("Name the keys, or a user by --user.")
    accounts = current_services().accounts
    public_ids = list(dict.fromkeys(map(public_id_of, keys)))
    if user:
        public_ids = known_keys.usable_keys(name_of(user))
    unknown = next((each for each in public_ids if accounts.find(each) is None), None)
    if unknown is not None:
        raise UnknownKeyError(unknown)
    done = [known_keys.revoke_key(each, **why) for each in public_ids]
    if as_json:
        echo_json(
            [
                {"id": key.public_id, "user": key.user, "immediate": is_immediate}
                for key, _, is_immediate in done
            ]
        )
        return
    for each in done:
        click.echo(each.sentence)
    if not done:
        click.echo("There is no key to revoke.")


@keys.command("off")
@output.changes
def turn_off(*, as_json: bool, **why: str) -> None:
    """Serve without keys again, after the database was replaced by one that has none.

    Until then the server refuses all requests, as a lost database must not open it.
    """
    known_keys.turn_accounts_off(**why)
    output.echo_done("Accounts are off; no request needs a key.", as_json=as_json, accounts="off")


@keys.command("set-models")
@click.argument("key")
@click.argument("models", type=arguments.MODELS, nargs=-1)
@output.changes
def set_models(key: str, models: tuple[str, ...], *, as_json: bool, **why: str) -> None:
    """Allow KEY only MODELS, as in "gpt-5*"; without any, all.

    What its plan does not allow stays forbidden.
    """
    public_id = public_id_of(key)
    done = known_keys.set_models(public_id, models, **why)
    output.echo_done(done, as_json=as_json, id=public_id, models=list(models))


@keys.command("set-files")
@click.argument("key")
@click.argument("files", type=click.Choice(["on", "off"]))
@output.changes
def set_files(key: str, files: str, *, as_json: bool, **why: str) -> None:
    """Let KEY name files that the providers keep, or not.

    All uploads of this server's key can be named: they are not any one caller's.
    """
    public_id, allowed = public_id_of(key), files == "on"
    done = known_keys.set_files(public_id, allowed=allowed, **why)
    output.echo_done(done, as_json=as_json, id=public_id, files=allowed)


@keys.command("set-people")
@click.argument("key")
@click.argument("right", metavar="on|off", type=click.Choice(["on", "off"]))
@acts_for_users
@output.changes
def set_people(key: str, right: str, *, people: People, as_json: bool, **why: str) -> None:
    """Let KEY act for the users that its requests name, or for its own user alone.

    It can then spend the budget of any user: give it only to a program that knows its users.
    """
    named = people if right == "on" else None
    done = known_keys.set_people(key, named, **why)
    shown = named and named.as_row()
    output.echo_done(done, as_json=as_json, id=public_id_of(key), people=shown)


@keys.command("set-class")
@click.argument("key")
@click.argument("name", metavar="CLASS", type=arguments.TRAFFIC_CLASS)
@output.changes
def set_class(key: str, name: str, *, as_json: bool, **why: str) -> None:
    """Give KEY a class of traffic, as batch; "plan" is that of its plan.

    Limits with `keep` leave a part of their amount to higher classes.
    """
    public_id, own = public_id_of(key), None if name == PLAN else name
    done = known_keys.set_class(public_id, own, **why)
    output.echo_done(done, as_json=as_json, id=public_id, **{"class": own})


def _row(key: ApiKey, amounts: OwnersAmounts) -> tuple[str, ...]:
    used = str(key.last_used_on) if key.last_used_on else "never"
    limits = listed(amounts.of("key", key.public_id, key.limits))
    files = "files" if key.files else ""
    own_class = f"class {key.traffic_class}" if key.traffic_class else ""
    people = people_of(People.from_row(key.people))
    bound = f"only in the team {key.bound_team}" if key.bound_team else ""
    facts = (state_of(key), limits, _models(key), files, own_class, people, bound)
    state = "; ".join(filter(None, facts))
    return key.public_id, key.user, key.name, f"{key.created_at:%Y-%m-%d}", used, state


def _models(key: ApiKey) -> str:
    return f"models {', '.join(key.models)}" if key.models else ""


# -- plans -------------------------------------------------------------------------------------


@plans.command("set")
@click.argument("user", type=arguments.USER)
@click.argument("plan")
@output.changes
def set_plan(user: str, plan: str, *, as_json: bool, **why: str) -> None:
    """Change the plan of USER to PLAN; usage is kept."""
    user = name_of(user)
    done = known_users.set_plan(user, plan, **why)
    output.echo_done(done, as_json=as_json, user=user, plan=plan)


@plans.command("list")
@with_json
def list_plans(*, as_json: bool) -> None:
    """List the plans of the policy, each with its users."""
    services, found = current_services(), known_users.plans()
    if as_json:
        echo_json(found)
        return
    instead = f"; its users get {services.default_plan}" if services.plans else ""
    for each in found:
        unknown = "" if each["defined"] else f" (not in the policy{instead})"
        click.echo(f"{each['plan']}{unknown}: {', '.join(each['users']) or 'no users'}")


# -- users -------------------------------------------------------------------------------------


@users.command("list")
@click.option("--key", help="Only users whom this key was the first to name.")
@with_json
def list_users(key: str | None, *, as_json: bool) -> None:
    """List the users with their plans, teams and amounts."""
    brought_by = key and public_id_of(key)
    everyone = current_services().accounts.users()
    found = [user for user in everyone if brought_by in {None, user.brought_by}]
    amounts = OwnersAmounts()
    output.echo_rows(
        [list(known_users.as_json(user, amounts).values()) for user in found],
        ("USER", "PLAN", "TEAM", "LIMITS", "STATE"),
        as_json=as_json,
        empty="There are no users yet; `chat keys create --user NAME` creates one.",
    )


@users.command("set-team")
@click.argument("user", type=arguments.USER)
@click.argument("team", type=arguments.TEAM)
@output.changes
def set_team(user: str, team: str, *, as_json: bool, **why: str) -> None:
    """Move USER to TEAM.

    Calls from then on count toward its budgets.
    """
    done = known_users.set_team(name_of(user), team, **why)
    output.echo_done(done, as_json=as_json, user=name_of(user), team=team)


@users.command("clear-team")
@click.argument("user", type=arguments.USER)
@output.changes
def clear_team(user: str, *, as_json: bool, **why: str) -> None:
    """Remove USER from their team."""
    done = known_users.set_team(name_of(user), None, **why)
    output.echo_done(done, as_json=as_json, user=name_of(user), team=None)


@users.command()
@click.argument("user", type=arguments.USER)
@output.changes
def deactivate(user: str, *, as_json: bool, **why: str) -> None:
    """Refuse all keys of USER until `activate`: those on leave, say.

    Their plan, team, amounts and keys stay. Running calls continue.
    """
    done = known_users.deactivate(name_of(user), **why)
    output.echo_done(done, as_json=as_json, user=name_of(user), active=False)


@users.command()
@click.argument("user", type=arguments.USER)
@output.changes
def activate(user: str, *, as_json: bool, **why: str) -> None:
    """Accept the keys of USER again."""
    done = known_users.activate(name_of(user), **why)
    output.echo_done(done, as_json=as_json, user=name_of(user), active=True)


@users.command("delete")
@click.argument("user", type=arguments.USER)
@click.option("--yes", is_flag=True, help="Do not ask.")
@output.changes
def delete_user(user: str, *, yes: bool, as_json: bool, **why: str) -> None:
    """Delete USER with their keys, amounts and overrides, for good.

    The ledger keeps their calls for accounting, and limits what they have counted: a new user of
    the same name inherits both.
    """
    name = name_of(user)
    if not yes:
        click.confirm(f"Delete {name} and all their keys for good?", abort=True, err=True)
    done = known_users.delete(name, **why)
    output.echo_done(done, as_json=as_json, user=name)


@users.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8-sig"))
@click.option("--dry-run", is_flag=True, help="Check the file and say what would change.")
@click.option("--keys", "with_keys", is_flag=True, help="Create a key for each new user.")
@output.changes
def import_users(
    file: TextIO, *, dry_run: bool, with_keys: bool, as_json: bool, **why: str
) -> None:
    """Create and change users by FILE (- is standard input), all or none.

    It is CSV with the column user and any of plan, team and limits, as in "usd-day=20 usd/day;
    plan=50/day". An empty cell removes the team or the amounts, and keeps the plan; a missing
    column changes nothing. With --keys, the keys are printed as CSV, this one time.
    """
    name = getattr(file, "name", "-")
    done = user_file.import_users(file, name=name, dry_run=dry_run, with_keys=with_keys, **why)
    if done.mistakes:
        for mistake in done.mistakes:
            click.echo(mistake, err=True)
        raise click.ClickException(done.sentence)
    if as_json:
        echo_json(done.facts)
        return
    made = done.facts["keys"]
    if made:
        output.echo_csv(("user", "key"), made.items())
    click.echo(done.sentence, err=bool(made))  # the keys alone on standard output


@users.command("export")
@with_json
def export_users(*, as_json: bool) -> None:
    """Print all users as CSV, as `import` takes it."""
    found = current_services().accounts.users()
    if as_json:
        echo_json([dict(zip(COLUMNS, exported(user), strict=True)) for user in found])
        return
    output.echo_csv(COLUMNS, map(exported, found))


# -- teams -------------------------------------------------------------------------------------


@teams.command("create")
@click.argument("name", metavar="TEAM", type=arguments.TEAM)
@click.option("--limit", "limits", type=arguments.OWN_LIMIT, multiple=True, help=LIMIT_HELP)
@output.changes
def create_team(
    name: str, limits: tuple[tuple[str, str], ...], *, as_json: bool, **why: str
) -> None:
    """Create TEAM, without members."""
    amounts = checked("team", limits, plan=None)
    done = known_users.create_team(name, amounts=amounts, **why)
    output.echo_done(done, as_json=as_json, team=name, limits=amounts)


@teams.command("list")
@with_json
def list_teams(*, as_json: bool) -> None:
    """List the teams with their budgets and members."""
    accounts = current_services().accounts
    found, everyone = accounts.teams(), accounts.users()
    amounts = OwnersAmounts()
    rows, is_fair = [], False
    for team in found:
        users = [user.name for user in everyone if user.team_name == team.name]
        states = shares(team.name, users)
        is_fair = is_fair or bool(states)
        of_users: object = {f"{name_of(e.identity)} {e.row.name}": share_text(e) for e in states}
        of_users = [each.as_json() for each in states] if as_json else of_users
        limits = amounts.of("team", team.name, team.limits)
        rows.append((team.name, limits, users, of_users, ahead_text(states)))
    heads = ("TEAM", "LIMITS", "USERS", "SHARES", "AHEAD")[: 5 if is_fair else 3]
    output.echo_rows(
        [row[: len(heads)] for row in rows],
        heads,
        as_json=as_json,
        empty="There are no teams yet; `chat teams create NAME` creates one.",
    )
