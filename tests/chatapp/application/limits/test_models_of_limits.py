"""Limits of some models only: `models = ["claude-haiku*"]`."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from chatapp import POLICY_FILE
from chatapp.ledger import table
from chatapp.operators import restoration
from chatapp.services import services_of
from tests.chatapp.application.upstreams.workers import ANTHROPIC, OPENAI, SMALLER, busy
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, json_of, policy_file
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import UpstreamServer

GROUP = "[groups.calls]\n"
CALLS = """
[[groups.calls.limits]]
name = "few"
limit = "2/day"
strategy = "fixed-window"
key = "user"
models = ["claude-haiku*", "gpt-5.4-mini"]

[[groups.calls.limits]]
name = "some-usd"
limit = "3 usd/week"
strategy = "fixed-window"
anchor = "week"
key = "user"
models = ["claude-haiku*"]
"""
PLANS = "# A plan limits a user's pace"


def policy(tmp_path: Path, limits: str = CALLS) -> str:
    """The packaged policy with these limits of calls."""
    text = POLICY_FILE.read_text()
    assert text.count(PLANS) == 1
    return policy_file(tmp_path, text.replace(PLANS, f"{limits}\n{PLANS}"))


@pytest.fixture
def app(make_app: AppMaker, provider: UpstreamServer, tmp_path: Path, uri: str) -> Flask:
    """Of which calls to some models are limited more."""
    return make_app(
        RATELIMIT_POLICY_FILE=policy(tmp_path),
        RATELIMIT_STORAGE_URI=uri,
        CHATAPP_PROVIDER_ATTEMPTS=1,
        CHATAPP_FALLBACK_MODELS={OPENAI: SMALLER, ANTHROPIC: SMALLER},
    )


def chat(app: Flask, model: str, user: str = "ada") -> Any:
    body = {"message": "hi", "model": model, "user_id": user}
    return app.test_client().post("/chat", json=body)


def used(app: Flask, user: str | None = "ada") -> dict[str, float]:
    """What each limit of the user, or of the address, has counted, by `GET /usage`."""
    query = {} if user is None else {"user_id": user}
    shown = json_of(app.test_client().get("/usage", query_string=query))
    return {each["name"]: each["limit"] - each["remaining"] for each in shown["limits"]}


def test_only_calls_of_its_models_are_counted(app: Flask) -> None:
    """The others are neither refused nor in its headers. A dated name is the same model."""
    names = [ANTHROPIC, SMALLER, OPENAI, ANTHROPIC, f"openai/{OPENAI}", SMALLER]
    answers = [chat(app, name) for name in names]
    assert [each.status_code for each in answers] == [200, 200, 200, 429, 429, 200]
    assert '"few";r=0;' in answers[3].headers["RateLimit"]
    policies = [each.headers["RateLimit-Policy"] for each in answers]
    assert ['"few"' in each for each in policies] == [True, False, True, True, True, False]
    assert ['"some-usd"' in each for each in policies] == [True, False, False, True, False, False]
    assert used(app)["few"] == 2
    assert chat(app, ANTHROPIC, "bob").status_code == 200


def test_commands_and_usage_say_for_which_models_it_is(app: Flask, tmp_path: Path) -> None:
    """In `show`, `inspect` and `/usage`; a simulation decides by the model of each call."""
    chat(app, ANTHROPIC)
    shown = json_of(app.test_client().get("/usage", query_string={"user_id": "ada"}))
    models = {each["name"]: each.get("models") for each in shown["limits"]}
    assert (models["few"], models["plan"]) == (["claude-haiku*", "gpt-5.4-mini"], None)
    runner = app.test_cli_runner()
    listed = runner.invoke(args=["ratelimit", "show", "--endpoint", "chat.chat"]).output
    assert "MODELS" in listed
    assert "claude-haiku*, gpt-5.4-mini" in listed
    inspected = runner.invoke(args=["ratelimit", "inspect", "ada"]).output
    assert "models claude-haiku*, gpt-5.4-mini" in inspected
    calls = [
        {"time": 1_800_000_000 + i, "endpoint": "chat.chat", "user": "ada", "model": model}
        for i, model in enumerate([ANTHROPIC] * 4 + [SMALLER] * 4)
    ]
    file = tmp_path / "calls.jsonl"
    file.write_text("\n".join(map(json.dumps, calls)))
    result = runner.invoke(args=["ratelimit", "simulate", "--traffic", str(file), "--json"])
    assert result.exit_code == 0, result.output
    [report] = json.loads(result.stdout)["policies"]
    assert [(each["name"], each["denied"]) for each in report["limits"]] == [("few", 2)]


def test_a_fallback_is_counted_as_itself(app: Flask, provider: UpstreamServer) -> None:
    """In the middle of a call, too: a limit that does not cover it gives back what it held, and one
    that covers it alone is charged."""
    provider.script(busy("7"))
    answer = chat(app, ANTHROPIC)
    assert (answer.status_code, answer.json["model"]) == (200, SMALLER)
    spent = used(app)
    assert spent["some-usd"] == 0
    assert spent["usd-day"] > 0
    assert spent["few"] == 1  # that call was made


def test_a_fallback_needs_the_limits_that_cover_it(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path
) -> None:
    """Without them it is not called, and nothing more is charged."""
    limits = CALLS.replace('["claude-haiku*", "gpt-5.4-mini"]', f'["{SMALLER}"]')
    app = make_app(
        RATELIMIT_POLICY_FILE=policy(tmp_path, limits.replace("2/day", "1/day")),
        CHATAPP_PROVIDER_ATTEMPTS=1,
        CHATAPP_FALLBACK_MODELS={ANTHROPIC: SMALLER},
    )
    provider.script(busy("7"))
    assert (chat(app, ANTHROPIC).json["model"], used(app)["few"]) == (SMALLER, 1)
    assert chat(app, ANTHROPIC).status_code == 503
    assert used(app)["few"] == 1


def test_a_pattern_without_a_model_is_a_warning(
    make_app: AppMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and at the check: it may be meant."""
    file = policy(tmp_path, CALLS.replace("gpt-5.4-mini", "gtp-4o"))
    app = make_app(RATELIMIT_POLICY_FILE=file)
    sentence = "'gtp-4o' matches no model of models.toml"
    assert sentence in caplog.text
    checked = app.test_cli_runner().invoke(args=["ratelimit", "check", file])
    assert (checked.exit_code, sentence in checked.output) == (0, True)


