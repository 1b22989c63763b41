"""What `--help` and hints of all commands show: every example of them works."""

import re
from collections.abc import Iterator

import click
import pytest
from flask import Flask

from chatapp.actions.action import FieldError
from chatapp.actions.table import ACTIONS, Action
from chatapp.actions.texts import call_of, places
from chatapp.cli.acts import HINTS
from chatapp.cli.chat import chat
from chatapp.operators.rights import Operator
from ratelimit_ext.cli import ratelimit
from ratelimit_ext.cli.parameters import Parsed
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker

Commands = dict[str, click.Command]
#: Times and lengths of time in a sentence.
EXAMPLE = re.compile(
    r"'[a-z]+ \d+:\d\d'|\b\d{4}-\d\d-\d\d\b|\b\d{4}-W\d\d\b|\b\d{4}-\d\d\b(?!-)|\b\d\d:\d\d\b"
    r"|\b\d+[smhdw]\b|\b(?:friday|yesterday|last|this)\b(?=[,.;]| or)"
)
COMMAND = re.compile(r"`(?:flask )?((?:chat|ratelimit) [a-z][^`]*)`")


def leaves(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


LEAVES: Commands = {**dict(leaves(chat, "chat")), **dict(leaves(ratelimit, "ratelimit"))}


@pytest.fixture
def app(make_app: AppMaker) -> Flask:
    return make_app()


@pytest.mark.parametrize("name", LEAVES)
def test_each_command_prints_json(name: str) -> None:
    """For programs, as an option of the same name."""
    assert "--json" in [word for param in LEAVES[name].params for word in param.opts]


@pytest.mark.parametrize("name", LEAVES)
def test_each_option_has_a_meaning(name: str) -> None:
    """Its help is a sentence."""
    for option in LEAVES[name].params:
        if isinstance(option, click.Option):
            assert re.fullmatch(r"\S.+[.]", option.help or ""), option.opts


def test_each_named_command_exists() -> None:
    """In help, in what is said of an empty list, and in the hints of errors."""
    shown = [command.help or "" for command in LEAVES.values()]
    shown += [text for r in ACTIONS for text in (r.columns, r.empty, r.begin, r.confirm) if text]
    shown += HINTS.values()
    named = [match[1] for text in shown for match in COMMAND.finditer(text)]
    assert len(named) > 10
    for words in named:
        assert any(f"{words} ".startswith(f"{name} ") for name in LEAVES), words
        command = next(c for name, c in LEAVES.items() if f"{words} ".startswith(f"{name} "))
        known = {word for param in command.params for word in (*param.opts, *param.secondary_opts)}
        assert set(re.findall(r"--[a-z-]+", words)) <= known, words


def test_each_example_of_an_act_is_valid(app: Flask) -> None:
    """Commands, the API and /admin read it by the same parser."""
    examples = [
        (row, place, text.strip("'"))
        for row in ACTIONS
        for place in places(row).values()
        for text in EXAMPLE.findall(place.field.description or "")
    ]
    assert len(examples) > 20
    with app.app_context():
        refused = [(p.name, mistake(row, p.name, text), text) for row, p, text in examples]
    assert [each for each in refused if each[0] == each[1]] == []


def mistake(row: Action, name: str, text: str) -> str:
    """Return the field that is refused: another one may be missing."""
    try:
        call_of(row, Operator(""), {name: [text]})
    except FieldError as error:
        return error.field.replace(".", "_")
    return ""


def test_each_example_of_a_limits_command_is_valid() -> None:
    """An option that reads a time has one."""
    read = []
    for command in LEAVES.values():
        for option in command.params:
            if isinstance(option, click.Option) and isinstance(option.type, Parsed):
                examples = EXAMPLE.findall(option.help or "")
                assert examples, option.help
                read += [option.type.convert(text.strip("'"), None, None) for text in examples]
    assert len(read) > 5


@pytest.mark.parametrize(
    "words",
    [
        ("users", "create", "alice"),
        ("teams", "create", "research"),
        ("keys", "create", "--user", "alice"),
    ],
)
def test_each_example_of_an_amount_is_valid(app: Flask, words: tuple[str, ...]) -> None:
    """By the policy that is shipped."""
    [option] = [o for o in LEAVES[f"chat {words[0]} create"].params if o.name == "limits"]
    assert isinstance(option, click.Option)
    match = re.search(r'such as (\S+=)"(.+?)"', option.help or "")
    assert match is not None
    done = run(app, *words, "--limit", f"{match[1]}{match[2]}")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("verb", ["block", "unblock"])
@pytest.mark.parametrize(("kind", "other"), [("user", "key"), ("key", "user")])
def test_help_names_the_kind_of_its_command(app: Flask, verb: str, kind: str, other: str) -> None:
    """`block key` blocks no user."""
    said = " ".join(run(app, verb, kind, "--help").stdout.split())
    assert f" a {kind}" in said
    assert f" a {other}" not in said


def test_a_long_list_is_paged(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is longer than the terminal. A pipe gets it as it is."""
    for name in ("ada", "bob", "eve"):
        run(app, "users", "create", name)
    paged: list[str] = []
    monkeypatch.setattr(click, "echo_via_pager", paged.append)
    whole = run(app, "users", "list").stdout
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "5")
    assert run(app, "users", "list").stdout == whole
    monkeypatch.setenv("LINES", "4")
    assert run(app, "users", "list").stdout == ""
    assert paged == [whole.removesuffix("\n")]


def test_times_have_one_format(app: Flask) -> None:
    """In tables and sentences; JSON has ISO 8601."""
    run(app, "admin-keys", "create", "ops", "--scope", "read", "--expires", "7d")
    time = r"\b20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\b"
    table = run(app, "admin-keys", "list").stdout
    assert len(re.findall(time, table)) == 2
    assert not re.search(r"\dT\d", table)
    assert re.search(r"\dT\d\d:\d\d:\d\d\+00:00", run(app, "admin-keys", "list", "--json").stdout)
