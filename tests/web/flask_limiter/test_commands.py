"""The `flask limiter` commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Blueprint, Flask, g
from flask.views import MethodView
from flask_limiter import commands
from limits.storage import MemoryStorage

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
    """With the limits of views and blueprints, as a tree under each endpoint."""
    output = run(app, "limits")
    assert output.startswith("Application Limits\n└── 50 per 1 hour [")
    for line in (
        "4 per 1 minute [token-bucket, burst 3, key asked_key]",
        "9 per 1 minute [token-bucket, key asked_key]",
        "2 per 1 minute (POST) [sliding-window, key asked_key]",
        "50 per 1 hour [token-bucket, key asked_key]",
    ):
        assert line in output


def test_limits_lists_the_methods_of_a_class_that_differ(make: Maker) -> None:
    """Each with its own limits, before any request; `clear` restores them."""
    app, limiter = make(default_limits=["9/minute"])

    class Resource(MethodView):
        @limiter.limit("2/minute")
        def get(self) -> str:
            return "got"

        def post(self) -> str:
            return "posted"

    app.add_url_rule("/", view_func=Resource.as_view("resource"))
    output = run(app, "limits", "--endpoint", "resource")
    own, others = output.index("resource: / GET"), output.index("resource: / POST")
    assert "2 per 1 minute" in output[own:others]
    assert "9 per 1 minute" in output[others:]
    assert "9 per 1 minute" not in output[own:others]
    assert statuses(app, times=3) == [200, 200, 429]
    run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) == [200]


def test_limits_shows_what_a_key_has_left(app: Flask) -> None:
    """Read from the buckets that requests are charged to, in Flask-Limiter's words."""
    assert statuses(app, "/own", 2) + statuses(app, "/chat/") + statuses(app) == [200] * 4
    output = run(app, "limits", "--key", "someone")
    for words in (
        "2 per 1 minute (GET): Fail (0 out of 2 remaining) [",
        "2 per 1 minute (POST): Pass (2 out of 2 remaining) [",
        "4 per 1 minute: Pass (2 out of 3 remaining) [",
        "9 per 1 minute: Pass (8 out of 9 remaining) [",
        "50 per 1 hour: Pass (46 out of 50 remaining) [",
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
    assert "Cleared 3 counts of 'someone'." in output
    assert "2 per 1 minute: Cleared [sliding-window, key asked_key]" in output
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
    assert "3 per 1 minute: Fail (0 out of 3 remaining) [fixed-window, key asked_key]" in output
    assert "2 per 1 minute: Fail (0 out of 2 remaining) [fixed-window, key asked_key]" in output
    plan = "plan: 7 per 1 day: Pass (4 out of 7 remaining)"
    assert f"{plan} [sliding-window, key asked_key, plan starter]" in output
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


def test_a_limit_is_shown_with_its_options(make: Maker) -> None:
    """Name, strategy, key, unit and mode. What remains is in the limit's unit: a burst, dollars,
    calls in flight."""
    app, limiter = make()

    @limiter.identity("tenant")
    def tenant() -> str:
        return "acme"

    @app.get("/")
    @limiter.limit("30/minute", strategy="token-bucket", burst=10, name="pace", key_func=tenant)
    @limiter.limit("5 usd/day", cost="0.75", name="money")
    @limiter.limit("5/minute", mode="shadow", name="trial")
    @limiter.limit("4 in flight", name="slots")
    @limiter.limit("9000/day", unit="tokens", cost=4, name="tokens")
    @limiter.limit("unless blocked", name="switch")
    @limiter.limit(lambda: "8/hour")
    def view() -> str:
        return "ok"

    def shown(key: str) -> list[str]:
        lines = run(app, "limits", "--key", key).split("\n")
        return sorted(line[4:] for line in lines if "[" in line)

    assert shown("ada") == [
        "8 per 1 hour: Pass (8 out of 8 remaining) [fixed-window, key asked_key]",
        "money: 5 usd per 1 day: Pass (5 out of 5 remaining) [fixed-window, key asked_key]",
        "pace: 30 per 1 minute: Pass (10 out of 10 remaining) [token-bucket, burst 10, key tenant]",
        "slots: 4 in flight: Pass (4 out of 4 remaining) [concurrency, key asked_key]",
        "switch: unless blocked: Pass [block, key asked_key]",
        (
            "tokens: 9000 per 1 day: Pass (9000 out of 9000 remaining) "
            "[fixed-window, tokens, key asked_key]"
        ),
        "trial: 5 per 1 minute: Pass (5 out of 5 remaining) [fixed-window, key asked_key, shadow]",
    ]
    app.test_client().get("/", headers={"X-Key": "ada"}).close()
    block(app, limiter, "ada")
    used = "\n".join(shown("ada"))
    assert "(4.25 out of 5 remaining)" in used
    assert "(8996 out of 9000 remaining)" in used
    assert "switch: unless blocked: Fail [block, key asked_key]" in used
    assert "pace: 30 per 1 minute: Pass (9 out of" in "\n".join(shown("acme"))


def test_limits_shows_exemptions(make: Maker) -> None:
    """As Flask-Limiter does."""
    app, limiter = make(application_limits=["9/hour"])
    app.get("/healthz", endpoint="health")(limiter.exempt(lambda: "ok"))
    assert "health: /healthz\n└── Exempt\n" in run(app, "limits")


def test_limits_without_a_storage(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are listed, and the state is not available."""
    monkeypatch.setattr(MemoryStorage, "check", lambda _: False)
    output = run(app, "limits", "--key", "someone")
    assert "50 per 1 hour: Storage not available [token-bucket, key asked_key]" in output


def test_a_limit_function_that_needs_a_request_is_named(make: Maker) -> None:
    """With its error; the other limits are listed."""
    app, limiter = make(default_limits=["9/minute"])

    def by_tenant() -> str:
        return {"acme": "5/minute"}[g.tenant]

    app.get("/")(limiter.limit(by_tenant, override_defaults=False)(lambda: "ok"))
    output = run(app, "limits")
    assert "├── returned by by_tenant at each request (" in output
    assert "└── 9 per 1 minute [" in output


def block(app: Flask, limiter: Limiter, identity: str) -> None:
    with app.app_context():
        limiter.block("switch", identity)


@pytest.mark.parametrize("key", ["ada", "user:ada"])
def test_clear_finds_users(uri: str, tmp_path: Path, key: str) -> None:
    """`key = "user"` of a policy counts `user-ada`; an application may count `user:ada`."""
    file = tmp_path / "policy.toml"
    file.write_text(
        'version = 1\n[routes]\none = { limits = [{ limit = "1/day", key = "user" }] }\n'
        'two = { limits = [{ limit = "1/day", key = "own" }] }\n'
    )
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    limiter = Limiter(asked_key, storage_uri=uri)
    limiter.identity("own")(lambda: "user:ada")
    limiter.init_app(app)
    app.before_request(lambda: setattr(g, "user_id", "ada"))
    app.add_url_rule("/one", "one", lambda: "ok")
    app.add_url_rule("/two", "two", lambda: "ok")
    for path in ("/one", "/two"):
        assert statuses(app, path, 2) == [200, 429]
    assert run(app, "limits", "--key", key).count("Fail (0 out of 1 remaining)") == 2
    assert f"Cleared 2 counts of {key!r}." in run(app, "clear", "--key", key, "-y")
    assert statuses(app, "/one") + statuses(app, "/two") == [200, 200]


def test_clear_finds_addresses_and_api_keys(make: Maker, tmp_path: Path) -> None:
    """By the address of a client, and by the key that it sends."""
    file = tmp_path / "policy.toml"
    file.write_text(
        'version = 1\n[routes]\none = { limits = [{ limit = "1/day", key = "ip" }] }\n'
        'two = { limits = [{ limit = "1/day", key = "api_key" }] }\n'
    )
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    Limiter(asked_key, app=app, storage_uri="memory://")
    app.add_url_rule("/one", "one", lambda: "ok")
    app.add_url_rule("/two", "two", lambda: "ok")
    caller = {
        "environ_overrides": {"REMOTE_ADDR": "2001:db8::7"},
        "headers": {"X-API-Key": "sk-secret"},
    }
    for path in ("/one", "/two"):
        assert statuses(app, path, 2, **caller) == [200, 429]
    assert "Cleared 1 count" in run(app, "clear", "--key", "2001:db8::99", "-y")
    assert "Cleared 1 count" in run(app, "clear", "--key", "sk-secret", "-y")
    assert statuses(app, "/one", **caller) + statuses(app, "/two", **caller) == [200, 200]


def test_clear_of_an_unknown_key_fails(app: Flask) -> None:
    """With status 1, and a hint at what to write."""
    assert statuses(app, "/own", 3)[-1] == 429
    output = run(app, "clear", "--key", "unknown", "-y", status=1)
    assert "Nothing was counted for 'unknown'" in output
    assert statuses(app, "/own") == [429]


def test_clear_that_is_not_confirmed_clears_nothing(app: Flask) -> None:
    """Status 1: a script must not take it for success."""
    assert statuses(app, "/own", 3)[-1] == 429
    run(app, "clear", "--key", "someone", answer="n\n", status=1)
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
    assert "Cleared 2 counts" in run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) == [200]


def test_clear_lifts_a_ban(make: Maker) -> None:
    """The count of a meta limit."""
    app, limiter = make(meta_limits=["1/day"])
    app.get("/")(limiter.limit("1/day")(lambda: "ok"))
    assert statuses(app, times=3) == [200, 429, 429]
    assert "Cleared 2 counts" in run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) == [200]


@pytest.mark.parametrize(
    ("command", "is_quiet"),
    [("limiter limits", True), ("ratelimit show", True), ("routes", False)],
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
