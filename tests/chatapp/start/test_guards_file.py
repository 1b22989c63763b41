"""The built-in guards: on the same endpoints whatever the policy, and replaced by name."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response

from chatapp import POLICY_FILE, guards_file
from chatapp.services import services_of
from chatapp.web.call_limits import QUOTAS
from tests.chatapp.conftest import GROUPS, AppMaker, policy_file
from tests.chatapp.upstream_server import UpstreamServer

HEAD = "version = 1\n[plans.starter]\n"
PLAN = '[[plans.starter.limits]]\nname = "plan"\nlimit = "100/day"\nkey = "user"\n'
BY_DIRECTION = {"exempt_when": "chatapp.web.current_call:has_no_quota_by_direction"}
# Name, limit, key, and the keywords besides: what the shipped policy had before they were built in.
GUARDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "blocked-all": ("unless blocked", "global", {}),
    "blocked-user": ("unless blocked", "user", {}),
    "blocked-key": (
        "unless blocked",
        "api_key",
        {"on_breach": "chatapp.web.authentication:refuse_revoked"},
    ),
    "blocked-model": (
        "unless blocked",
        "model",
        {"exempt_when": "chatapp.web.identities:names_no_model"},
    ),
    "surge": (
        "5 usd/hour or 20 x usual",
        "api_key",
        {"exempt_when": "chatapp.web.identities:is_named_by_key"},
    ),
    "provider": ("unless blocked", "upstream", {}),
    "provider-requests": ("as reported", "upstream", {}),
    "provider-tokens": ("as reported", "upstream", {"unit": "tokens"}),
    "provider-input-tokens": ("as reported", "upstream", {"unit": "input_tokens", **BY_DIRECTION}),
    "provider-output-tokens": (
        "as reported",
        "upstream",
        {"unit": "output_tokens", **BY_DIRECTION},
    ),
}
SWITCHES, CALLS = list(GUARDS)[:4], list(GUARDS)[4:]


def added(policy: Path | None, given: object = None) -> dict[str, Any]:
    """The configuration of the extension, as names of limits by blueprint or endpoint."""
    config: dict[str, Any] = {guards_file.BLUEPRINTS: given}
    with guards_file.added(config, policy):
        blueprints = dict(config[guards_file.BLUEPRINTS] or {})
    assert config[guards_file.BLUEPRINTS] is given
    return blueprints


def names(limits: list[Any]) -> list[str]:
    return [limit if isinstance(limit, str) else limit["name"] for limit in limits]


def test_every_call_of_a_provider_has_its_guards() -> None:
    """The switches, also for counting tokens; the others for calls of models."""
    assert {target: names(limits) for target, limits in added(POLICY_FILE).items()} == {
        "chat": [*SWITCHES, *CALLS],
        "anthropic_api": SWITCHES,
        "anthropic_api.messages": CALLS,
        "openai_api": [*SWITCHES, *CALLS],
        "openai_stored": SWITCHES,
    }


def test_the_guards_are_those_of_the_table() -> None:
    """All keywords but the message, in one bucket for all endpoints."""
    for limits in added(POLICY_FILE).values():
        for limit in limits:
            text, key, others = GUARDS[limit["name"]]
            expected = {"name": limit["name"], "limit": text, "key": key, "scope": "guards"}
            assert {**limit, "error_message": None} == {**expected, **others, "error_message": None}


def test_the_shipped_policy_names_no_guard() -> None:
    """It has the plans and limits that a person writes."""
    policy = tomllib.loads(POLICY_FILE.read_text("utf-8"))
    assert not {*SWITCHES, *CALLS}.intersection(guards_file._names(policy))


def test_a_limit_of_the_same_name_replaces_a_guard(tmp_path: Path) -> None:
    """In the file or in RATELIMIT_BLUEPRINTS, on every endpoint."""
    policy = tmp_path / "policy.toml"
    policy.write_text(f'{HEAD}{PLAN}[[application]]\nname = "surge"\nlimit = "9/day"\n')
    given = {"chat": [{"name": "provider", "limit": "7/day"}]}
    found = added(policy, given)
    rest = [name for name in CALLS if name not in {"surge", "provider"}]
    assert names(found["chat"]) == ["provider", *SWITCHES, *rest]
    assert names(found["anthropic_api.messages"]) == rest


@pytest.mark.parametrize(
    "given",
    [["9/day"], {"limits": ["9/day"]}, {"plans": True, "limits": ["9/day"]}],
    ids=["list", "table", "plans"],
)
def test_configured_limits_stay(given: Any) -> None:
    """Of a blueprint with guards, in each of the extension's forms."""
    found = added(POLICY_FILE, {"chat": given})["chat"]
    limits = found["limits"] if isinstance(found, dict) else found
    assert names(limits) == ["9/day", *SWITCHES, *CALLS]
    if isinstance(found, dict):
        assert {**found, "limits": None} == {**given, "limits": None}


