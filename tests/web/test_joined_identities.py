"""Limits that count several identities together: `key = ["user", "model"]`."""

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_ext import ApplicationLimit, ConfigurationError, Limiter
from ratelimit_ext.core.key import bucket_key, escaped, joined, separated
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.simulate.replay import Rule
from ratelimit_ext.simulate.traffic import TrafficCall
from tests.web.conftest import Maker, asked_key

POLICY = """version = 1

[routes.view]
[[routes.view.limits]]
name = "of-model"
limit = "2/minute"
key = ["caller", "model"]

[[routes.view.limits]]
name = "stop"
limit = "unless blocked"
key = ["caller", "model"]
"""
Parts = st.lists(st.text(alphabet="ab,%2C\\é ", min_size=1, max_size=6), min_size=2, max_size=3)


def asked_model() -> str:
    return request.headers.get("X-Model", "")


def call(app: Flask, caller: str, model: str) -> int:
    headers = {"X-Key": caller, "X-Model": model}
    return app.test_client().get("/", headers=headers).status_code


@given(Parts, Parts)
def test_other_identities_have_other_buckets(one: list[str], other: list[str]) -> None:
    """("a,b", "c") and ("a", "b,c") are two, also after the storage's own escape."""
    assert separated(joined(one)) == one
    assert (bucket_key("", joined(one)) == bucket_key("", joined(other))) == (one == other)


def test_a_single_identity_keeps_its_name_in_the_storage() -> None:
    """A comma in it is not escaped once more."""
    assert bucket_key("", "a,b%") == "{a,b%25}"
    assert escaped(joined(["a,b%", "c"])) == "a%252Cb%2525,c"


def of_both(app: Flask, limiter: Limiter, **more: Any) -> None:
    limiter.identity("model", common=True)(asked_model)
    words: dict[str, Any] = {"key_func": [asked_key, "model"], "name": "of-model", **more}
    app.add_url_rule("/", "view", limiter.limit("2/minute", **words)(lambda: "ok"))


def test_each_pair_has_its_own_amount(make: Maker, uri: str) -> None:
    """One model never uses up another's, and a comma in a name makes no other pair."""
    app, limiter = make(storage_uri=uri)
    of_both(app, limiter)
    pairs = [("ann", "opus"), ("ann", "haiku"), ("ann,opus", "x"), ("ann", "opus,x")]
    assert [[call(app, *pair) for _ in range(3)] for pair in pairs] == [[200, 200, 429]] * 4


def test_a_request_without_one_of_them_is_not_counted(make: Maker) -> None:
    """As without an identity at all."""
    app, limiter = make()
    of_both(app, limiter)
    assert [call(app, "ann", "") for _ in range(3)] == [200] * 3


def test_the_extension_itself_may_count_several(make: Maker) -> None:
    """By its key function."""
    app, limiter = make(key_func=["ip", asked_key])
    app.add_url_rule("/", "view", limiter.limit("1/minute")(lambda: "ok"))
    assert [call(app, *each) for each in [("a", ""), ("a", ""), ("b", "")]] == [200, 429, 200]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ('["a", "b", "c", "d"]', "found a list of 4; allowed: two or three different"),
        ('["caller", "modell"]', "there is no identity 'modell'; registered:"),
        ('["caller"]', "or one without a list."),
    ],
)
def test_mistakes_in_a_policy(tmp_path: Path, key: str, sentence: str) -> None:
    """Each with its file and line."""
    with pytest.raises(ConfigurationError) as error:
        site(tmp_path, POLICY.replace('["caller", "model"]', key), "memory://")
    assert f"{tmp_path / 'policy.toml'}:7" in str(error.value)
    assert sentence in str(error.value)


def site(tmp_path: Path, policy: str, uri: str) -> tuple[Flask, Limiter]:
    file = tmp_path / "policy.toml"
    file.write_text(policy)
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    limiter = Limiter(asked_key, storage_uri=uri)
    limiter.identity("caller")(asked_key)
    limiter.identity("model", common=True)(asked_model)
    app.add_url_rule("/", "view", lambda: "ok")
    limiter.remember_denials()
    limiter.init_app(app)
    return app, limiter


def test_a_definition_of_flask_limiter_has_one_function(make: Maker) -> None:
    """A list would be a mistake of each request."""
    key: Any = ["ip", "user"]
    with pytest.raises(ConfigurationError, match="key_function: found a list; allowed: a function"):
        make(application_limits=[ApplicationLimit("5/minute", key_function=key)])


def test_commands_print_and_take_them(tmp_path: Path, redis_uri: str) -> None:
    """With a comma, and for `why` by one of them alone."""
    app, limiter = site(tmp_path, POLICY, redis_uri)

    def run(*words: str, status: int = 0) -> str:
        result = app.test_cli_runner().invoke(args=["ratelimit", *words])
        assert result.exit_code == status, result.output
        return result.output

    ann = joined(["ann,b", "opus"])
    assert ann == "ann%2Cb,opus"
    assert [call(app, "ann,b", "opus") for _ in range(3)] == [200, 200, 429]
    [state] = [each for each in json.loads(run("inspect", ann, "--json")) if "used" in each]
    assert (state["identity"], state["used"], state["key"]) == (ann, 2, "caller,model")
    assert ann in run("top")
    with app.app_context():
        for name in ("ann,b", ann):
            [record] = limiter.operators.denials(name, since=60).records
            assert (record.identity, record.limit) == (ann, "of-model")
    assert ann in run("why", "ann,b")
    run("override", "set", ann, "of-model", "5/minute")
    assert "5 requests" in run("inspect", ann)
    assert "counts caller,model; 'ann' cannot be one" in run(
        "override", "set", "ann", "of-model", "5/minute", status=1
    )
    run("override", "clear", ann, "of-model")
    run("reset", ann)
    assert call(app, "ann,b", "opus") == 200
    with app.app_context():
        limiter.operators.block("stop", ann)
    assert call(app, "ann,b", "opus") == 403
    assert call(app, "ann", "opus") == 200
    assert ann in run("blocks")


def test_a_simulated_call_needs_all_of_them() -> None:
    """Otherwise the traffic does not say whom the limit counts."""
    rule = Rule("of-model", Limit(1, 1_000_000), "user,model", "b")
    call = TrafficCall(0, "view", {"user": "a,b", "model": "c"})
    assert rule.identity(call) == "a%2Cb,c"
    assert rule.identity(call._replace(who={"user": "a,b"})) is None
