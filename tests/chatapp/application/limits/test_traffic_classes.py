"""The class of a call: that of its key, else of its plan; a caller can only lower it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from flask import Flask

from chatapp import MISTAKES, POLICY_FILE
from chatapp.accounts.store import Accounts
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, policy_file
from tests.chatapp.upstream_server import UpstreamServer

BODY = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "ping"}]}
MODEL = 'name = "model"\nlimit = "3000/minute"\n'
KEPT = """\
name = "model"
limit = "10/minute"
keep = { interactive = 6, batch = 2, nightly = 0 }
priority = "class"
"""
STARTER = 'title = "Starter"\n'


def policy(tmp_path: Path, line: str = 'class = "batch"\n') -> str:
    """The packaged policy with 10 calls a minute of a model, of which 6 are kept for interactive
    ones and 2 for batches; the plan Starter is a batch, other plans are interactive."""
    text = POLICY_FILE.read_text()
    assert MODEL in text
    assert STARTER in text
    changed = text.replace(MODEL, KEPT).replace(STARTER, STARTER + line)
    return policy_file(tmp_path, changed)


@pytest.fixture
def app(make_app: AppMaker, provider: UpstreamServer, tmp_path: Path) -> Flask:
    return make_app(RATELIMIT_POLICY_FILE=policy(tmp_path))


def remaining(
    app: Flask,
    key: str,
    *,
    header: str = "",
    more_headers: Mapping[str, str] = MappingProxyType({}),
    **more: Any,
) -> int:
    """What the model's limit leaves this caller after a call, which must be the first: 2, 4 or 10
    before it."""
    headers = {"X-Api-Key": key, "X-Traffic-Class": header, **more_headers}
    answer = app.test_client().post("/v1/chat/completions", json={**BODY, **more}, headers=headers)
    assert answer.status_code == 200, answer.text
    (found,) = [each for each in answer.headers["RateLimit"].split(", ") if '"model"' in each]
    return int(found.split(";r=")[1].split(";")[0])


@pytest.mark.parametrize(
    ("plan", "asked", "left"),
    [
        ("pro", {}, 9),
        ("starter", {}, 3),
        ("pro", {"header": "lowest"}, 1),
        ("pro", {"service_tier": "flex"}, 1),
        ("starter", {"header": "interactive"}, 3),
        ("starter", {"header": "lowest"}, 1),
    ],
)
def test_of_the_plan(
    app: Flask, accounts: Accounts, plan: str, asked: dict[str, str], left: int
) -> None:
    """By its keyword; interactive without one. A caller cannot raise it."""
    key = accounts.create_key("ada", plan=plan, default_plan=plan)
    assert remaining(app, key.text, **asked) == left


@pytest.mark.parametrize(("name", "left"), [("batch", 3), ("nightly", 1), ("", 9)])
def test_of_the_key(app: Flask, accounts: Accounts, name: str, left: int) -> None:
    """By the command; a key that replaces it has the same."""
    key = accounts.create_key("ada", plan="pro", default_plan="pro")
    for word in dict.fromkeys(("batch", name)):
        done = run(app, "keys", "set", key.public_id, "--class", word)
        assert f"has the class {word or 'of its plan'};" in done.output
    shown = run(app, "keys", "list").stdout
    assert ("CLASS" in shown and name in shown) is bool(name)
    assert remaining(app, key.text) == left
    run(app, "keys", "rotate", key.public_id)
    assert len({each.traffic_class for each in accounts.all_keys()}) == 1


@pytest.mark.parametrize("name", ["batch", ""])
def test_of_a_new_key(app: Flask, accounts: Accounts, name: str) -> None:
    """As of one that exists."""
    run(app, "keys", "create", "--user", "ada", "--class", name)
    [key] = accounts.all_keys()
    assert key.traffic_class == (name or None)


def test_a_class_that_is_not_declared(
    app: Flask, accounts: Accounts, make_app: AppMaker, tmp_path: Path
) -> None:
    """In a plan it is a mistake of the policy; of a key it is refused."""
    key = accounts.create_key("ada", plan="pro", default_plan="pro")
    refused = run(app, "keys", "set", key.public_id, "--class", "bacth", status=2)
    assert "Unknown class 'bacth'; choose one of interactive, batch, nightly." in refused.output
    assert remaining(app, key.text) == 9
    with pytest.raises(MISTAKES, match=r"plans.starter.class: unknown class 'bacth'.*mean 'batch'"):
        make_app(RATELIMIT_POLICY_FILE=policy(tmp_path, 'class = "bacth"\n'))
    refused = run(app, "keys", "set", "0" * 16, "--class", "no class", status=2)
    assert "found 'no class'; allowed: a name such as" in refused.output


HEAD = """\
version = 1
[upstreams.gpu]
protocol = "openai"
base_url = "https://gpu.example/v1"
models_of = "openai"
"""


def with_rows(tmp_path: Path, rows: str) -> str:
    """A providers file whose upstream has these rows of classes."""
    file = tmp_path / "providers.toml"
    file.write_text(f'{HEAD}[upstreams.gpu.classes]\nfield = "priority"\nvalues = {{ {rows} }}\n')
    return str(file)


def test_a_class_that_nothing_reads(
    make_app: AppMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `keep` it has no effect: the start, the check and the command of a key warn."""
    text = POLICY_FILE.read_text().replace(STARTER, STARTER + 'class = "bacth"\n')
    app = make_app(RATELIMIT_POLICY_FILE=policy_file(tmp_path, text))
    unread = "class 'bacth' has no effect: no `keep` lists it"
    assert [line.partition("plans.starter.class: the ")[2] for line in caplog.messages].count(
        f"{unread}; correct it, or add it to one"
    ) == 1
    checked = app.test_cli_runner().invoke(args=["ratelimit", "check"])
    assert f"plans.starter.class: the {unread}" in checked.output
    made = run(app, "keys", "create", "--user", "ada", "--class", "bacth", "--json")
    assert unread in made.output
    key = json.loads(made.stdout)["id"]
    assert unread in run(app, "keys", "set", key, "--class", "bacth").output
    assert "no effect" not in run(app, "keys", "set", key, "--class", "").output


