"""flask --app wsgi chat block and unblock."""

from typing import Any

import pytest
from flask import Flask

from chatapp.accounts.api_key import parse
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import GROUPS, NO_LIMITS, AppMaker
from tests.chatapp.upstream_server import UpstreamServer, openai_error

HELLO = {"message": "hello", "user_id": "alice"}


def ask(app: Flask, key: str | None = None, **more: object) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return app.test_client().post("/chat", json={**HELLO, **more}, headers=headers)


def test_a_user_is_blocked_at_once(worker: Flask, console: Flask) -> None:
    """In all workers, with the remedy; other users continue, and `unblock` ends it."""
    assert ask(worker).status_code == 200
    output = run(console, "block", "user", "alice").output
    assert output.startswith("The user alice is blocked until it is unblocked, in all workers")
    for _ in range(3):
        refused = ask(worker)
        assert (refused.status_code, refused.json["code"]) == (403, "blocked")
        assert refused.json["error"] == "The operator has blocked this user."
    assert ask(worker, user_id="bob").status_code == 200
    output = run(console, "unblock", "user", "user:alice").output  # as the ledger writes it
    assert output == "The user alice is no longer blocked.\n"
    assert ask(worker).status_code == 200
    assert "was not blocked" in run(console, "unblock", "user", "alice").output


def test_a_block_costs_its_user_nothing(worker: Flask, console: Flask) -> None:
    """The remaining amounts stay as they were."""
    client = worker.test_client()

    def left() -> dict[str, float]:
        limits = client.get("/usage").json["limits"]
        return {limit["name"]: limit["remaining"] for limit in limits if limit["name"] != "ip"}

    before = left()
    run(console, "block", "user", "ip:127.0.0.1")
    refused = client.post("/chat", json={"message": "hello"})
    assert refused.status_code == 403
    assert left() == before


@pytest.mark.parametrize("whole", [False, True])
def test_a_key_is_blocked_by_its_public_part_or_itself(
    make_app: AppMaker, uri: str, console: Flask, whole: bool
) -> None:
    """One key of a user; the other one continues."""
    keys = [run(console, "keys", "create", "--user", "alice").stdout.strip() for _ in range(2)]
    worker = make_app(RATELIMIT_STORAGE_URI=uri)
    parsed = parse(keys[0])
    assert parsed is not None
    run(console, "block", "key", keys[0] if whole else parsed.public_id)
    assert ask(worker, keys[0]).json["error"] == "The operator has blocked this API key."
    assert ask(worker, keys[1]).status_code == 200
    run(console, "unblock", "key", keys[0])
    assert ask(worker, keys[0]).status_code == 200


@pytest.mark.parametrize(
    ("words", "until"), [((), "until it is unblocked"), (("--for", "2h"), "free in 2 h")]
)
def test_what_is_shown_of_a_user_or_a_key_says_that_it_is_blocked(
    console: Flask, words: tuple[str, ...], until: str
) -> None:
    """Also why calls are refused although amounts are left. Nothing is said of others."""
    key = parse(run(console, "keys", "create", "--user", "alice").stdout.strip())
    assert key is not None
    views = (("usage", "alice"), ("users", "show", "alice"), ("keys", "show", key.public_id))
    assert not any("blocked" in run(console, *view).stdout for view in views)
    run(console, "block", "user", "alice", *words)
    lines = [f"blocked: {until}" in run(console, *view).stdout.splitlines() for view in views]
    assert lines == [True, True, False]
    run(console, "unblock", "user", "alice")
    run(console, "block", "key", key.public_id, *words)
    lines = [f"blocked: {until}" in run(console, *view).stdout.splitlines() for view in views]
    assert lines == [False, False, True]


def test_a_model_is_switched_off(worker: Flask, console: Flask) -> None:
    """503 without a retry, as SDKs understand it; under any name of the model."""
    run(console, "block", "model", "offline")
    refused = ask(worker)
    assert (refused.status_code, refused.json["code"]) == (503, "switched_off")
    assert "switched off this model" in refused.json["error"]
    assert refused.headers["x-should-retry"] == "false"
    assert "Retry-After" not in refused.headers
    output = run(console, "block", "model", "gpt-5.4-mini-2026-03-17", "--for", "1m").output
    assert output.startswith("The model gpt-5.4-mini is blocked until 20")


def test_unlisted_models_are_switched_off_together(console: Flask) -> None:
    """By the slug that they share, which the error for an unknown model offers."""
    refused = run(console, "block", "model", "nope", status=1).output
    assert "or openai-other or anthropic-other" in refused
    blocked = run(console, "block", "model", "openai-other", "--for", "1m").output
    assert blocked.startswith("The model openai-other is blocked until 20")
    lifted = run(console, "unblock", "model", "openai-other").output
    assert lifted == "The model openai-other is no longer blocked.\n"