@pytest.mark.parametrize("given", [{"chat": 3}, {"chat": {"limits": 3}}])
def test_mistakes_are_left_to_the_extension(given: Any) -> None:
    """It reports them as they were written."""
    assert added(POLICY_FILE, given)["chat"] == given["chat"]


def test_without_a_policy_there_are_no_guards() -> None:
    """An application without limits stays one."""
    assert added(None) == {}


@pytest.fixture
def replacing(make_app: AppMaker, tmp_path: Path, provider: UpstreamServer) -> Flask:
    """An application whose policy has a surge of its own, in shadow."""
    surge = '[[groups.mine.limits]]\nname = "surge"\nlimit = "1 usd/hour or 2 x usual"\n'
    group = f'{GROUPS}[groups.mine]\nmembers = ["chat"]\nplans = true\n'
    text = f'{HEAD}{PLAN}{group}{surge}mode = "shadow"\nkey = "user"\n'
    return make_app(RATELIMIT_POLICY_FILE=policy_file(tmp_path, text))


def checked(app: Flask, *words: str, status: int = 0) -> str:
    """What `ratelimit check` prints."""
    result = app.test_cli_runner().invoke(args=["ratelimit", "check", *words])
    assert result.exit_code == status, result.output
    return result.output


def test_an_application_starts_with_a_replaced_guard(replacing: Flask) -> None:
    """The file is also valid for `ratelimit check`, whose lines are those of the file."""
    assert replacing.test_client().post("/chat", json={"message": "hi"}).status_code == 200
    file = Path(replacing.config["RATELIMIT_POLICY_FILE"])
    assert "is valid: 2 limits" in checked(replacing)
    file.write_text(file.read_text().replace('"100/day"', '"100/dya"'))
    output = checked(replacing, str(file), status=1)
    assert f"{file}:5: plans.starter.limits[0].limit" in output
    assert "RATELIMIT_BLUEPRINTS" not in output


def test_an_older_policy_does_not_leave_calls_unlimited_unnoticed(
    replacing: Flask, make_app: AppMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """Addresses that call models and that no plan applies to are named, at the start and by the
    check; the policy that comes with chatapp has none."""
    warning = (
        "No plan applies to anthropic_api.messages, openai_api.chat_completions, "
        "openai_api.compact, openai_api.embeddings, openai_api.responses: "
    )
    assert [each for each in caplog.get_records("setup") if warning in each.getMessage()]
    assert warning in checked(replacing)
    caplog.clear()
    assert "Warning" not in checked(make_app())
    assert "No plan applies" not in caplog.text


@pytest.mark.parametrize(
    ("model", "has_both"), [("gpt-5.4-mini", False), ("claude-haiku-4-5", True), ("offline", False)]
)
def test_a_quota_by_direction_is_charged_where_the_provider_reports_it(
    make_app: AppMaker, provider: UpstreamServer, model: str, has_both: bool
) -> None:
    """A call of another provider is spared two charges that could never deny."""
    app = make_app()
    charged: dict[str, bool] = {}

    @app.after_request
    def note(response: Response) -> Response:
        limiter = services_of(app).limiter
        charged.update((name, limiter.current.verdict(name) is not None) for name in QUOTAS)
        return response

    answer = app.test_client().post("/chat", json={"message": "ping", "model": model})
    assert answer.status_code == 200, answer.text
    assert charged == {
        "provider-requests": True,
        "provider-tokens": True,
        "provider-input-tokens": has_both,
        "provider-output-tokens": has_both,
    }
