"""The `flask limiter` commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Blueprint, Flask
from flask_limiter import commands

from ratelimit_ext import Limiter
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide enough that Flask-Limiter's output is not wrapped."""
    monkeypatch.setenv("COLUMNS", "240")


def run(app: Flask, *arguments: str, answer: str | None = None, status: int = 0) -> str:
    """The output of a command."""
    result = app.test_cli_runner().invoke(commands.cli, arguments, input=answer)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(params=["", "tenant"], ids=["plain", "prefixed"])
def app(request: pytest.FixtureRequest, make: Maker) -> Flask:
    """An application with limits of every kind, with and without a key prefix."""
    app, limiter = make(
        key_prefix=request.param,
        application_limits=["50/hour"],
        default_limits=["9/minute"],
        strategy="token-bucket",
    )
    blueprint = Blueprint("chat", "chat", url_prefix="/chat")
    blueprint.add_url_rule("/", "ask", lambda: "asked")
    limiter.limit("4/minute", burst=3, strategy="token-bucket")(blueprint)
    app.register_blueprint(blueprint)
    app.add_url_rule("/", "root", lambda: "ok")

    @app.route("/own", methods=["GET", "POST"])
    @limiter.limit("2/minute", per_method=True, strategy="sliding-window")
    def own() -> str:
        return "own"

    return app


def test_config_shows_the_configuration(app: Flask) -> None:
    """Strategy, storage, headers and prefix."""
    output = run(app, "config")
    assert "MemoryStorage" in output
    assert "50 per 1 hour" in output
    assert "X-RateLimit-Reset" in output


def test_limits_lists_every_endpoint(app: Flask) -> None:
    """With the limits of views and blueprints, and a pointer at the commands that show more."""
    output = run(app, "limits")
    for line in (
        "Application Limits\n└── 50 per 1 hour\n",
        "chat.ask: /chat/\n    └── 4 per 1 minute\n",
        "root: /\n│   └── 9 per 1 minute\n",
        "2 per 1 minute (POST)",
    ):
        assert line in output
    assert output.count("See also `flask ratelimit show`") == 1


def test_limits_shows_what_a_key_has_left(app: Flask) -> None:
    """Read from the buckets that requests are charged to."""
    assert statuses(app, "/own", 2) + statuses(app, "/chat/") + statuses(app) == [200] * 4
    output = run(app, "limits", "--key", "someone")
    for words in (
        "2 per 1 minute (GET): Fail (0 out of 2 remaining)",
        "2 per 1 minute (POST): Pass (2 out of 2 remaining)",
        "4 per 1 minute: Pass (2 out of 4 remaining)",
        "9 per 1 minute: Pass (8 out of 9 remaining)",
        "50 per 1 hour: Pass (46 out of 50 remaining)",
    ):
        assert words in output
    assert "Fail" not in run(app, "limits", "--key", "another")


@pytest.mark.parametrize("way", [("-y",), ()], ids=["-y", "confirmed"])
def test_clear_restores_the_limits_of_a_key(app: Flask, way: tuple[str, ...]) -> None:
    """All of them, and of no other key."""
    for key in ("someone", "another"):
        assert statuses(app, "/own", 3, headers={"X-Key": key}) == [200, 200, 429]
        assert statuses(app, "/chat/", 4, headers={"X-Key": key})[-1] == 429
    output = run(app, "clear", "--key", "someone", *way, answer="y\n")
    assert "2 per 1 minute: Cleared" in output
    assert statuses(app, "/own", 3) == [200, 200, 429]
    assert statuses(app, "/chat/", 4) == [200, 200, 200, 429]
    assert statuses(app, "/own", headers={"X-Key": "another"}) == [429]


def test_clear_can_be_restricted_to_an_endpoint(app: Flask) -> None:
    """Other endpoints and the application's limits keep their counts."""
    assert statuses(app, "/own", 3)[-1] == statuses(app, "/chat/", 4)[-1] == 429
    output = run(app, "clear", "--key", "someone", "--endpoint", "own", "-y")
    assert "50 per 1 hour" not in output
    assert statuses(app, "/own") == [200]
    assert statuses(app, "/chat/") == [429]


