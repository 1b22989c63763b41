"""What is not known, and what has another shape, is told."""

from __future__ import annotations

import pytest

from tests.policy.case import Case
from tests.policy.conftest import Load, told_by

MISTAKES = [
    # -- keys and tables that are not known
    Case(
        "unknown table",
        "[blueprint.chat]\nplans = false",
        "policy.toml:2: blueprint: unknown key; allowed: version, application, default, "
        "blueprints, routes, groups, plans. Did you mean 'blueprints'?",
    ),
    Case(
        "unknown keyword",
        '[[application]]\nlimit = "5/minute"\nbrust = 3',
        "policy.toml:4: application[0].brust: unknown key; allowed: limit, name, strategy, burst, "
        "unit, key, cost, mode, anchor, timezone, methods, per_method, override_defaults, "
        "error_message, shared, scope, exempt_when, deduct_when, on_breach. Did you mean 'burst'?",
    ),
    Case(
        "keyword of a limit on a blueprint",
        '[blueprints.chat]\nlimit = "5/minute"',
        "policy.toml:3: blueprints.chat.limit: unknown key; allowed: plans, limits, routes. "
        "Did you mean 'limits'?",
    ),
    Case(
        "unknown key of a plan",
        '[plans.pro]\ntitel = "Pro"',
        "policy.toml:3: plans.pro.titel: unknown key; allowed: title, next, limits. "
        "Did you mean 'title'?",
    ),
    Case(
        "nested blueprint without quotes",
        '[blueprints.outer.inner]\nlimits = ["5/minute"]',
        "policy.toml:2: blueprints.outer.inner: unknown key; allowed: plans, limits, routes. A "
        'nested blueprint is written with its whole name in quotes: [blueprints."outer.inner"].',
    ),
    Case(
        "key that has to be escaped",
        '"a\\nb" = 1',
        'policy.toml:2: "a\\nb": unknown key; allowed: version,',
    ),
    Case(
        "empty name",
        '[blueprints.""]\nlimits = ["5/minute"]',
        "policy.toml:2: blueprints: found the key '' (a string); allowed: a name.",
    ),
    # -- the shape of tables and lists
    Case(
        "list in one pair of brackets",
        '[application]\nlimit = "5/minute"',
        "policy.toml:2: application: found a table; allowed: a list of at least one limit, such "
        'as ["30/minute"]. In a file, the name of a list of tables stands in two pairs of '
        "brackets.",
    ),
    Case(
        "table in two pairs of brackets",
        '[[blueprints.chat]]\nlimits = ["5/minute"]',
        "policy.toml:2: blueprints.chat: found a list; allowed: a table. In a file, its name "
        "stands in one pair of brackets.",
    ),
    Case(
        "string for a list",
        '[blueprints.chat]\nlimits = "5/minute"',
        "policy.toml:3: blueprints.chat.limits: found '5/minute' (a string); allowed: a list of "
        'at least one limit, such as ["30/minute"]. Put it in brackets.',
    ),
    Case(
        "empty list",
        "default = []",
        "policy.toml:2: default: found an empty list; allowed: a list of at least one limit, such "
        'as ["30/minute"]. Remove the key where no limit is meant.',
    ),
    Case(
        "number for a limit",
        'default = ["5/minute", 5]',
        "policy.toml:2: default[1]: found 5 (a whole number); allowed: a table.",
    ),
    Case(
        "number for a table",
        "blueprints = 1",
        "policy.toml:2: blueprints: found 1 (a whole number); allowed: a table.",
    ),
    Case(
        "date for plans",
        "plans = 2024-01-01",
        "policy.toml:2: plans: found a date or time; allowed: a table.",
    ),
    Case(
        "empty blueprint",
        "[blueprints.chat]",
        "policy.toml:2: blueprints.chat: the table is empty; allowed: limits, plans, routes. Fill "
        "or remove it.",
    ),
    Case(
        "empty route",
        "[blueprints.chat.routes.post]",
        "policy.toml:2: blueprints.chat.routes.post: the table is empty; allowed: limits, plans. "
        "Fill or remove it.",
    ),
    Case(
        "route that is no table",
        "[routes]\nindex = 3",
        "policy.toml:3: routes.index: found 3 (a whole number); allowed: a table.",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_told(load: Load, mistake: Case) -> None:
    """Each mistake has its line, with what was found, what is allowed and what to do."""
    assert mistake.told in told_by(lambda: load(f"version = 1\n{mistake.text}\n"))
