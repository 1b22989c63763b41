"""`flask ratelimit simulate` and `suggest`, as an operator uses them."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from flask import Blueprint, Flask
from flask.views import MethodView

from ratelimit_ext import Limiter
from ratelimit_ext.cli.simulation import simulate, suggest
from ratelimit_ext.terminal import progress_bar

POLICY = """
version = 1

[blueprints.chat]
plans = true

[[blueprints.chat.limits]]
name = "pace"
limit = "60/minute"
strategy = "token-bucket"
burst = {burst}
key = "user"

[[blueprints.chat.limits]]
name = "switch"
limit = "unless blocked"
key = "user"

[[blueprints.chat.limits]]
name = "key"
limit = "100000/day"
key = "api_key"

[plans.free]
[[plans.free.limits]]
name = "plan"
limit = "{amount}/day"
strategy = "sliding-window"
key = "user"
"""
MADE_UP = ("--endpoint", "chat.ask", "--plan", "free", "--calls", "2000", "--users", "20")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.format(burst=10, amount=50))
    return path


@pytest.fixture
def limiter() -> Limiter:
    return Limiter(lambda: "someone", storage_uri="memory://")


@pytest.fixture
def app(policy: Path, limiter: Limiter) -> Flask:
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(policy)
    limiter.plan_loader(lambda: "free")
    chat = Blueprint("chat", __name__)
    chat.post("/ask", endpoint="ask")(lambda: "answer")
    limiter.init_app(app)
    app.register_blueprint(chat)
    app.get("/free", endpoint="free")(lambda: "free")
    return app


def run(app: Flask, command: Any, *arguments: str, text: str | None = None) -> Result:
    return app.test_cli_runner().invoke(args=["ratelimit", command.name, *arguments], input=text)


def test_a_policy_is_replayed(app: Flask):
    """The table says how many calls a policy denies, by which limit, and what that saves."""
    result = run(app, simulate, "--traffic", "runaway", *MADE_UP, "--days", "0.05")
    assert result.exit_code == 0
    policies, limits, callers = result.output.split("\n\n")[:3]
    assert policies.split("\n")[2].split()[:3] == ["the", "current", "policy"]
    assert limits.startswith("the current policy: limits that denied")
    assert callers.split("\n")[2].split()[0] == "runaway"
    assert "Not simulated (it follows something outside the traffic): switch." in result.output


def test_limits_of_methods_are_replayed(limiter: Limiter, app: Flask):
    """A class-based view has the limits of its decorated methods; here those of POST, by a function
    of the application's with the name that the traffic has."""

    def user() -> str:
        return "someone"

    class Notes(MethodView):
        @limiter.limit("5/hour", key_func=limiter.identities["user"])
        def get(self) -> str:
            return "notes"

        @limiter.limit("2/hour", key_func=user)
        def post(self) -> str:
            return "noted"

    app.add_url_rule("/notes", view_func=Notes.as_view("notes"))
    calls = ("--traffic", "poisson", "--endpoint", "notes", "--calls", "10", "--users", "1")
    result = run(app, simulate, *calls, "--days", "0.01", "--json")
    (found,) = json.loads(result.output)["policies"]
    assert (found["admitted"], found["denied"]) == (2, 8)


def test_policies_are_compared(app: Flask, tmp_path: Path):
    """Two files: the looser one admits more, and both are on the page."""
    looser = tmp_path / "looser.toml"
    looser.write_text(POLICY.format(burst=10, amount=5000))
    page = tmp_path / "report.html"
    files = [str(tmp_path / "policy.toml"), str(looser)]
    result = run(
        app,
        simulate,
        *("--traffic", "poisson", *MADE_UP, "--policy", files[0], "--policy", files[1]),
        *("--json", "--html", str(page)),
    )
    assert result.exit_code == 0
    tight, loose = json.loads(result.output)["policies"]
    assert [tight["policy"], loose["policy"]] == files
    assert tight["admitted"] < loose["admitted"] == 2000
    assert tight["admitted"] + tight["denied"] == 2000
    assert tight["limits"][0]["name"] == "plan"
    shown = page.read_text()
    assert (
        f"<li>{', '.join(files)}: limits by &#x27;api_key&#x27; did not count 2,000 calls" in shown
    )
    assert shown.count("<svg") == 2
    assert "<script" not in shown
    assert "http" not in shown


def test_a_page_that_cannot_be_written_is_a_sentence(app: Flask, tmp_path: Path):
    """Status 1, and no traceback."""
    page = tmp_path / "missing" / "report.html"
    result = run(app, simulate, "--traffic", "poisson", *MADE_UP, "--html", str(page))
    assert result.exit_code == 1
    assert f"Error: --html: cannot write {page}: No such file or directory." in result.output


