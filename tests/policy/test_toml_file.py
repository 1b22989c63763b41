"""A policy file: what cannot be read, decoded or parsed, and the lines of its keys."""

import tomllib
from pathlib import Path
from tomllib import loads
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_ext.policy import load_policy
from ratelimit_ext.policy.errors import Path as KeyPath
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.policy.toml_file import toml_line
from tests.policy.conftest import error_of


def load_file(file: Any, blueprints: Any = None) -> Policy:
    return load_policy(file=file, blueprints=blueprints)


def test_a_missing_file(tmp_path: Path) -> None:
    """The error has the path and the setting that names it."""
    file = tmp_path / "nowhere.toml"
    message = error_of(lambda: load_file(file))
    assert f"{file}: there is no such file (looked for {file}). Create it, or correct" in message


def test_a_missing_relative_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative name comes with the directory it was looked for in."""
    monkeypatch.chdir(tmp_path)
    message = error_of(lambda: load_file("nowhere.toml"))
    assert f"nowhere.toml: there is no such file (looked for {tmp_path}/nowhere.toml)." in message


def test_a_directory(tmp_path: Path) -> None:
    """An error of the operating system comes with its reason."""
    message = error_of(lambda: load_file(tmp_path))
    assert (
        f"{tmp_path}: the file cannot be read: Is a directory. Check its path and rights" in message
    )


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (3, "found 3 (a whole number); allowed: the path of a TOML file, as a string."),
        (True, "found true; allowed: the path of a TOML file, as a string."),
        (["a.toml"], "found a list; allowed: the path of a TOML file, as a string."),
        ("", "found '' (a string); allowed: the path of a TOML file. Remove the key"),
        ("a\0b", "found 'a\\x00b' (a string); allowed: the path of a TOML file."),
    ],
)
def test_not_a_path(file: object, expected: str) -> None:
    """A number is not taken for a file descriptor, nor anything else for a path."""
    assert f'app.config["RATELIMIT_POLICY_FILE"]: {expected}' in error_of(lambda: load_file(file))


CONTENTS = {
    "UTF-16": (
        "version = 1\n".encode("utf-16"),
        ":1: the byte 0xff is not UTF-8. Save the file as UTF-8.",
    ),
    "Latin-1": (
        'version = 1\n\n[plans.a]\ntitle = "Größer"\n'.encode("latin-1"),
        ":4: the byte 0xf6 is not UTF-8.",
    ),
    "no TOML": (
        b"version = 1\nlimits: 30/minute\n",
        ":2: this is not TOML: Expected '=' after a key in a key/value pair in column 7. Write",
    ),
    "no quotes": (b"version = 1\n[[default]]\nlimit = 5/minute\n", ":3: this is not TOML: "),
    "one key twice": (
        b"version = 1\n[plans.a]\n[plans.a]\n",
        ":3: this is not TOML: Cannot declare ('plans', 'a') twice in column 9.",
    ),
    "end in a list": (b'version = 1\ndefault = ["5/minute",\n\n', ":2: this is not TOML: "),
    "deep lists": (b"version = 1\na = " + b"[" * 10_000, "lists are nested too deeply"),
    "deep tables": (
        b"version = 1\n" + b".".join([b"a"] * 2_000) + b" = 1\n",
        ":2: a: unknown key; allowed:",
    ),
    "number that Python refuses to read": (
        b"version = 1\nburst = " + b"9" * 5000 + b"\n",
        "this is not TOML: Exceeds the limit",
    ),
    "NUL": (b"version = 1\n\0\n", ":2: this is not TOML: "),
}


@pytest.mark.parametrize(("content", "expected"), CONTENTS.values(), ids=CONTENTS)
def test_not_toml(tmp_path: Path, content: bytes, expected: str) -> None:
    """Wrong encodings and wrong syntax have their line."""
    file = tmp_path / "policy.toml"
    file.write_bytes(content)
    message = error_of(lambda: load_file(str(file)))
    assert str(file) in message
    assert expected in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_mark_of_an_editor(tmp_path: Path, line_end: str) -> None:
    """UTF-8 with the mark that editors on Windows put before it, and their line ends, is read."""
    file = tmp_path / "policy.toml"
    text = 'version = 1\ndefault = [\n"5/minute",\n]\n'
    file.write_bytes(text.replace("\n", line_end).encode("utf-8-sig"))
    assert load_file(file).default[0].text == "5/minute"


def test_a_broken_file_hides_no_mistakes_of_the_other_input(tmp_path: Path) -> None:
    """Mistakes of app.config are found as well; whether there are plans is unknown."""
    file = tmp_path / "policy.toml"
    file.write_text("version =")
    message = error_of(lambda: load_file(file, {"chat": {"plans": True}, "pay": ["x"]}))
    assert message.startswith("2 mistakes")
    assert 'app.config["RATELIMIT_BLUEPRINTS"]["pay"][0]: found' in message


def test_a_name_stays_on_one_line_and_can_be_printed(tmp_path: Path) -> None:
    """A line break or a byte that is no character in a file's name breaks no log."""
    message = error_of(lambda: load_file(tmp_path / "a\nb\udcff.toml"))
    assert f"{tmp_path}/a?b?.toml: there is no such file" in message
    assert len(message.splitlines()) == 2