def test_nothing_is_blocked_without_limits(make_app: AppMaker) -> None:
    """The error names the switch, and not the storage, which is not the cause."""
    app = make_app(RATELIMIT_ENABLED=False)
    for command in ("block", "unblock"):
        assert "disabled (RATELIMIT_ENABLED)" in run(app, command, "all", status=1).output


def test_everything_is_switched_off(worker: Flask, console: Flask) -> None:
    """For an hour, with the rest as Retry-After; in a provider's protocol in its form."""
    run(console, "block", "all", "--for", "1h")
    refused = ask(worker)
    assert (refused.status_code, refused.json["code"]) == (503, "switched_off")
    assert 3590 < int(refused.headers["Retry-After"]) <= 3600
    body = {"model": "offline", "messages": [{"role": "user", "content": "hello"}]}
    answer = worker.test_client().post("/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert answer.json["error"]["code"] == "switched_off"
    assert answer.headers["x-should-retry"] == "false"
    assert worker.test_client().get("/usage").status_code == 200
    assert run(console, "unblock", "all").output.startswith("The block of all calls is removed;")
    assert ask(worker).status_code == 200
    assert run(console, "unblock", "all").output.startswith("There was no block of all calls;")


PROTOCOLS = {
    "/v1/chat/completions": ("server_error", "service_unavailable_error"),
    "/v1/messages": ("api_error", "overloaded_error"),
}


@pytest.mark.parametrize("path", PROTOCOLS)
@pytest.mark.parametrize(
    ("words", "is_useless"), [([], True), (["--for", "1h"], True), (["--for", "30s"], False)]
)
def test_a_useless_retry_is_no_overload(
    worker: Flask, console: Flask, path: str, words: list[str], *, is_useless: bool
) -> None:
    """Claude Code retries an `overloaded_error` whatever the headers say; so the type is another if
    no retry helps within a minute."""
    run(console, "block", "model", "offline", *words)
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "offline", "max_tokens": 10, "messages": messages}
    answer = worker.test_client().post(path, json=body)
    assert answer.status_code == 503
    useless, useful = PROTOCOLS[path]
    assert answer.json["error"]["type"] == (useless if is_useless else useful)
    assert (answer.headers.get("x-should-retry") == "false") is is_useless
    assert ("Retry-After" in answer.headers) is bool(words)


@pytest.mark.parametrize("path", PROTOCOLS)
@pytest.mark.parametrize(("words", "status"), [([], 403), (["--abnormal"], 429)])
def test_a_block_without_an_end_is_not_retried(
    worker: Flask, console: Flask, path: str, words: list[str], status: int
) -> None:
    """The SDKs would retry the 429, and other clients perhaps a 403."""
    run(console, "block", "user", "ip:127.0.0.1", *words)
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "offline", "max_tokens": 10, "messages": messages}
    answer = worker.test_client().post(path, json=body)
    assert (answer.status_code, answer.headers.get("x-should-retry")) == (status, "false")
    assert "Retry-After" not in answer.headers


def test_abnormal_usage_says_so(worker: Flask, console: Flask) -> None:
    """429 with the problem type, for a user and a key."""
    run(console, "block", "user", "alice", "--for", "2h", "--abnormal")
    refused = worker.test_client().post(
        "/chat", json=HELLO, headers={"Accept": "application/problem+json"}
    )
    assert refused.status_code == 429
    problem = refused.get_json(force=True)
    assert problem["type"].endswith("#abnormal-usage-detected")
    assert refused.headers["x-should-retry"] == "false"
    body = {"model": "offline", "messages": [{"role": "user", "content": "hello"}]}
    run(console, "block", "user", "ip:127.0.0.1", "--for", "30s", "--abnormal")
    answer = worker.test_client().post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json["error"]["code"]) == (429, "abnormal_usage")


def test_a_longer_block_stays(console: Flask) -> None:
    """A shorter block changes nothing, and the output says so."""
    run(console, "block", "user", "alice", "--for", "2h")
    assert "is already blocked" in run(console, "block", "user", "alice", "--for", "5m").output


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["block", "user"], "Missing argument 'NAME'"),
        (["block", "all", "alice"], "unexpected extra argument (alice)"),
        (["block", "everything"], "No such command 'everything'"),
        (["block", "user", "alice", "--for", "soon"], "write it as 90s, 15m, 2h or 7d"),
        (["block", "user", "alice", "--for", "0s"], "is not from 1s to 366d"),
        (["block", "user", "alice", "--for", "9" * 40 + "d"], "is not from 1s to 366d"),
        (["block", "model", "offline", "--abnormal"], "No such option '--abnormal'"),
    ],
)
def test_mistakes_change_nothing(
    worker: Flask, console: Flask, words: list[str], answer: str
) -> None:
    """Status 2, with the allowed values."""
    assert answer in run(console, *words, status=2).output
    assert ask(worker).status_code == 200


