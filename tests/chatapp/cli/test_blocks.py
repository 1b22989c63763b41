"""flask --app wsgi chat block and unblock."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from chatapp.accounts.api_key import parse
from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import ProviderServer, openai_error

HELLO = {"message": "hello", "user_id": "alice"}


@pytest.fixture
def uri(redis_client: Any, redis_server: Any) -> str:
    """An empty storage."""
    return str(redis_server.uri)


@pytest.fixture
def worker(make_app: AppMaker, uri: str) -> Flask:
    """The application that answers."""
    return make_app(RATELIMIT_STORAGE_URI=uri)


@pytest.fixture
def console(make_app: AppMaker, uri: str) -> Flask:
    """The application of the command: another process, in effect."""
    return make_app(RATELIMIT_STORAGE_URI=uri)


def run(app: Flask, *words: str, status: int = 0) -> Result:
    result = app.test_cli_runner().invoke(args=["chat", *words])
    assert result.exit_code == status, result.output
    return result


def ask(app: Flask, key: str | None = None, **more: object) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return app.test_client().post("/chat", json={**HELLO, **more}, headers=headers)


def test_a_user_is_blocked_at_once(worker: Flask, console: Flask) -> None:
    """In all workers, with what to do about it; others go on, and a lifted block is none."""
    assert ask(worker).status_code == 200
    said = run(console, "block", "user", "alice").output
    assert said.startswith("The user alice is blocked until `chat unblock`, in all workers")
    for _ in range(3):
        refused = ask(worker)
        assert (refused.status_code, refused.json["code"]) == (403, "blocked")
        assert refused.json["error"] == "The operator has blocked this user."
    assert ask(worker, user_id="bob").status_code == 200
    said = run(console, "unblock", "user", "user:alice").output  # as the ledger writes it
    assert said == "The user alice is not blocked any more.\n"
    assert ask(worker).status_code == 200
    assert "was not blocked" in run(console, "unblock", "user", "alice").output


def test_a_block_costs_its_user_nothing(worker: Flask, console: Flask) -> None:
    """What was left before is left after it."""
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
    """One key of a user; his other goes on."""
    keys = [run(console, "keys", "create", "--user", "alice").stdout.strip() for _ in range(2)]
    worker = make_app(RATELIMIT_STORAGE_URI=uri)
    parsed = parse(keys[0])
    assert parsed is not None
    run(console, "block", "key", keys[0] if whole else parsed.public_id)
    assert ask(worker, keys[0]).json["error"] == "The operator has blocked this API key."
    assert ask(worker, keys[1]).status_code == 200
    run(console, "unblock", "key", keys[0])
    assert ask(worker, keys[0]).status_code == 200


def test_a_model_is_switched_off(worker: Flask, console: Flask) -> None:
    """503, which SDKs understand, and told not to try again; under any of its names."""
    run(console, "block", "model", "offline")
    refused = ask(worker)
    assert (refused.status_code, refused.json["code"]) == (503, "switched_off")
    assert "switched off this model" in refused.json["error"]
    assert refused.headers["x-should-retry"] == "false"
    assert "Retry-After" not in refused.headers
    said = run(console, "block", "model", "gpt-5.4-mini-2026-03-17", "--for", "1m").output
    assert said.startswith("The model gpt-5.4-mini is blocked until 20")


def test_everything_is_switched_off(worker: Flask, console: Flask) -> None:
    """For an hour, of which the rest is told; in a vendor's protocol as that words it."""
    run(console, "block", "all", "--for", "1h")
    refused = ask(worker)
    assert (refused.status_code, refused.json["code"]) == (503, "switched_off")
    assert 3590 < int(refused.headers["Retry-After"]) <= 3600
    body = {"model": "offline", "messages": [{"role": "user", "content": "hello"}]}
    told = worker.test_client().post("/v1/chat/completions", json=body)
    assert told.status_code == 503
    assert told.json["error"]["code"] == "switched_off"
    assert told.headers["x-should-retry"] == "false"
    assert worker.test_client().get("/usage").status_code == 200
    assert run(console, "unblock", "all").output.startswith("The block of all calls is lifted;")
    assert ask(worker).status_code == 200
    assert run(console, "unblock", "all").output.startswith("There was no block of all calls;")


VENDORS = {
    "/v1/chat/completions": ("server_error", "service_unavailable_error"),
    "/v1/messages": ("api_error", "overloaded_error"),
}


@pytest.mark.parametrize("path", VENDORS)
@pytest.mark.parametrize(
    ("words", "is_useless"), [([], True), (["--for", "1h"], True), (["--for", "30s"], False)]
)
def test_a_useless_retry_is_no_overload(
    worker: Flask, console: Flask, path: str, words: list[str], *, is_useless: bool
) -> None:
    """Claude Code retries an `overloaded_error` whatever the headers say; so where no retry helps
    within a minute, the type is another."""
    run(console, "block", "model", "offline", *words)
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "offline", "max_tokens": 10, "messages": messages}
    told = worker.test_client().post(path, json=body)
    assert told.status_code == 503
    useless, useful = VENDORS[path]
    assert told.json["error"]["type"] == (useless if is_useless else useful)
    assert (told.headers.get("x-should-retry") == "false") is is_useless
    assert ("Retry-After" in told.headers) is bool(words)


