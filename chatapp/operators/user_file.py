"""Users as CSV: a file that creates and changes many at once."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from chatapp.accounts import EVERYONE
from chatapp.accounts.store import User, UserChange
from chatapp.operators import arguments, callers, spreadsheet
from chatapp.operators.amounts import checked, fit
from chatapp.services import current_services
from ratelimit_ext import OperatorError

COLUMNS: Final = ("user", "plan", "team", "limits")
MOST_LINES: Final = 100_000


@dataclass(slots=True)
class _UserFile:
    """What a file says, and what is wrong with it, each mistake with its line."""

    changes: list[UserChange] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """Who was created and changed, with the keys of new users; or the mistakes, each with its
    line, and then nothing was changed."""

    sentence: str
    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    dry_run: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        names = ("created", "changed", "dry_run", "keys")
        return {each: getattr(self, each) for each in names}


def import_users(
    file: Iterable[str], *, name: str, dry_run: bool, with_keys: bool, reason: str, by: str
) -> Import:
    """Create and change users by the lines of a file, all or none."""
    accounts = current_services().accounts
    known = {user.name: user for user in accounts.users()}
    read = _read(file, known, {team.name for team in accounts.teams()})
    if read.mistakes:
        count = f"{len(read.mistakes)} mistake{'s' * (len(read.mistakes) != 1)}"
        done = f"{count} in {name}; nothing was changed."
        return Import(sentence=done, dry_run=dry_run, mistakes=read.mistakes)
    new = [change.name for change in read.changes if change.name not in known]
    changed = [c.name for c in read.changes if c.name in known and _differs(c, known[c.name])]
    made = {}
    if not dry_run:
        made = accounts.import_users(
            read.changes,
            default_plan=current_services().default_plan,
            with_keys=with_keys,
        )
        kept = [c.name for c in read.changes if c.name in known and "limits" not in c.values]
        fit({name: known[name] for name in kept}, by=by)
    keys = {name: key.text for name, key in made.items() if key is not None}
    if not dry_run and (new or changed):
        counts = f"{len(new)} created, {len(changed)} changed, {len(keys)} keys"
        callers.note("import-users", EVERYONE, reason=reason or counts, by=by)
    unchanged = len(read.changes) - len(new) - len(changed)
    what = "Users (dry run)" if dry_run else "Users"
    done = f"{what}: {len(new)} created, {len(changed)} changed, {unchanged} unchanged."
    return Import(sentence=done, created=new, changed=changed, dry_run=dry_run, keys=keys)


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


def _read(file: Iterable[str], known: Mapping[str, User], teams: set[str]) -> _UserFile:
    """Return what the file says of users. All its mistakes are found, not only the first."""
    found = _UserFile()
    reader = csv.DictReader(file, strict=True)
    try:
        heads = _heads(reader.fieldnames or ())
        unknown = [head for head in heads if head not in COLUMNS]
        if unknown or "user" not in heads or len(set(heads)) < len(heads):
            found.mistakes.append(
                f"line 1: found the columns {', '.join(heads) or 'none'}; allowed: user and any of "
                "plan, team, limits, each once."
            )
            return found
        reader.fieldnames = heads
        lines: dict[str, int] = {}
        for row in reader:
            _read_line(found, row, reader.line_num, lines, known, teams)
            if len(lines) > MOST_LINES:
                found.mistakes.append(f"There are more than {MOST_LINES} users; split the file.")
                break
    except (csv.Error, UnicodeDecodeError) as error:
        found.mistakes.append(f"line {reader.line_num + 1}: is no CSV in UTF-8: {error}")
    return found


def _read_line(
    found: _UserFile,
    row: Mapping[Any, Any],
    line: int,
    lines: dict[str, int],
    known: Mapping[str, User],
    teams: set[str],
) -> None:
    mistakes: list[str] = []
    if None in row or None in row.values():
        found.mistakes.append(f"line {line}: has more or fewer cells than columns.")
        return
    cells = {name: spreadsheet.read(text.strip()) for name, text in row.items()}
    try:
        name = arguments.new_user(cells["user"])
    except OperatorError as error:
        found.mistakes.append(f"line {line}: user: {error}")
        return
    if (first := lines.setdefault(name, line)) != line:
        mistakes.append(f"user: {name!r} is also in line {first}")
    user = known.get(name)
    defined, default = current_services().plans, current_services().default_plan
    plan = cells.get("plan") or (user.plan if user else default)
    values: dict[str, Any] = {"plan": plan}
    if cells.get("plan") and plan not in defined:
        mistakes.append(f"plan: unknown plan {plan!r}; choose one of {', '.join(defined)}")
    if "team" in cells:
        values["team_name"] = team = cells["team"] or None
        if team is not None and team not in teams:
            mistakes.append(f"team: there is no team {team!r}; `chat teams create` creates it")
    if "limits" in cells:
        try:
            values["limits"] = dict(_amounts(cells["limits"], plan)) or None
        except OperatorError as error:
            mistakes.append(f"limits: {error}")
    found.mistakes += [f"line {line}: {mistake}" for mistake in mistakes]
    found.changes.append(UserChange(name, values))


def _amounts(text: str, plan: str) -> Iterator[tuple[str, str]]:
    """Yield the amounts in a cell. OperatorError for an invalid one."""
    parts = [part for part in text.split(";") if part.strip()]
    amounts = [arguments.own_limit(part) for part in parts]
    yield from checked("user", amounts, plan=plan).items()