def test_an_unknown_key_or_model_is_refused(console: Flask) -> None:
    """Keys and models are looked up; any user is valid while accounts are off."""
    assert "There is no key 0000" in run(console, "block", "key", "0" * 16, status=1).output
    assert "There is no model 'gpt-0'" in run(console, "block", "model", "gpt-0", status=1).output


def test_limits_in_memory_are_out_of_reach(make_app: AppMaker) -> None:
    """A block without effect is an error."""
    refused = run(make_app(), "block", "all", status=1)
    assert "RATELIMIT_STORAGE_URI" in refused.output


def test_without_a_policy_there_are_no_switches(make_app: AppMaker, uri: str) -> None:
    """The error names the missing limit and the existing ones."""
    app = make_app(
        RATELIMIT_STORAGE_URI=uri,
        **NO_LIMITS,
        RATELIMIT_BLUEPRINTS={"chat": [{"limit": "unless blocked", "name": "mine"}]},
    )
    refused = run(app, "block", "all", status=1)
    assert "named 'blocked-all'; known names: 'mine'" in refused.output


def test_the_switches_work_with_any_policy(make_app: AppMaker, uri: str, tmp_path: Any) -> None:
    """They are built in: a policy of one limit has them, too."""
    policy = tmp_path / "policy.toml"
    mine = '[[application]]\nlimit = "99/day"\nname = "mine"\n'
    policy.write_text(f"version = 1\n{GROUPS}{mine}")
    options = {"RATELIMIT_STORAGE_URI": uri, "RATELIMIT_POLICY_FILE": str(policy)}
    worker = make_app(**options)
    run(make_app(**options), "block", "all")
    assert ask(worker).status_code == 503


def test_a_surge_is_lifted_with_a_block(
    provider: UpstreamServer, worker: Flask, console: Flask
) -> None:
    """The usual amount is forgotten."""
    with ask(worker, model="gpt-5.4-mini") as answered:
        assert answered.status_code == 200
    output = run(console, "unblock", "user", "alice").output
    assert "was not blocked; its usual amount is forgotten" in output


def test_an_address_is_blocked_as_it_is_counted(worker: Flask, console: Flask) -> None:
    """Of an IPv6 subscriber it is the whole network."""
    output = run(console, "block", "user", "ip:2001:db8::1").output
    assert output.startswith("The address 2001:db8::1 is blocked")

    def status(address: str) -> int:
        body = {"message": "hello"}
        environment = {"REMOTE_ADDR": address}
        asked = worker.test_client().post("/chat", json=body, environ_overrides=environment)
        return asked.status_code

    assert status("2001:db8::2") == 403
    assert status("2001:db8:0:1::1") == 200


def test_a_user_may_be_called_like_an_address(worker: Flask, console: Flask) -> None:
    """`ip:` without an address is a name."""
    run(console, "block", "user", "ip:evil")
    assert ask(worker, user_id="ip:evil").status_code == 403


def test_an_unknown_user_is_not_blocked(console: Flask) -> None:
    """With accounts on, an unknown name is an error."""
    run(console, "keys", "create", "--user", "alice")
    run(console, "block", "user", "alice")
    refused = run(console, "block", "user", "alcie", status=1).output
    assert "There is no user 'alcie'" in refused


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 257])
def test_an_impossible_name_is_refused(console: Flask, name: str) -> None:
    """Blank, with a newline or too long: an error, and no block."""
    run(console, "block", "user", name, status=2)


def test_an_operators_pause_is_an_overload(
    provider: UpstreamServer, make_app: AppMaker, uri: str, console: Flask
) -> None:
    """The fallback serves. Without one, clients get the wait and the status of an overload."""
    run(console, "providers", "pause", "openai", "--for", "2h")
    refused = ask(make_app(RATELIMIT_STORAGE_URI=uri), model="gpt-5.4-mini")
    assert (refused.status_code, refused.json["code"]) == (503, "server_is_overloaded")
    assert 7190 < int(refused.headers["Retry-After"]) <= 7200
    assert provider.calls == []
    fallbacks = {"gpt-5.4-mini": "claude-haiku-4-5"}
    choosy = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_FALLBACK_MODELS=fallbacks)
    with ask(choosy, model="gpt-5.4-mini") as answered:
        assert (answered.status_code, answered.json["model"]) == (200, "claude-haiku-4-5")


def test_a_providers_pause_is_lifted_with_its_model(
    provider: UpstreamServer, worker: Flask, console: Flask
) -> None:
    """An operator may end the pause of a provider early."""
    provider.script(openai_error(429, code="slow_down", headers={"Retry-After": "3000"}))
    assert ask(worker, model="gpt-5.4-mini").status_code == 503
    assert ask(worker, model="gpt-5.4-mini").status_code == 503
    assert "no longer blocked" in run(console, "unblock", "model", "gpt-5.4-mini").output
    with ask(worker, model="gpt-5.4-mini") as answered:
        assert answered.status_code == 200