@pytest.mark.parametrize("path", VENDORS)
@pytest.mark.parametrize(("words", "status"), [([], 403), (["--abnormal"], 429)])
def test_a_block_without_an_end_is_not_retried(
    worker: Flask, console: Flask, path: str, words: list[str], status: int
) -> None:
    """The SDKs would retry the 429, and other clients perhaps a 403."""
    run(console, "block", "user", "ip:127.0.0.1", *words)
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "offline", "max_tokens": 10, "messages": messages}
    told = worker.test_client().post(path, json=body)
    assert (told.status_code, told.headers.get("x-should-retry")) == (status, "false")
    assert "Retry-After" not in told.headers


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
    told = worker.test_client().post("/v1/chat/completions", json=body)
    assert (told.status_code, told.json["error"]["code"]) == (429, "abnormal_usage")


def test_a_longer_block_stays(console: Flask) -> None:
    """A shorter one changes nothing, and says so."""
    run(console, "block", "user", "alice", "--for", "2h")
    assert "for as long already" in run(console, "block", "user", "alice", "--for", "5m").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["block", "user"], "Say which user"),
        (["block", "all", "alice"], "`all` takes no name"),
        (["block", "everything"], "is not one of 'user', 'key', 'model', 'all'"),
        (["block", "user", "alice", "--for", "soon"], "write it as 90s, 15m, 2h or 7d"),
        (["block", "user", "alice", "--for", "0s"], "is not from 1s to 366d"),
        (["block", "user", "alice", "--for", "9" * 40 + "d"], "is not from 1s to 366d"),
        (["block", "model", "offline", "--abnormal"], "for a user or a key"),
    ],
)
def test_mistakes_change_nothing(
    worker: Flask, console: Flask, words: list[str], told: str
) -> None:
    """Status 2, and what is allowed."""
    assert told in run(console, *words, status=2).output
    assert ask(worker).status_code == 200


def test_what_is_unknown_is_told(console: Flask) -> None:
    """A key and a model are looked up; a user may be anybody while there are no accounts."""
    assert "There is no key 0000" in run(console, "block", "key", "0" * 16, status=1).output
    assert "There is no model 'gpt-0'" in run(console, "block", "model", "gpt-0", status=1).output


def test_limits_in_memory_are_out_of_reach(make_app: AppMaker) -> None:
    """A switch that would switch nothing says so."""
    refused = run(make_app(), "block", "all", status=1)
    assert "RATELIMIT_STORAGE_URI" in refused.output


def test_a_policy_without_the_switch_says_so(make_app: AppMaker, uri: str, tmp_path: Any) -> None:
    """Which limit is missing, and which there are."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'version = 1\n[[blueprints.chat.limits]]\nlimit = "unless blocked"\nname = "mine"\n'
    )
    app = make_app(RATELIMIT_STORAGE_URI=uri, RATELIMIT_POLICY_FILE=str(policy))
    refused = run(app, "block", "all", status=1)
    assert "named 'blocked-all'; known names: 'mine'" in refused.output


def test_a_surge_is_lifted_with_a_block(
    provider: ProviderServer, worker: Flask, console: Flask
) -> None:
    """Its past is forgotten: the user begins anew."""
    with ask(worker, model="gpt-5.4-mini") as answered:
        assert answered.status_code == 200
    said = run(console, "unblock", "user", "alice").output
    assert "was not blocked; if a surge had stopped it" in said


def test_an_address_is_blocked_as_it_is_counted(worker: Flask, console: Flask) -> None:
    """Of an IPv6 subscriber that is the whole network, whichever address he shows."""
    said = run(console, "block", "user", "ip:2001:db8::1").output
    assert said.startswith("Whoever calls from 2001:db8::1 is blocked")

    def status(address: str) -> int:
        body = {"message": "hello"}
        environment = {"REMOTE_ADDR": address}
        asked = worker.test_client().post("/chat", json=body, environ_overrides=environment)
        return asked.status_code

    assert status("2001:db8::2") == 403
    assert status("2001:db8:0:1::1") == 200


def test_a_user_may_be_called_like_an_address(worker: Flask, console: Flask) -> None:
    """What is no address is a name."""
    run(console, "block", "user", "ip:evil")
    assert ask(worker, user_id="ip:evil").status_code == 403


def test_a_user_whom_nobody_knows_is_not_blocked(console: Flask) -> None:
    """With accounts there is a list of users, and a name that is on none is a mistake."""
    run(console, "keys", "create", "--user", "alice")
    run(console, "block", "user", "alice")
    refused = run(console, "block", "user", "alcie", status=1).output
    assert "There is no user 'alcie'" in refused


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 257])
def test_a_name_that_nobody_has_is_refused(console: Flask, name: str) -> None:
    """Blank, of two lines, longer than any: none of them is "blocked"."""
    run(console, "block", "user", name, status=2)


def test_a_providers_pause_is_lifted_with_its_model(
    provider: ProviderServer, worker: Flask, console: Flask
) -> None:
    """Whoever knows that the provider is back need not wait."""
    provider.script(openai_error(429, code="slow_down", headers={"Retry-After": "3000"}))
    assert ask(worker, model="gpt-5.4-mini").status_code == 503
    assert ask(worker, model="gpt-5.4-mini").status_code == 503
    assert "not blocked any more" in run(console, "unblock", "model", "gpt-5.4-mini").output
    with ask(worker, model="gpt-5.4-mini") as answered:
        assert answered.status_code == 200
