"""create_app: what it chooses, rejects and logs."""

import logging
from inspect import iscoroutinefunction
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from chatapp import MISTAKES, POLICY_FILE, catalogue, create_app
from chatapp.accounts.store import Accounts
from chatapp.services import services_of
from chatapp.settings import SettingsError
from chatapp.web.identities import SPOOFING_WARNING
from ratelimit_ext import ConfigurationError
from ratelimit_ext.policy import load_policy
from tests.chatapp.conftest import GROUPS, AppMaker, policy_file


def test_the_start_logs_that_users_can_be_forged(
    make_app: AppMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """Once."""
    with caplog.at_level(logging.WARNING):
        make_app()
    assert caplog.messages == [SPOOFING_WARNING]
    assert len(SPOOFING_WARNING) < 160


def test_the_argument_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators set variables, tests pass a mapping."""
    monkeypatch.setenv("CHATAPP_TRUSTED_HOPS", "two")
    monkeypatch.setenv("RATELIMIT_STORAGE_URI", "memory://")
    with pytest.raises(SettingsError, match="CHATAPP_TRUSTED_HOPS"):
        create_app()
    create_app({"CHATAPP_TRUSTED_HOPS": 0})


def test_a_client_that_cannot_be_made_stops_the_start(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what the environment may have wrong."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    monkeypatch.setenv("HTTPS_PROXY", "spdy://proxy")
    with pytest.raises(SettingsError, match=r"openai cannot be made: .*spdy://proxy.*HTTPS_PROXY"):
        make_app()


def test_a_policy_has_any_plans_or_none(make_app: AppMaker, tmp_path: Path) -> None:
    """Users without a plan get the default one of the policy. Without plans, keys are created,
    calls are made and listed all the same."""
    text, file = POLICY_FILE.read_text("utf-8"), tmp_path / "policy.toml"
    file.write_text(text.replace("plans.starter", "plans.free").replace("default = true", ""))
    app = make_app(RATELIMIT_POLICY_FILE=str(file))
    assert services_of(app).default_plan == "free"
    assert (
        app.test_client().post("/chat", json={"message": "Hi", "user_id": "a"}).status_code == 200
    )

    chat = '[blueprints.chat]\nlimits = [{limit = "2/day", key = "user"}]\n'
    file.write_text(f"version = 1\n{GROUPS}{chat}")
    app = make_app(RATELIMIT_POLICY_FILE=str(file), RATELIMIT_STORAGE_URI="memory://")
    runner, client = app.test_cli_runner(), app.test_client()

    def run(*words: str) -> Any:
        return runner.invoke(args=["chat", *words])

    made = run("keys", "create", "--user", "alice")
    assert made.exit_code == 0, made.output
    assert run("keys", "create", "--user", "bob", "--limit", "usd-day=1 usd/day").exit_code == 2
    assert "the policy has no plans" in run("users", "set", "alice", "--plan", "pro").output
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    answers = [client.post("/chat", json={"message": "Hi"}, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert client.get("/usage", headers=headers).status_code == 200
    listed = [run(*words) for words in (("plans", "list"), ("users", "list"), ("spend",))]
    assert [each.exit_code for each in listed] == [0, 0, 0], listed
    assert listed[0].output.split()[-3:] == ["starter", "no", "alice"]


OF_KEYS_AND_TEAMS = [
    *("key-usd-day", "key-usd-month"),
    *("team-usd-day", "team-usd-month", "team-at-once"),
]


def test_the_applications_own_policy_loads() -> None:
    """The policy of chatapp has the layers that its README promises."""
    policy = load_policy(file=POLICY_FILE, blueprints=None)
    assert [edge.text for edge in policy.application] == ["120/minute", "1200/minute"]
    calls, counts = policy.groups["calls"], policy.groups["counts"]
    assert [each.options.name for each in calls.limits] == [
        *("address-at-once", "model"),
        *OF_KEYS_AND_TEAMS,
    ]
    assert [each.options.name for each in counts.limits] == ["count-tokens"]
    assert (calls.plans is not None, counts.plans) == (True, None)
    assert calls.members == counts.members == ()  # the views name their group
    paces = {plan.name: plan.limits[0].text for plan in policy.plans.values()}
    assert paces == {"starter": "30/minute", "pro": "180/minute", "team": "600/minute"}
    assert policy.next_plan(policy.plan("starter")) is policy.plan("pro")
    assert policy.next_plan(policy.plan("pro")) is policy.plan("team")
    assert policy.next_plan(policy.plan("team")) is None


def test_a_policy_for_an_unknown_blueprint_stops_the_start(
    make_app: AppMaker, tmp_path: Path
) -> None:
    """A limit on a misspelt name would protect nothing."""
    text = POLICY_FILE.read_text("utf-8")
    changed = text.replace("[groups.calls]", '[groups.calls]\nmembers = ["chats"]')
    with pytest.raises(ConfigurationError, match="chats"):
        make_app(RATELIMIT_POLICY_FILE=policy_file(tmp_path, changed))


def test_a_policy_that_is_not_toml_is_the_only_mistake(make_app: AppMaker, tmp_path: Path) -> None:
    """The groups that the views name are not reported as missing."""
    broken = POLICY_FILE.read_text("utf-8").replace('limit = "120/minute"', 'limit = "120/minute')
    with pytest.raises(ConfigurationError, match="this is not TOML") as raised:
        make_app(RATELIMIT_POLICY_FILE=policy_file(tmp_path, broken))
    assert str(raised.value).startswith("1 mistake in the configured limits:")


def test_a_policy_without_a_group_of_the_views_stops_the_start(
    make_app: AppMaker, tmp_path: Path
) -> None:
    """Their calls would have no limits. The error names the place in the code, and what to do."""
    changed = POLICY_FILE.read_text("utf-8").replace("groups.counts", "groups.count")
    expected = (
        r"blueprints/anthropic_api.py:\d+: there is no group 'counts' in the policy; its groups: "
        r"'calls', 'count'. Did you mean 'count'\? Correct the name, or add \[groups.counts\]"
    )
    with pytest.raises(ConfigurationError, match=expected):
        make_app(RATELIMIT_POLICY_FILE=policy_file(tmp_path, changed))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "policy.toml: there is no such file"),
        ("plans = \n", r"policy.toml:1"),
        ("version = 1\nplans = 3\n", "plans"),
    ],
)
def test_a_policy_that_cannot_be_read_stops_the_start(
    make_app: AppMaker, tmp_path: Path, text: str | None, says: str
) -> None:
    """With a message of its own instead of the system's exception."""
    policy = tmp_path / "policy.toml"
    if text is not None:
        policy.write_text(text)
    with pytest.raises(MISTAKES, match=says):
        make_app(RATELIMIT_POLICY_FILE=str(policy))


@pytest.mark.usefixtures("stopped_clock")
def test_two_apps_share_no_state(make_app: AppMaker) -> None:
    """Two applications with different storages count separately."""
    first, second = make_app().test_client(), make_app().test_client()
    statuses = [first.post("/chat", json={"message": "hi", "user_id": "u"}) for _ in range(11)]
    assert statuses[-1].status_code == 429
    assert second.post("/chat", json={"message": "hi", "user_id": "u"}).status_code == 200


def test_no_function_is_async(make_app: AppMaker) -> None:
    """Flask would look at each function of a request for that, so the application says that it has
    none."""
    app = make_app()
    scopes = [*app.before_request_funcs.values(), *app.after_request_funcs.values()]
    handlers = [
        by_class for codes in app.error_handler_spec.values() for by_class in codes.values()
    ]
    functions = [
        *app.view_functions.values(),
        *chain.from_iterable([*scopes, *app.teardown_request_funcs.values()]),
        *chain.from_iterable(each.values() for each in handlers),
    ]
    assert len(functions) > 50
    for each in functions:
        assert not iscoroutinefunction(each)
        assert app.ensure_sync(each) is each


def test_the_packaged_models_load() -> None:
    """The packaged file is valid."""
    assert catalogue.load().defaults["offline"] == "offline"


def test_with_keys_there_is_no_warning(
    make_app: AppMaker, accounts: Accounts, caplog: pytest.LogCaptureFixture
) -> None:
    """User ids cannot be forged then."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    with caplog.at_level(logging.WARNING):
        make_app()
    assert caplog.text == ""