def test_a_lost_budget_gets_back_the_calls_of_its_models(app: Flask) -> None:
    """And no others."""
    services = services_of(app)
    now = datetime.now(UTC)
    table.write(
        services.database,
        [
            finished(begun(slug=ANTHROPIC, started_at=now), cost_micro_usd=1485),
            finished(begun(slug=SMALLER, started_at=now), cost_micro_usd=342),
        ],
    )
    with app.app_context():
        restored = restoration.restore(None, apply=True, reason="", by="olga")
    found = {each.limit: each.usage.missing for each in restored}
    assert found["some-usd"] == 1485
    assert found["usd-month"] == 1485 + 342
    assert run(app, "ledger", "check")


def test_the_limits_of_the_page(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path
) -> None:
    """Each is valid in the packaged policy, and counts what the page says."""
    page = Path(__file__).parents[4] / "docs" / "gateway" / "models-and-weeks.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    week, two_lines, *others = blocks
    file = policy(tmp_path, "\n".join([week.replace("20 usd", "0.0003 usd"), two_lines, *others]))
    app = make_app(RATELIMIT_POLICY_FILE=file)
    checked = app.test_cli_runner().invoke(args=["ratelimit", "check", file])
    assert checked.exit_code == 0, checked.output
    assert "Warning" not in checked.output
    answers = [chat(app, name) for name in ("claude-opus-4-6", SMALLER)]
    assert [each.status_code for each in answers] == [200, 200]
    policies = [each.headers["RateLimit-Policy"] for each in answers]
    assert ['"opus-week";q=300;w=604800' in each for each in policies] == [True, False]
    assert ['"model-day";q=500' in each for each in policies] == [True, True]
    assert used(app)["opus-week"] > 0
    later = [chat(app, "claude-opus-4-6") for _ in range(2)][-1]
    assert later.json["model"] == later.headers["x-cheaper-model"] == "claude-haiku-4-5"
    refused = {"headers": {"X-Cheaper-Model": "never"}}
    body = {"message": "hi", "model": "claude-opus-4-6", "user_id": "ada"}
    assert app.test_client().post("/chat", json=body, **refused).status_code == 429
