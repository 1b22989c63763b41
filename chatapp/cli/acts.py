"""The commands of the table of acts: each reads the fields of an act from arguments and options,
and prints the answer."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Final, Literal, get_args, get_origin

import click
from flask.cli import AppGroup, with_appcontext

from chatapp.accounts.api_key import public_id_of
from chatapp.actions.action import Call, FieldError, Listed, Option
from chatapp.actions.pages import csv_of, page
from chatapp.actions.table import ACTIONS, ITEMS, Action
from chatapp.actions.texts import Place, Written, bare, call_of, check_item, places
from chatapp.cli import output
from chatapp.database.migration import COMMAND
from chatapp.operators.amounts import COUNTED
from chatapp.operators.rights import Operator
from chatapp.operators.users import Put
from ratelimit_ext.operators import printable
from ratelimit_ext.terminal import by_operator, with_json

#: Fields without an option of the same name here: `by_operator` adds --reason, and --csv or --json
#: replaces the format.
COMMON: Final = frozenset({"reason", "format"})
GROUPS: Final[Mapping[str, str]] = {
    "keys": "Create, change, rotate and revoke API keys.",
    "users": "Create, change, import and delete users.",
    "teams": "Create teams, and change their budgets.",
    "plans": "List the plans.",
    "amounts": "Set the amounts of single users, keys and teams.",
    "admin-keys": "Create, rotate and revoke management keys.",
    "block": "Block a user, a key, a model, or all calls.",
    "unblock": "Remove a block, the pause of a provider, or a surge.",
    "ledger": "Report and check usage and spending.",
    "alerts": "List spending alerts, and test their webhook.",
    "providers": "List providers, and check their file.",
    "db": "Upgrade, back up and restore the database of accounts and ledger.",
}

#: What the help adds for both commands of `create|set`.
ONLY: Final = "`create` fails if the name exists, and `set` if it does not."
#: What to do about an error, by its code.
HINTS: Final[Mapping[str, str]] = {
    **{f"unknown_{kind}": f"`chat {kind}s list` lists the {kind}s." for kind in COUNTED},
    "unknown_team": "`chat teams list` lists the teams; `chat teams create` creates one.",
    "unknown_caller": "`chat users list` and `chat ledger days` list the users.",
    "unknown_admin_key": "`chat admin-keys list` lists them.",
    "other_plan": "`chat users set` changes it.",
    "other_team": "`chat users set` moves a user.",
    "exists": "`set` changes it.",
    "deactivated_user": "`chat users set --active` activates them.",
    "has_keys": "`chat keys revoke` revokes a key.",
    "unusable_key": "`chat keys create` or `chat admin-keys create` creates another.",
    "no_amount": "`chat users list`, `chat keys list` and `chat teams list` show the amounts.",
    "database": f"If it is new, or of another version, run `{COMMAND}`.",
}


def add_commands(root: click.Group, presenters: Mapping[str, Callable[[Any], None]]) -> None:
    """Add the commands of all acts. ``presenters`` print answers that need more than a table or a
    sentence, by the name of the act."""
    for row in ACTIONS:
        for line, fixed in _lines(row):
            *groups, name = [word for word in line.split() if not word.isupper()]
            command = _Command(row, line, fixed, presenters.get(row.name)).click_command(name)
            _group(root, groups).add_command(command)


def _lines(row: Action) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the commands of an act with their arguments, one for each alternative: `block user
    NAME` and `block key NAME` of `block {kind} NAME`, each with that part of the path."""
    [verbs] = re.findall(r"\S+\|\S+", row.command) or [""]
    [kind] = re.findall(r"{(\w+)}", row.command) or [""]
    for verb in verbs.split("|") if row.command else []:
        for word in row.parts[kind] if kind else [""]:
            line = row.command.replace(verbs, verb).replace(f"{{{kind}}}", word)
            yield line, {kind: word} if kind else {}


def _group(root: click.Group, names: Sequence[str]) -> click.Group:
    for name in names:
        group = root.commands.get(name)
        if not isinstance(group, click.Group):
            group = AppGroup(name, help=GROUPS[name])
            root.add_command(group)
        root = group
    return root


