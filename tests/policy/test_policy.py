"""What a sound policy becomes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ratelimit_ext.policy as policy_package
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import parse
from ratelimit_ext.policy.policy import Plan, Policy, PolicyLimit
from tests.policy import functions
from tests.policy.conftest import Load

ROOT = Path(__file__).resolve().parents[2]

LAYERS = """
version = 1
[[application]]
name = "ip"
limit = "120/minute"
burst = 20
strategy = "token-bucket"
key = "ip"
[[default]]
limit = "5/second;1000/day"
[blueprints.chat]
plans = true
limits = ["30/minute", {limit = "1000/day", strategy = "sliding-window", shared = false}]
[blueprints.chat.routes.post]
limits = [{limit = "2/second", name = "post"}]
[[routes.index.limits]]
limit = "9/minute"
scope = "pages"
[plans.starter]
next = "pro"
limits = [{name = "plan", limit = "100/day", key = "user"}]
[plans.pro]
title = "Professional"
limits = [{name = "plan", limit = "2000/day", key = "user"}]
"""


def limit(source: str, text: str, **keywords: Any) -> PolicyLimit:
    options = {word: keywords.pop(word) for word in OPTION_NAMES if word in keywords}
    return PolicyLimit(
        source=f"policy.toml: {source}",
        text=text,
        parsed=parse(text),
        options=LimitOptions(**options),
        **keywords,
    )


def test_every_table_is_read(load: Load) -> None:
    """One file with everything in it gives exactly this policy."""
    plan_limit = {
        "name": "plan",
        "key": "user",
        "shared": True,
        "scope": "/plans",
        "override_defaults": False,
    }
    assert load(LAYERS) == Policy(
        application=(
            limit(
                "application[0]",
                "120/minute",
                name="ip",
                burst=20,
                strategy="token-bucket",
                key="ip",
                shared=True,
                scope="global",
            ),
        ),
        default=(limit("default[0]", "5/second;1000/day"),),
        blueprints={
            "chat": (
                limit(
                    "blueprints.chat.limits[0]", "30/minute", shared=True, scope="/blueprint/chat"
                ),
                limit("blueprints.chat.limits[1]", "1000/day", strategy="sliding-window"),
            )
        },
        routes={
            "chat.post": (limit("blueprints.chat.routes.post.limits[0]", "2/second", name="post"),),
            "index": (limit("routes.index.limits[0]", "9/minute", shared=True, scope="pages"),),
        },
        plans={
            "starter": Plan(
                name="starter",
                title="Starter",
                next="pro",
                limits=(limit("plans.starter.limits[0]", "100/day", **plan_limit),),
            ),
            "pro": Plan(
                name="pro",
                title="Professional",
                limits=(limit("plans.pro.limits[0]", "2000/day", **plan_limit),),
            ),
        },
        plan_blueprints=frozenset({"chat"}),
    )
    places = [str(plan.place) for plan in load(LAYERS).plans.values()]
    assert places == ["policy.toml: plans.starter", "policy.toml: plans.pro"]


def test_every_keyword_is_read(load: Load) -> None:
    """Each keyword reaches the limit; names of functions become the functions."""
    text = """
        version = 1
        [[blueprints.chat.limits]]
        limit = "100 per day"
        name = "day"
        strategy = "fixed-window"
        unit = "requests"
        key = "tests.policy.functions:Keys.project"
        cost = 0
        mode = "shadow"
        anchor = "day"
        timezone = "Europe/Berlin"
        methods = ["post", "PUT", "POST"]
        per_method = true
        override_defaults = false
        error_message = "Too much."
        scope = "llm"
        shared = true
        exempt_when = "tests.policy.functions:tenant"
        deduct_when = "tests.policy.functions:takes_response"
        reserve = true
        on_breach = "tests.policy.functions:takes_response"
    """
    (read,) = load(text).blueprints["chat"]
    assert read == limit(
        "blueprints.chat.limits[0]",
        "100 per day",
        name="day",
        strategy="fixed-window",
        unit="requests",
        key=functions.Keys.project,
        cost=0,
        mode="shadow",
        anchor="day",
        timezone="Europe/Berlin",
        methods=("POST", "PUT"),
        per_method=True,
        override_defaults=False,
        error_message="Too much.",
        shared=True,
        scope="llm",
        exempt_when=functions.tenant,
        deduct_when=functions.takes_response,
        reserve=True,
        on_breach=functions.takes_response,
    )


def test_one_route_may_stand_in_two_tables(load: Load) -> None:
    """The limits of a route that is named twice all apply."""
    policy = load(
        'version = 1\n[routes."chat.post"]\nlimits = ["9/hour"]\n'
        '[blueprints.chat.routes.post]\nlimits = ["5/minute"]\n'
    )
    assert sorted(entry.text for entry in policy.routes["chat.post"]) == ["5/minute", "9/hour"]


def test_limits_of_different_identities_need_no_names(load: Load) -> None:
    """The same period and strategy, counted for different identities, is no mistake."""
    load('version = 1\ndefault = [{limit = "9/day", key = "ip"}, {limit = "5/day", key = "user"}]')


def test_an_alias_of_a_strategy_is_read(load: Load) -> None:
    """Flask-Limiter's name for a strategy is replaced by ours."""
    policy = load('version = 1\n[[default]]\nlimit = "9/day"\nstrategy = "moving-window"')
    assert policy.default[0].options.strategy == "sliding-window"


def test_a_shared_default_has_a_scope(load: Load) -> None:
    """A default that is shared has one bucket, which no endpoint's name can meet."""
    policy = load('version = 1\n[[default]]\nlimit = "9/day"\nshared = true')
    assert (policy.default[0].shared, policy.default[0].scope) == (True, "/default")


def test_an_unknown_plan(load: Load) -> None:
    """A plan that is not configured is an error that lists the known ones, never no limit."""
    policy = load(LAYERS)
    with pytest.raises(ConfigurationError) as caught:
        policy.plan("starte")
    assert str(caught.value) == (
        "there is no plan 'starte' in the policy; its plans: 'pro', 'starter'. "
        "Did you mean 'starter'?"
    )
    with pytest.raises(ConfigurationError, match="its plans: none"):
        Policy().plan("starter")


def test_identities_have_their_places(load: Load) -> None:
    """Names of identities have the places that use them; functions are no names."""
    text = LAYERS + '[[default]]\nlimit = "9/hour"\nkey = "tests.policy.functions:tenant"\n'
    policy = load(text, {"pay": [{"limit": "1/day", "key": "user"}]})
    used = [use for use in policy.uses if use.kind == "identity"]
    assert {(use.name, use.place.located) for use in used} == {
        ("ip", "policy.toml:8: application[0].key"),
        ("user", 'app.config["RATELIMIT_BLUEPRINTS"]["pay"][0]["key"]'),
        ("user", "policy.toml:21: plans.starter.limits[0].key"),
        ("user", "policy.toml:24: plans.pro.limits[0].key"),
    }


def test_a_policy_cannot_be_changed(load: Load) -> None:
    """A policy is a value: neither it nor its mappings can be written to."""
    policy = load(LAYERS)
    with pytest.raises(AttributeError):
        policy.default = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.plans["free"] = policy.plan("pro")  # type: ignore[index]


def test_pydantic_is_imported_only_where_limits_are_read() -> None:
    """The extension is imported without it."""
    program = "import sys, ratelimit_ext; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_all_public_names_exist() -> None:
    """Each public name of the package exists."""
    assert all(hasattr(policy_package, name) for name in policy_package.__all__)
