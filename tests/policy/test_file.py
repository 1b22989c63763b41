"""A policy file that cannot be read, decoded or parsed is told with its place and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ratelimit_ext.policy import Policy, load_policy
from tests.policy.conftest import told_by


def load_file(file: Any, blueprints: Any = None) -> Policy:
    return load_policy(file=file, blueprints=blueprints)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """Where the file was looked for is told, and what names it."""
    file = tmp_path / "nowhere.toml"
    told = told_by(lambda: load_file(file))
    assert f"{file}: there is no such file (looked for {file}). Create it, or correct" in told


def test_a_missing_relative_file_is_told_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name is told with the directory that it was looked for in."""
    monkeypatch.chdir(tmp_path)
    told = told_by(lambda: load_file("nowhere.toml"))
    assert f"nowhere.toml: there is no such file (looked for {tmp_path}/nowhere.toml)." in told


def test_a_directory_is_told(tmp_path: Path) -> None:
    """What cannot be read as a file is told with the system's reason."""
    told = told_by(lambda: load_file(tmp_path))
    assert f"{tmp_path}: the file cannot be read: Is a directory. Check its path and rights" in told


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (3, "found 3 (a whole number); allowed: the path of a TOML file, as a string."),
        (True, "found true; allowed: the path of a TOML file, as a string."),
        (["a.toml"], "found a list; allowed: the path of a TOML file, as a string."),
        ("", "found '' (a string); allowed: the path of a TOML file. Remove the key where there"),
        ("a\0b", "found 'a\\x00b' (a string); allowed: the path of a TOML file."),
    ],
)
def test_what_is_no_path_is_told(file: object, told: str) -> None:
    """A number is not taken for a file descriptor, nor anything else for a path."""
    assert f'app.config["RATELIMIT_POLICY_FILE"]: {told}' in told_by(lambda: load_file(file))


CONTENTS = {
    "UTF-16": (
        "version = 1\n".encode("utf-16"),
        ":1: the byte 0xff is not UTF-8, in which TOML is always written. Save the file as UTF-8.",
    ),
    "Latin-1": (
        'version = 1\n\n[plans.a]\ntitle = "Größer"\n'.encode("latin-1"),
        ":4: the byte 0xf6 is not UTF-8, in which TOML is always written.",
    ),
    "no TOML": (
        b"version = 1\nlimits: 30/minute\n",
        ":2: this is not TOML: Expected '=' after a key in a key/value pair in column 7. Str",
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


@pytest.mark.parametrize(("content", "told"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_toml_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    """Wrong encodings and wrong syntax are told with the line."""
    file = tmp_path / "policy.toml"
    file.write_bytes(content)
    message = told_by(lambda: load_file(str(file)))
    assert str(file) in message
    assert told in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_mark_of_an_editor_is_no_mistake(tmp_path: Path, line_end: str) -> None:
    """UTF-8 with the mark that editors on Windows put before it, and their line ends, is read."""
    file = tmp_path / "policy.toml"
    text = 'version = 1\ndefault = [\n"5/minute",\n]\n'
    file.write_bytes(text.replace("\n", line_end).encode("utf-8-sig"))
    assert load_file(file).default[0].text == "5/minute"


def test_a_broken_file_hides_no_mistakes_of_the_other_input(tmp_path: Path) -> None:
    """Mistakes of app.config are told as well; that there is no plan cannot be known."""
    file = tmp_path / "policy.toml"
    file.write_text("version =")
    told = told_by(lambda: load_file(file, {"chat": {"plans": True}, "pay": ["x"]}))
    assert told.startswith("2 mistakes")
    assert 'app.config["RATELIMIT_BLUEPRINTS"]["pay"][0]: found' in told


def test_a_name_stays_on_one_line_and_can_be_printed(tmp_path: Path) -> None:
    """A line break or a byte that is no character in a file's name breaks no log."""
    told = told_by(lambda: load_file(tmp_path / "a\nb\udcff.toml"))
    assert f"{tmp_path}/a?b?.toml: there is no such file" in told
    assert len(told.splitlines()) == 2