def test_a_file_with_broken_lines_is_replayed_and_reported(app: Flask, tmp_path: Path):
    """What can be read is simulated; the rest is counted, and the exit status is 1."""
    log = tmp_path / "access.log"
    log.write_text(
        '{"time": 1, "endpoint": "chat.ask", "user": "alice", "plan": "free"}\n'
        '1.1.1.1 - - [26/Nov/2026:13:55:36 +0000] "POST /ask HTTP/1.1" 200 1\n'
        "what\n"
        '1.1.1.1 - - [26/Nov/2026:13:55:37 +0000] "GET /free HTTP/1.1" 200 1\n'
    )
    result = run(app, simulate, "--traffic", str(log))
    assert result.exit_code == 1
    assert "Error: lines skipped: 1 (line 3: it is neither JSON" in result.output
    assert (
        "limits by 'user' did not count 1 call whose user is not in the traffic." in result.output
    )
    assert "no limit applies to 1 call of 'free'." in result.output


@pytest.mark.parametrize(("length", "shown"), [(2, "2/2"), (None, "  2")])
def test_a_terminal_shows_the_progress(
    monkeypatch: pytest.MonkeyPatch, length: int | None, shown: str
):
    """Of a file, whose length is not known, the number of calls so far."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("Simulating 2 policies", length) as advance:
        advance(1)
        advance(1)
    assert "Simulating 2 policies" in terminal.getvalue()
    assert shown in terminal.getvalue()


def test_the_input_is_traffic(app: Flask):
    """A dash reads the standard input, which is read as often as it is needed."""
    lines = "".join(
        f'{{"time": {at}, "endpoint": "chat.ask", "user": "alice", "plan": "free"}}\n'
        for at in range(60)
    )
    result = run(app, simulate, "--traffic", "-", "--json", text=lines)
    [found] = json.loads(result.output)["policies"]
    assert (found["admitted"], found["denied"]) == (50, 10)


def test_amounts_are_suggested(app: Flask):
    """For each limit with an amount, by what its identities asked for."""
    result = run(app, suggest, "--traffic", "diurnal", *MADE_UP, "--json")
    found = {each["limit"]: each for each in json.loads(result.output)}
    assert found.keys() == {"pace", "plan"}
    assert found["plan"]["amount"] == 50
    assert found["plan"]["suggested_amount"] == found["plan"]["largest"][0]["amount"] > 50
    assert found["plan"]["identities"] == 20
    assert found["pace"]["suggested_burst"] > 0
    table = run(app, suggest, "--traffic", "diurnal", *MADE_UP).output
    assert table.startswith("Suggested amounts")


def test_a_candidate_has_a_row_of_its_own(policy: Path, request: pytest.FixtureRequest):
    """It is marked as a limit in shadow: both have the same name."""
    policy.write_text(policy.read_text().replace('"50/day"', '"50/day"\ncandidate = "40/day"'))
    table = run(request.getfixturevalue("app"), suggest, "--traffic", "diurnal", *MADE_UP).output
    rows = [re.split(r" {2,}", line.strip())[::2][:2] for line in table.splitlines()]
    assert [row for row in rows if "plan" in row[0]] == [["plan", "50"], ["plan (shadow)", "40"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--traffic", "storm"], "found 'storm'; allowed: a file, - or one of poisson, burst"),
        (["--traffic", "burst"], "--endpoint is missing; choose one of chat.ask, free."),
        (["--traffic", "burst", "--endpoint", "x"], "no endpoint 'x'; choose one of chat.ask"),
        (["--traffic", "burst", "--users", "0"], "0 is not in the range"),
        (["--traffic", "-"], "The traffic has no calls."),
    ],
)
def test_a_mistake_is_one_sentence(app: Flask, arguments: list[str], said: str):
    """What was found, and what is allowed; nothing is simulated."""
    result = run(app, simulate, *arguments, text="")
    assert result.exit_code in {1, 2}
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [simulate, suggest])
def test_a_file_of_broken_lines_only_is_reported(app: Flask, command: click.Command):
    """Not as traffic without calls: the reasons say what is wrong with the file."""
    result = run(app, command, "--traffic", "-", text="junk\nmore junk\n")
    assert result.exit_code == 1
    assert "Error: lines skipped: 2 (line 1: it is neither JSON" in result.output


def test_a_policy_with_a_typo_is_reported_with_its_line(app: Flask, tmp_path: Path):
    """The same sentence as at a start."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(POLICY.format(burst=10, amount=50).replace('key = "user"', 'key = "usr"', 1))
    arguments = ("--traffic", "burst", *MADE_UP, "--policy", str(wrong))
    result = run(app, simulate, *arguments)
    assert result.exit_code == 1
    assert "wrong.toml" in result.output
    assert "there is no identity 'usr'" in result.output