def test_classes_that_upstreams_declare(make_app: AppMaker, tmp_path: Path) -> None:
    """Without `keep`, a class is one of their rows."""
    rows = with_rows(tmp_path, "interactive = 0, batch = 10")
    app = make_app(CHATAPP_PROVIDERS_FILE=rows)
    refused = run(app, "keys", "create", "--user", "ada", "--class", "bacth", status=2)
    assert "Unknown class 'bacth'; choose one of interactive, batch." in refused.output
    assert "no effect" not in run(app, "keys", "create", "--user", "ada", "--class", "batch").output
    text = POLICY_FILE.read_text().replace(STARTER, STARTER + 'class = "bacth"\n')
    with pytest.raises(MISTAKES, match=r"plans.starter.class: unknown class 'bacth'; allowed: int"):
        make_app(CHATAPP_PROVIDERS_FILE=rows, RATELIMIT_POLICY_FILE=policy_file(tmp_path, text))


def test_a_limit_that_keeps_for_people_alone_declares_classes(
    make_app: AppMaker, tmp_path: Path
) -> None:
    """Its `priority` is another function of the same classes."""
    file = Path(policy(tmp_path, 'class = "bacth"\n'))
    file.write_text(file.read_text().replace('priority = "class"', 'priority = "request_class"'))
    with pytest.raises(MISTAKES, match=r"plans.starter.class: unknown class 'bacth'; allowed: int"):
        make_app(RATELIMIT_POLICY_FILE=str(file))


def test_a_row_of_an_upstream_for_no_class(
    make_app: AppMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt row is said at the start. The last one is for other classes, whatever its name."""
    rows = with_rows(tmp_path, "interactive = 0, bacth = 10, rest = 20")
    make_app(CHATAPP_PROVIDERS_FILE=rows, RATELIMIT_POLICY_FILE=policy(tmp_path))
    said = [line for line in caplog.messages if "upstreams.gpu.classes" in line]
    assert [line.partition(" has no")[0] for line in said] == [
        "upstreams.gpu.classes: the class 'bacth'"
    ]