class _Command:
    def __init__(
        self, row: Action, line: str, fixed: dict[str, str], present: Callable[[Any], None] | None
    ) -> None:
        self._row = row
        self._present = present
        self._verb = [word for word in line.split() if not word.isupper()][-1]
        self._fixed = fixed
        self._path = [name for name in row.parts if name not in fixed]
        self._places = [place for place in places(row).values() if place.name not in COMMON]
        self._arguments = {
            place.name: place for place in (_argument(row, w) for w in line.split() if w.isupper())
        }

    def click_command(self, name: str) -> click.Command:
        options = [_option(place) for place in self._places if place.name not in self._arguments]
        run: Any = with_json(partial(self.run))
        if self._row.method != "GET":
            run = by_operator(run)
        if self._row.order is not None:
            run = click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")(run)
        if self._row.confirm:
            run = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(run)
        params = [*self._arguments.values(), *options]
        make = click.command(
            name, params=params, help=_help(self._row, self._fixed.get("kind", ""))
        )
        return make(with_appcontext(run))

    def run(
        self, *, as_json: bool = False, as_csv: bool = False, yes: bool = False, **given: Any
    ) -> None:
        row = self._row
        if as_csv and as_json:
            raise click.UsageError("Pass --csv or --json, not both.")
        try:
            by = "" if row.method == "GET" else given.pop("by")
            call = replace(call_of(row, Operator(by), self._written(given)), watched=output.watched)
            paths = [self._with_key_ids(path) for path in self._paths_of(given)]
            for path in paths:
                if row.confirm and not yes:
                    click.confirm(row.confirm.format(**path), abort=True, err=True)
                check_item(row, call, path, verb=self._verb)
            answers = [row.function(call, **path) for path in paths]
            if row.order is not None:
                self._show_list(answers[0], call.query, as_json=as_json, as_csv=as_csv)
                return
        except FieldError as error:
            sentence = " ".join(filter(None, [self._by_options(error), HINTS.get(error.code)]))
            raise click.UsageError("\n".join([*error.lines, sentence])) from None
        for answer, path in zip(answers, paths, strict=True):
            self._show_item(answer, call, path, as_json=as_json)

    def _by_options(self, error: FieldError) -> str:
        """Return what is wrong, with options and arguments instead of fields."""
        sentence = error.sentence
        for place in self._places:
            name = rf"({place.name}|{'.'.join(place.names)})(\.\d+)?"
            is_option = place.name not in self._arguments
            word = f"--{_option_name(place)}" if is_option else place.name.upper()
            sentence = re.sub(rf'"{name}"|^{name}(?=:)', word, sentence)
        return sentence

    def _paths_of(self, given: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        """Yield the parts of the path; several times, if the last argument was."""
        *names, last = self._path or [""]
        of_last = given[last] if last else ""
        path = {**self._fixed, **{name: given[name] for name in names}}
        for value in dict.fromkeys(of_last) if isinstance(of_last, tuple) else [of_last]:
            yield {**path, last: value} if last else path

    def _with_key_ids(self, path: Mapping[str, str]) -> Mapping[str, str]:
        """Return the path with public ids in place of whole keys."""
        of_key = "name" if path.get("owner") == "key" else "key"
        return {n: public_id_of(text) if n == of_key else text for n, text in path.items()}

    def _show_item(
        self, answer: Any, call: Call, path: Mapping[str, str], *, as_json: bool
    ) -> None:
        if isinstance(answer, Put):
            if not as_json:
                click.echo(printable(answer.done))
                return
            answer = ITEMS[self._row.path].function(call, **path)
        if as_json:
            output.echo_json(answer)
        elif self._present:
            self._present(answer)
        elif "key" in answer:  # alone on standard output, for scripts
            click.echo(answer["key"])
            click.echo(printable(answer["done"]), err=True)
        elif "done" in answer:
            click.echo(printable(answer["done"]))
        else:
            output.echo_fields(answer)
        if answer.get("problems"):
            click.get_current_context().exit(1)

    def _written(self, given: Mapping[str, Any]) -> dict[str, Written]:
        written: dict[str, Written] = {}
        for name in ("reason", *(place.name for place in self._places)):
            match given.get(name):
                case None | ():
                    continue
                case str() as text:
                    written[name] = [text]
                case bool() | tuple() as value:
                    written[name] = value
                case file:
                    written[name] = [_text_of(file)]
        return written

    def _show_list(self, answer: Any, query: Any, *, as_json: bool, as_csv: bool) -> None:
        row = self._row
        assert row.order is not None
        if as_csv:
            lines = csv_of(row.order, answer, query)
            if (head := next(lines, None)) is not None:
                sys.stdout.writelines(chain([head], lines))
                return
        rows, more = page(row.order, answer, query)
        if as_json:
            output.echo_json(rows)
        elif rows and self._present:
            self._present(rows)
        else:
            is_search = bool(query.model_fields_set - Listed.model_fields.keys())
            end = " that match these options." if is_search else row.begin
            empty = f"{row.empty}{end}"
            output.echo_table_of(rows, columns=row.columns.split(), empty=empty)
        if more:
            click.echo(f"There is more: add --cursor {more}", err=True)


def _argument(row: Action, word: str) -> click.Argument:
    """Return the argument of a word in the command's line: `KEY`, or `KEY...` for several."""
    name = word.removesuffix("...").lower()
    kind: click.ParamType[Any] | None = None
    if name == "csv":
        kind = click.File("r", encoding="utf-8-sig")
    elif row.parts.get(name):
        kind = click.Choice(row.parts[name])
    nargs = -1 if word.endswith("...") else 1
    return click.Argument([name], metavar=word, nargs=nargs, required=True, type=kind)


def _option(place: Place) -> click.Option:
    field, kind = place.field, place.type
    is_many, text = get_origin(kind) in (list, dict), _option_name(place)
    words, settings = f"--{text}", dict[str, Any](help=field.description)
    if kind is bool or place.is_nested:
        words = f"{words}/--no-{text}" if field.default is None else words
        settings |= {"default": None, "is_flag": True}
    elif is_many:
        settings |= {"multiple": True}
        settings["metavar"] = "LIMIT=AMOUNT" if get_origin(kind) is dict else None
        kind = bare(get_args(kind)[0])
    elif kind is int:
        settings["metavar"] = "NUMBER"
    if get_origin(kind) is Literal:
        settings["type"] = click.Choice(get_args(kind))
    settings["required"] = field.is_required() and len(place.names) == 1
    return click.Option([words, place.name], **settings)


def _option_name(place: Place) -> str:
    """Return the name of its option: one of several models is --model."""
    named = next((o.name for o in place.field.metadata if isinstance(o, Option)), None)
    text = place.names[-1].replace("_", "-")
    return named or (text.removesuffix("s") if get_origin(place.type) in (list, dict) else text)


def _text_of(file: Any) -> str:
    try:
        return str(file.read())
    except UnicodeDecodeError:
        raise click.UsageError("line 1: the file is not UTF-8. Save it as UTF-8.") from None


def _help(row: Action, kind: str) -> str:
    only = f"\n\n{ONLY}" if "|" in row.command else ""
    text = re.sub(r"``", "`", row.function.__doc__ or "")
    return (text.replace("a user or a key", f"a {kind}") if kind else text) + only