# -- lines

DOCUMENT = '''\
version = 1
# [plans.comment]
[[application]]
limit = """
120/minute
[not.a.table]
"""
burst = 20

[[application]]
limit = "5/second"
[application.inner]
deep.er = 1

[blueprints."my.chat"]
plans = true # [[no]]
limits = [
    "30/minute", "40/hour",
    # between
    {limit = "1/day", burst = 2},
    {limit = """
2/day"""}, "3/day",
]
[blueprints."my.chat".routes.post]
limits = ["1/second",
          "2/minute"]
nested = [
  [
    1,
    2,
  ],
  3,
]
'''

LINES: dict[KeyPath, int] = {
    ("version",): 1,
    ("application",): 3,
    ("application", 0): 3,
    ("application", 0, "limit"): 4,
    ("application", 0, "burst"): 8,
    ("application", 1): 10,
    ("application", 1, "limit"): 11,
    ("application", 1, "inner"): 12,
    ("application", 1, "inner", "deep", "er"): 13,
    ("blueprints",): 15,
    ("blueprints", "my.chat", "plans"): 16,
    ("blueprints", "my.chat", "limits"): 17,
    ("blueprints", "my.chat", "limits", 0): 18,
    ("blueprints", "my.chat", "limits", 1): 18,
    ("blueprints", "my.chat", "limits", 2): 20,
    ("blueprints", "my.chat", "limits", 2, "burst"): 20,
    ("blueprints", "my.chat", "limits", 3): 21,
    ("blueprints", "my.chat", "limits", 3, "limit"): 21,
    ("blueprints", "my.chat", "limits", 4): 22,
    ("blueprints", "my.chat", "routes"): 24,
    ("blueprints", "my.chat", "routes", "post"): 24,
    ("blueprints", "my.chat", "routes", "post", "limits", 0): 25,
    ("blueprints", "my.chat", "routes", "post", "limits", 1): 26,
    ("blueprints", "my.chat", "routes", "post", "nested", 0): 28,
    ("blueprints", "my.chat", "routes", "post", "nested", 1): 32,
}


@pytest.mark.parametrize("path", LINES, ids=str)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_line_of_a_key(path: KeyPath, line_end: str) -> None:
    """Each key has its line: in tables, arrays of tables, long strings and lists over lines."""
    assert toml_line(DOCUMENT.replace("\n", line_end), path) == LINES[path]


def test_an_unknown_path_has_the_line_around_it() -> None:
    """A path that is not in the document, as that of a missing key, has its table's line."""
    assert toml_line(DOCUMENT, ("application", 1, "strategy")) == 10
    assert toml_line(DOCUMENT, ("plans",)) == 0
    assert toml_line(DOCUMENT, ()) == 0


@given(
    st.lists(
        st.sampled_from(
            [
                *("[a]", "[[a]]", "[a.b]", "[[a.b]]", "a = 1", "b.c = [", "]", '"""', "1,", "# x"),
                *("{", "}"),
            ]
        ),
        max_size=12,
    ).map("\n".join)
    | st.text(max_size=60)
)
def test_no_text_stops_the_scanner(text: str) -> None:
    """Whatever the text, valid or not, lines lie within it."""
    for path in (("a",), ("a", 1), ("a", "b"), ("a", "b", 0), ("b", "c", 0)):
        assert 0 <= toml_line(text, path) <= text.count("\n") + 1


def test_all_tables_are_located_by_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many a document has: `ratelimit show` says where each limit is."""
    text = '[[plans.x.limits]]\nlimit = "1/day"\n' * 50
    read: list[str] = []
    monkeypatch.setattr(tomllib, "loads", lambda text: (read.append(text), loads(text))[1])
    assert [toml_line(text, ("plans", "x", "limits", n)) for n in range(50)] == [*range(1, 101, 2)]
    assert len(read) == 1


def test_a_long_list_costs_no_minute() -> None:
    """Of a value over very many lines, few beginnings are read."""
    text = "a = 1\nb = [\n" + "  1,\n" * 20_000 + "]\nc = 2\n"
    assert toml_line(text, ("a",)) == 1
    assert toml_line(text, ("b", 7)) == 10
    text = 'a = 1\nb = """\n' + "  1,\n" * 2_000 + '"""\nc = 2\n'
    assert toml_line(text, ("a",)) == 1
    assert (toml_line(text, ("b",)), toml_line(text, ("c",))) == (2, 2004)
