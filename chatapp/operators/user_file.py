"""Users as CSV: a file that creates and changes many at once."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from chatapp.accounts import EVERYONE
from chatapp.accounts.store import User, UserChange
from chatapp.operators import arguments, callers, spreadsheet
from chatapp.operators.amounts import checked, fit
from chatapp.services import current_services
from ratelimit_ext import OperatorError

COLUMNS: Final = ("user", "plan", "team", "limits")
MOST_LINES: Final = 100_000


def import_users(
    file: Iterable[str],
    *,
    dry_run: bool,
    with_keys: bool,
    watched: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    reason: str,
    by: str,
) -> tuple[dict[str, Any], Sequence[str]]:
    """Return who was created and changed, with the keys of new users; and the mistakes, each with
    its line. With mistakes nothing was changed."""
    accounts = current_services().accounts
    present = {user.name: user for user in accounts.users()}
    changes, mistakes = _read(file, present, {team.name for team in accounts.teams()})
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' * (len(mistakes) != 1)}"
        return {"done": f"{count} in csv; nothing was changed."}, mistakes
    new = [change.name for change in changes if change.name not in present]
    changed = [c.name for c in changes if c.name in present and _differs(c, present[c.name])]
    made = {}
    if not dry_run:
        default = current_services().default_plan
        made = accounts.import_users(watched(changes), default_plan=default, with_keys=with_keys)
        kept = [c.name for c in changes if c.name in present and "limits" not in c.values]
        fit({name: present[name] for name in kept}, by=by)
    keys = {name: key.text for name, key in made.items() if key is not None}
    if not dry_run and (new or changed):
        counts = f"{len(new)} created, {len(changed)} changed, {len(keys)} keys"
        callers.note("import-users", EVERYONE, reason=reason or counts, by=by)
    unchanged = len(changes) - len(new) - len(changed)
    what = "Users (dry run)" if dry_run else "Users"
    done = f"{what}: {len(new)} created, {len(changed)} changed, {unchanged} unchanged."
    facts = {"created": new, "changed": changed, "dry_run": dry_run, "keys": keys}
    return {**facts, "done": done}, ()


def columns(file: Iterable[str]) -> list[str]:
    """Return the columns of a file; none if it does not begin as CSV."""
    with suppress(csv.Error):
        return _heads(next(csv.reader(file, strict=True), []))
    return []


def exported(user: User) -> tuple[str, ...]:
    limits = "; ".join(f"{name}={amount}" for name, amount in (user.limits or {}).items())
    return user.name, user.plan, user.team_name or "", limits


def _heads(row: Iterable[str]) -> list[str]:
    return [head.strip().lower() for head in row]


def _differs(change: UserChange, user: User) -> bool:
    return any(getattr(user, name) != value for name, value in change.values.items())


def _read(
    file: Iterable[str], users: Mapping[str, User], teams: set[str]
) -> tuple[list[UserChange], list[str]]:
    """Return what the file says of users, and all its mistakes, each with its line."""
    changes: list[UserChange] = []
    mistakes: list[str] = []
    reader = csv.DictReader(file, strict=True)
    try:
        heads = _heads(reader.fieldnames or ())
        unknown = [head for head in heads if head not in COLUMNS]
        if unknown or "user" not in heads or len(set(heads)) < len(heads):
            mistakes.append(
                f"line 1: found the columns {', '.join(heads) or 'none'}; allowed: user and any of "
                "plan, team, limits, each once, with commas between them."
            )
            return changes, mistakes
        reader.fieldnames = heads
        lines: dict[str, int] = {}
        for row in reader:
            line = reader.line_num
            change, wrong = _read_line(row, users, teams)
            if change is not None:
                changes.append(change)
                if (first := lines.setdefault(change.name, line)) != line:
                    wrong.insert(0, f"user: {change.name!r} is also in line {first}")
            mistakes += [f"line {line}: {mistake}" for mistake in wrong]
            if len(lines) > MOST_LINES:
                mistakes.append(f"There are more than {MOST_LINES} users; split the file.")
                break
    except csv.Error as error:
        mistakes.append(f"line {reader.line_num + 1}: is not valid CSV: {error}")
    return changes, mistakes


def _read_line(
    row: Mapping[Any, Any], users: Mapping[str, User], teams: set[str]
) -> tuple[UserChange | None, list[str]]:
    """Return what a line says of a user, and its mistakes."""
    wrong: list[str] = []
    if None in row or None in row.values():
        return None, ["more or fewer cells than columns. Quote cells with commas."]
    cells = {name: spreadsheet.read(text.strip()) for name, text in row.items()}
    try:
        name = arguments.new_user(cells["user"])
    except OperatorError as error:
        return None, [f"user: {error}"]
    user = users.get(name)
    defined, default = current_services().plans, current_services().default_plan
    plan = cells.get("plan") or (user.plan if user else default)
    values: dict[str, Any] = {"plan": plan}
    if cells.get("plan") and plan not in defined:
        wrong.append(f"plan: unknown plan {plan!r}; choose one of {', '.join(defined)}")
    if "team" in cells:
        values["team_name"] = team = cells["team"] or None
        if team is not None and team not in teams:
            wrong.append(f"team: there is no team {team!r}; `chat teams create` creates it")
    if "limits" in cells:
        parts = [part for part in cells["limits"].split(";") if part.strip()]
        try:
            amounts = [arguments.own_limit(part) for part in parts]
            values["limits"] = checked("user", amounts, plan=plan) or None
        except OperatorError as error:
            wrong.append(f"limits: {error}")
    return UserChange(name, values), wrong
