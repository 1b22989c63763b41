"""The `flask limiter` commands, with our class."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Blueprint, Flask
from flask_limiter import commands

from ratelimit_ext import Limiter
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off at the right."""
    monkeypatch.setenv("COLUMNS", "240")


def run(app: Flask, *arguments: str, answer: str | None = None) -> str:
    """What a command prints."""
    result = app.test_cli_runner().invoke(commands.cli, arguments, input=answer)
    assert result.exception is None, result.output
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


def test_config_says_what_is_in_force(app: Flask) -> None:
    """Strategy, storage, headers and prefix."""
    output = run(app, "config")
    assert "MemoryStorage" in output
    assert "50 per 1 hour" in output
    assert "X-RateLimit-Reset" in output


def test_limits_lists_every_endpoint(app: Flask) -> None:
    """With the limits of views and blueprints."""
    output = run(app, "limits")
    for line in ("4 per 1 minute", "9 per 1 minute", "2 per 1 minute (POST)", "50 per 1 hour"):
        assert line in output


def test_limits_tells_what_a_caller_has_left(app: Flask) -> None:
    """From the buckets that requests are charged to."""
    assert statuses(app, "/own", 2) + statuses(app, "/chat/") + statuses(app) == [200] * 4
    output = run(app, "limits", "--key", "someone")
    assert "2 per 1 minute (GET): Fail (0 out of 2 remaining)" in output
    assert "2 per 1 minute (POST): Pass (2 out of 2 remaining)" in output
    assert "4 per 1 minute: Pass (2 out of 4 remaining)" in output
    assert "9 per 1 minute: Pass (8 out of 9 remaining)" in output
    assert "50 per 1 hour: Pass (46 out of 50 remaining)" in output
    assert "Fail" not in run(app, "limits", "--key", "another")


@pytest.mark.parametrize("way", [("-y",), ()], ids=["unasked", "confirmed"])
def test_clear_forgets_a_caller(app: Flask, way: tuple[str, ...]) -> None:
    """In every limit, and nobody else."""
    for key in ("someone", "another"):
        assert statuses(app, "/own", 3, headers={"X-Key": key}) == [200, 200, 429]
        assert statuses(app, "/chat/", 4, headers={"X-Key": key})[-1] == 429
    output = run(app, "clear", "--key", "someone", *way, answer="y\n")
    assert "Cleared" in output
    assert statuses(app, "/own", 3) == [200, 200, 429]
    assert statuses(app, "/chat/", 4) == [200, 200, 200, 429]
    assert statuses(app, "/own", headers={"X-Key": "another"}) == [429]


def test_clear_of_one_endpoint_leaves_the_others(app: Flask) -> None:
    """By its name."""
    assert statuses(app, "/own", 3)[-1] == statuses(app, "/chat/", 4)[-1] == 429
    run(app, "clear", "--key", "someone", "--endpoint", "own", "-y")
    assert statuses(app, "/own") == [200]
    assert statuses(app, "/chat/") == [429]


def test_the_commands_know_limits_by_configuration(make: Maker, tmp_path: Path) -> None:
    """Those of blueprints, of endpoints and of plans; a plan's are listed without a caller."""
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
    assert "3 per 1 minute: Fail" in output
    assert "2 per 1 minute: Fail" in output
    assert "7 per 1 day: Pass (4 out of 7 remaining)" in output
    run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) + statuses(app, "/chat/") == [200, 200]


def test_the_commands_show_the_limits_of_groups(tmp_path: Path) -> None:
    """`flask limiter limits` comes before any request, and knows what the first one would."""
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[groups.calls]\nmembers = ["view"]\nlimits = ["7/minute"]\n')
    app = Flask("example")
    app.config.update(RATELIMIT_POLICY_FILE=str(policy), RATELIMIT_STORAGE_URI="memory://")
    Limiter(lambda: "someone", app=app)
    app.add_url_rule("/", "view", lambda: "ok")
    shown = app.test_cli_runner().invoke(commands.cli, ["limits"])
    assert "7 per 1 minute" in shown.output
