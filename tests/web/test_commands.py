"""The `flask limiter` commands, with our class."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Blueprint, Flask, g
from flask_limiter import commands

from ratelimit_ext import Limiter
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off at the right."""
    monkeypatch.setenv("COLUMNS", "240")


def run(app: Flask, *arguments: str, answer: str | None = None, status: int = 0) -> str:
    """What a command prints."""
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


def test_config_says_what_is_in_force(app: Flask) -> None:
    """Strategy, storage, headers and prefix."""
    output = run(app, "config")
    assert "MemoryStorage" in output
    assert "50 per 1 hour" in output
    assert "X-RateLimit-Reset" in output


def test_limits_lists_every_endpoint(app: Flask) -> None:
    """With the limits of views and blueprints."""
    output = run(app, "limits")
    for line in (
        "4 per 1 minute [token-bucket, burst 3, key asked_key]",
        "9 per 1 minute [token-bucket, key asked_key]",
        "2 per 1 minute (POST) [sliding-window, key asked_key]",
        "50 per 1 hour [token-bucket, key asked_key]",
    ):
        assert line in output


def test_limits_tells_what_a_caller_has_left(app: Flask) -> None:
    """From the buckets that requests are charged to."""
    assert statuses(app, "/own", 2) + statuses(app, "/chat/") + statuses(app) == [200] * 4
    lines = run(app, "limits", "--key", "someone").split("\n")

    def told(words: str) -> str:
        return next(line for line in lines if words in line).partition("]: ")[2]

    assert told("2 per 1 minute (GET)") == "Fail (0 out of 2 remaining)"
    assert told("2 per 1 minute (POST)") == "Pass (2 out of 2 remaining)"
    assert told("4 per 1 minute") == "Pass (2 out of 3 remaining)"
    assert told("9 per 1 minute") == "Pass (8 out of 9 remaining)"
    assert told("50 per 1 hour") == "Pass (46 out of 50 remaining)"
    assert "Fail" not in run(app, "limits", "--key", "another")


@pytest.mark.parametrize("way", [("-y",), ()], ids=["unasked", "confirmed"])
def test_clear_forgets_a_caller(app: Flask, way: tuple[str, ...]) -> None:
    """In every limit, and nobody else."""
    for key in ("someone", "another"):
        assert statuses(app, "/own", 3, headers={"X-Key": key}) == [200, 200, 429]
        assert statuses(app, "/chat/", 4, headers={"X-Key": key})[-1] == 429
    output = run(app, "clear", "--key", "someone", *way, answer="y\n")
    assert "Cleared 3 counts of 'someone'." in output
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
    assert "3 per 1 minute [fixed-window, key asked_key]: Fail" in output
    assert "2 per 1 minute [fixed-window, key asked_key]: Fail" in output
    plan = "plan: 7 per 1 day [sliding-window, key asked_key, plan starter]"
    assert f"{plan}: Pass (4 out of 7 remaining)" in output
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


def test_limits_say_what_they_are(make: Maker) -> None:
    """Name, strategy, key, unit and mode; what is left is counted in what can be left: a burst,
    dollars, and calls in flight. A shadow that nobody uses is full."""
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
        return sorted(line.strip() for line in lines if "[" in line)

    assert shown("ada") == [
        "8 per 1 hour [fixed-window, key asked_key]: Pass (8 out of 8 remaining)",
        "money: 5 usd per 1 day [fixed-window, key asked_key]: Pass (5 out of 5 remaining)",
        "pace: 30 per 1 minute [token-bucket, burst 10, key tenant]: Pass (10 out of 10 remaining)",
        "slots: 4 in flight [concurrency, key asked_key]: Pass (4 out of 4 remaining)",
        "switch: unless blocked [block, key asked_key]: Pass",
        (
            "tokens: 9000 per 1 day [fixed-window, tokens, key asked_key]: "
            "Pass (9000 out of 9000 remaining)"
        ),
        "trial: 5 per 1 minute [fixed-window, key asked_key, shadow]: Pass (5 out of 5 remaining)",
    ]
    app.test_client().get("/", headers={"X-Key": "ada"}).close()
    limiter_block(app, limiter, "ada")
    used = "\n".join(shown("ada"))
    assert "(4.25 out of 5 remaining)" in used
    assert "(8996 out of 9000 remaining)" in used
    assert "switch: unless blocked [block, key asked_key]: Fail" in used
    assert (
        "pace: 30 per 1 minute [token-bucket, burst 10, key tenant]: Pass (9 out of"
        in "\n".join(shown("acme"))
    )


def limiter_block(app: Flask, limiter: Limiter, identity: str) -> None:
    """Block an identity, as an operator does."""
    with app.app_context():
        limiter.block("switch", identity)


@pytest.fixture(params=["memory", "redis"])
def uri(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    if request.param == "memory":
        return "memory://"
    request.getfixturevalue("redis_client")
    return str(request.getfixturevalue("redis_server").uri)


@pytest.mark.parametrize("key", ["ada", "user:ada"])
def test_clear_knows_users_as_identities_write_them(uri: str, tmp_path: Path, key: str) -> None:
    """`key = "user"` of a policy counts `user-ada`, and an application's own `user:ada`."""
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


def test_clear_knows_addresses_and_api_keys(make: Maker, tmp_path: Path) -> None:
    """An address as a person writes it, and the key that a caller sends."""
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


def test_clear_of_nobody_fails(app: Flask) -> None:
    """With status 1, and a sentence that says what to write."""
    assert statuses(app, "/own", 3)[-1] == 429
    output = run(app, "clear", "--key", "somebody", "-y", status=1)
    assert "Nothing is counted for 'somebody'" in output
    assert statuses(app, "/own") == [429]


def test_clear_that_is_not_confirmed_clears_nothing(app: Flask) -> None:
    """It fails too: a script cannot take it for done."""
    assert statuses(app, "/own", 3)[-1] == 429
    run(app, "clear", "--key", "someone", answer="n\n", status=1)
    assert statuses(app, "/own") == [429]


def test_clear_lifts_blocks(make: Maker) -> None:
    """Along with everything else of that key."""
    app, limiter = make()
    app.get("/")(
        limiter.limit("unless blocked", name="switch")(
            limiter.limit("1/day", override_defaults=False)(lambda: "ok")
        )
    )
    assert statuses(app, times=2) == [200, 429]
    limiter_block(app, limiter, "someone")
    assert "Cleared 2 counts" in run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) == [200]


def test_clear_lifts_a_ban(make: Maker) -> None:
    """A limit on denials is counted as well."""
    app, limiter = make(meta_limits=["1/day"])
    app.get("/")(limiter.limit("1/day")(lambda: "ok"))
    assert statuses(app, times=3) == [200, 429, 429]
    assert "Cleared 2 counts" in run(app, "clear", "--key", "someone", "-y")
    assert statuses(app) == [200]
