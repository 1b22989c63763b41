"""``RATELIMIT_BLUEPRINTS`` of ``app.config``: what it gives, and its mistakes."""

from typing import Any

import pytest

from tests.policy import functions
from tests.policy.conftest import Load, error_of

AT = 'app.config["RATELIMIT_BLUEPRINTS"]'


class NotAFunction:
    """A value of a type that no keyword takes."""


#: A value of the setting, and its error behind the setting's name.
MISTAKES: dict[str, tuple[Any, str]] = {
    "list": ([], ": found an empty list; allowed: a table."),
    "string": ("chat", ": found 'chat' (a string); allowed: a table."),
    "number for a name": ({1: ["5/minute"]}, ": found the key 1 (a whole number); allowed: a"),
    "string for a list": (
        {"chat": "30/minute"},
        "[\"chat\"]: found '30/minute' (a string); allowed: a list. Write ['30/minute'].",
    ),
    "None": ({"chat": None}, '["chat"]: found None; allowed: a table.'),
    "empty list": ({"chat": []}, '["chat"]: found an empty list; allowed: a list of at least'),
    "empty table": (
        {"chat": {}},
        '["chat"]: the table is empty; allowed: plans, limits. Fill or remove',
    ),
    "limit for a list": (
        {"chat": {"limit": "5/minute"}},
        '["chat"]["limit"]: unknown key; allowed: plans, limits. Did you mean \'limits\'?',
    ),
    "unknown keyword": (
        {"chat": [{"limit": "5/minute", "Burst": 1}]},
        '["chat"][0]["Burst"]: unknown key; allowed: limit, strategy, burst, unit,',
    ),
    "name to be escaped": (
        {'a"b\n': [{"limit": "x"}]},
        '["a\\"b\\n"][0]["limit"]: found \'x\' (a string); allowed: amount per period',
    ),
    "number for a keyword": (
        {"chat": [{"limit": "5/minute", 3: 1}]},
        '["chat"][0]: found the key 3 (a whole number); allowed: a name.',
    ),
    "function for a limit": (
        {"chat": [{"limit": functions.tenant}]},
        '["chat"][0]["limit"]: found the function \'tenant\'; allowed: amount per period',
    ),
    "string for a cost": (
        {"chat": [{"limit": "5/minute", "cost": "3"}]},
        '["chat"][0]["cost"]: found \'3\' (a string); allowed: a whole number from 0 up.',
    ),
    "function with arguments": (
        {"chat": [{"limit": "5/minute", "cost": functions.takes_response}]},
        '["chat"][0]["cost"]: found the function \'takes_response\'(response: ',
    ),
    "value of another type": (
        {"chat": [{"limit": "5/minute", "deduct_when": NotAFunction()}]},
        (
            '["chat"][0]["deduct_when"]: found a value of the type \'NotAFunction\'; allowed: a '
            'function or "package.module:function".'
        ),
    ),
    "key of another type": (
        {"chat": [{"limit": "5/minute", "key": NotAFunction()}]},
        (
            '["chat"][0]["key"]: found a value of the type \'NotAFunction\'; allowed: the name '
            'of an identity such as "user", a function, or "package.module:function".'
        ),
    ),
    "plans without any plan": (
        {"chat": {"plans": True}},
        '["chat"]["plans"]: there is no plan to apply. Add a table [plans.NAME]',
    ),
    "1 for plans": (
        {"chat": {"plans": 1}},
        '["chat"]["plans"]: found 1 (a whole number); allowed: true or false',
    ),
    "one bucket twice": (
        {"chat": ["5/minute", {"limit": "9/minute"}]},
        (
            "[\"chat\"][1]: '9/minute' applies together with '5/minute' of "
            f'{AT}["chat"][0], with the same period, strategy and key, and no name: '
        ),
    ),
}


@pytest.mark.parametrize(("blueprints", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(load: Load, blueprints: Any, expected: str) -> None:
    """Each mistake has its place as it is written in Python."""
    assert f"{AT}{expected}" in error_of(lambda: load(blueprints=blueprints))


def test_targets_are_kept_apart(load: Load) -> None:
    """Blueprint or endpoint is not known here: both are targets, by the name that was given."""
    policy = load(
        blueprints={"chat": ["30/minute"], "chat.post": ({"limit": "1000/day", "burst": 3},)}
    )
    assert policy.blueprints == {}
    assert policy.routes == {}
    assert policy.targets["chat"][0].source == f'{AT}["chat"][0]'
    assert policy.targets["chat"][0].scope == "/blueprint/chat"
    assert policy.targets["chat.post"][0].options.burst == 3
    places = {name: [place.located for place in at] for name, at in policy.target_places.items()}
    assert places == {name: [f'{AT}["{name}"]'] for name in ("chat", "chat.post")}


def test_functions_are_taken(load: Load) -> None:
    """In app.config a keyword may be a function itself, or its name."""
    limit = {
        "limit": "5/minute",
        "key": functions.tenant,
        "cost": max,  # written in C: what it takes is not known before it is called
        "error_message": functions.tenant,
        "exempt_when": "tests.policy.functions:Keys.project",
        "deduct_when": functions.takes_response,
        "on_breach": functions.takes_response,
    }
    (read,) = load(blueprints={"chat": {"limits": [limit]}}).targets["chat"]
    assert read.key is functions.tenant
    assert read.cost is max
    assert read.error_message is functions.tenant
    assert read.exempt_when is functions.Keys.project
    assert read.deduct_when is functions.takes_response
    assert read.on_breach is functions.takes_response


def test_both_inputs_apply(load: Load) -> None:
    """The same blueprint in the file and in app.config has the limits, and the plans, of both."""
    text = (
        'version = 1\n[blueprints.chat]\nlimits = ["30/minute"]\n'
        '[plans.pro]\nlimits = [{name = "plan", limit = "9/day"}]\n'
    )
    policy = load(text, {"chat": {"plans": True, "limits": ["2/second"]}})
    assert [limit.text for limit in policy.blueprints["chat"]] == ["30/minute"]
    assert [limit.text for limit in policy.targets["chat"]] == ["2/second"]
    assert policy.plan_targets == {"chat"}


def test_one_bucket_in_both_inputs(load: Load) -> None:
    """Limits of both inputs that would be counted as one are a mistake, like those of one list."""
    text = 'version = 1\n[[blueprints.chat.limits]]\nname = "user"\nlimit = "5/minute"\n'
    message = error_of(lambda: load(text, {"chat": [{"name": "user", "limit": "9/hour"}]}))
    assert (
        f'{AT}["chat"][0]["name"]: found \'user\', which is also the name of policy.toml: '
        in message
    )
    load(text, {"pay": [{"name": "user", "limit": "9/hour"}]})


def test_nothing_configured_is_nothing_limited(load: Load) -> None:
    """Without either input the policy is empty; so it is with an empty mapping."""
    assert load().all_limits() == ()
    assert load(blueprints={}).all_limits() == ()
