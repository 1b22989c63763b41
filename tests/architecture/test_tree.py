"""What lies where, and what a file of a kind must have."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from ratelimit_ext import StrategyName
from ratelimit_ext.strategies import STRATEGIES
from tests.conftest import SLOWEST, TIERS

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    *("chatapp", "ratelimit_ext", "tests", "docs", "benchmarks", "examples"),
    *("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"),
    *("wsgi.py", "gunicorn.conf.py", "requirements.txt", "pyproject.toml"),
    *("Dockerfile", "compose.yaml"),
}
# Real processes take real time there. tests/servers.py is what waits for them.
MAY_SLEEP = ("tests/e2e/", "tests/faults/", "tests/engine/replies.py", "tests/servers.py")
LUA_FILES = sorted((ROOT / "ratelimit_ext").rglob("*.lua"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_top_level_has_only_what_belongs_there() -> None:
    """Nothing is committed at the top but the known entries and files with a leading dot."""
    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"],  # noqa: S607 - whichever git this machine has
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip(listed.stderr.strip())
    entries = {name for name in listed.stdout.split() if not name.startswith(".")}
    assert entries <= TOP_LEVEL


@pytest.mark.parametrize(("package", "side"), [("chatapp", 0), ("ratelimit_ext", 1)])
def test_the_picture_of_the_house_is_true(package: str, side: int) -> None:
    """docs/house.svg has each folder, and lower ones of the import contracts lower."""
    picture = (ROOT / "docs" / "house.svg").read_text()
    middle = int(re.findall(r'viewBox="0 0 (\d+)', picture)[0]) / 2
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)">([\w.]+)', picture)
    drawn = {name: float(y) for x, y, name in texts if (float(x) > middle) == side}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [
        each["layers"] for each in contracts["contracts"] if each.get("containers") == [package]
    ]
    heights = []
    for layer in layers:
        found = {
            drawn[name]
            for part in layer.split(" | ")
            for name in (part, f"{part}.py")
            if name in drawn
        }
        assert len(found) <= 1, layer
        heights += found
    assert heights == sorted(heights)
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders - {"migrations"} <= drawn.keys()


def test_tests_of_an_sdist_import_what_it_has(tmp_path: Path) -> None:
    """Those of the extension none of chatapp, and both nothing of the repository's other folders:
    `.ci/build` says which folders go where."""
    ours = ("tests", "chatapp", "benchmarks", "examples")
    lacking = []
    for tree in runpy.run_path(str(ROOT / ".ci" / "build"))["prepare"](tmp_path):
        files = [*(tree / "tests").rglob("*.py")]
        assert len(files) > 100
        for file in files:
            for module in imported(ast.parse(file.read_text())):
                path = tree.joinpath(*module.split("."))
                if module.split(".")[0] in ours and not (
                    path.is_dir() or path.with_suffix(".py").exists()
                ):
                    lacking.append((tree.name, file.relative_to(tree).as_posix(), module))
    assert lacking == []


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported, also as names of a package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if (ROOT / node.module.replace(".", "/")).is_dir():
                names = [f"{node.module}.{each.name}" for each in node.names]
                yield from (
                    each for each in names if (ROOT / f"{each.replace('.', '/')}.py").exists()
                )


def test_the_tiers_name_what_exists() -> None:
    """A folder or file of tests that moves stays in its tier, and it has one."""
    named = [each for tier in TIERS.values() for each in tier]
    assert not [each for each in (*named, *SLOWEST) if not (ROOT / "tests" / each).exists()]
    assert len(set(named)) == len(named)


def test_lua_says_what_it_takes_and_returns() -> None:
    """The comment at the head of a script names its KEYS, its ARGV and what it returns."""
    fields = re.compile(r"^-- (KEYS|ARGV|returns)  +\S", re.MULTILINE)
    heads = {path: re.match(r"(--.*\n)*", path.read_text()) for path in LUA_FILES}
    assert heads
    assert not [
        relative(path)
        for path, head in heads.items()
        if head is None or set(fields.findall(head.group())) != {"KEYS", "ARGV", "returns"}
    ]


def test_lua_assigns_no_globals() -> None:
    """Functions and variables of a script are local; the server would refuse others at run time."""
    assert not [
        f"{relative(path)}:{number}: {line}"
        for path in LUA_FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.match(r"function [\w]+\(|\w+ = ", line)
    ]


def test_no_test_sleeps() -> None:
    """Time is virtual in tests, but where real processes are waited for."""
    assert not [
        f"{relative(path)}:{node.lineno}"
        for path in TESTS
        if not relative(path).startswith(MAY_SLEEP)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}
    ]


def test_every_test_states_its_promise() -> None:
    """A test's docstring says what is promised; its name alone says where to look."""
    assert not [
        f"{relative(path)}:{node.lineno}: {node.name}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]


@pytest.mark.parametrize("part", ["core", "engine"])
def test_only_strategies_name_strategies(part: str) -> None:
    """Core and engines ask a strategy for its traits. One name is allowed, that of the default; and
    all of them for type checkers."""
    named = {
        (node.value, relative(path))
        for path in (ROOT / "ratelimit_ext" / part).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in STRATEGIES
    }
    typed = {(name, "ratelimit_ext/core/traits.py") for name in get_args(StrategyName)}
    assert named <= {("fixed-window", "ratelimit_ext/core/limit.py"), *typed}