def test_the_commands_include_the_limits_of_a_policy(make: Maker, tmp_path: Path) -> None:
    """Of blueprints, endpoints and plans; a plan's limits are listed without a request."""
    file = tmp_path / "policy.toml"
    file.write_text(
        """
        version = 1
        [blueprints.chat]
        plans = true
        limits = ["3/minute"]
        [routes.root]
        limits = ["2/minute"]
        [plans.starter]
        limits = [{ name = "plan", limit = "7/day", strategy = "sliding-window" }]
        """
    )
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    limiter = Limiter(asked_key, storage_uri="memory://")
    limiter.plan_loader(lambda: "starter")
    limiter.init_app(app)
    blueprint = Blueprint("chat", "chat", url_prefix="/chat")
    blueprint.add_url_rule("/", "ask", lambda: "asked")
    app.register_blueprint(blueprint)
    app.add_url_rule("/", "root", lambda: "ok")
    assert statuses(app, times=3) == [200, 200, 429]
    assert statuses(app, "/chat/", 4) == [200, 200, 200, 429]
    output = run(app, "limits", "--key", "someone")
    assert "3 per 1 minute: Fail (0 out of 3 remaining)" in output
    assert "2 per 1 minute: Fail (0 out of 2 remaining)" in output
    assert "7 per 1 day: Pass (4 out of 7 remaining)" in output
    run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) + statuses(app, "/chat/") == [200, 200]


def test_the_commands_include_the_limits_of_groups(tmp_path: Path) -> None:
    """Also before the first request, which completes the policy."""
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[groups.calls]\nmembers = ["view"]\nlimits = ["7/minute"]\n')
    app = Flask("example")
    app.config.update(RATELIMIT_POLICY_FILE=str(policy), RATELIMIT_STORAGE_URI="memory://")
    Limiter(lambda: "someone", app=app)
    app.add_url_rule("/", "view", lambda: "ok")
    assert "7 per 1 minute" in run(app, "limits")


def test_limits_shows_exemptions(make: Maker) -> None:
    """As Flask-Limiter does."""
    app, limiter = make(application_limits=["9/hour"])
    app.get("/healthz", endpoint="health")(limiter.exempt(lambda: "ok"))
    assert "health: /healthz\n    └── Exempt\n" in run(app, "limits")


def block(app: Flask, limiter: Limiter, identity: str) -> None:
    with app.app_context():
        limiter.operators.block("switch", identity)


def test_clear_that_is_not_confirmed_clears_nothing(app: Flask) -> None:
    """The counts stay."""
    assert statuses(app, "/own", 3)[-1] == 429
    run(app, "clear", "--key", "someone", answer="n\n")
    assert statuses(app, "/own") == [429]


def test_clear_lifts_blocks(make: Maker) -> None:
    """With all other counts of that key."""
    app, limiter = make()
    app.get("/")(
        limiter.limit("unless blocked", name="switch")(
            limiter.limit("1/day", override_defaults=False)(lambda: "ok")
        )
    )
    assert statuses(app, times=2) == [200, 429]
    block(app, limiter, "someone")
    assert "unless blocked: Cleared" in run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) == [200]


@pytest.mark.parametrize(
    ("command", "is_quiet"), [("limiter limits", True), ("ratelimit show", True), ("routes", False)]
)
def test_commands_are_not_warned_of_the_storage(
    tmp_path: Path, command: str, is_quiet: bool
) -> None:
    """Flask-Limiter warns of a storage that is not configured, wherever the extension is made."""
    file = tmp_path / "limiter.py"
    file.write_text(
        "from flask import Flask\n"
        "from ratelimit_ext import Limiter, client_ip\n"
        "app = Flask(__name__)\n"
        "limiter = Limiter(client_ip, app=app, default_limits=['5/minute'])\n"
        "app.get('/', endpoint='root')(lambda: 'ok')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", str(file), *command.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "root" in done.stdout
    assert ("in-memory storage" in done.stderr) != is_quiet
