"""The form of a document: keys, tables, lists and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ratelimit_ext.policy import Policy, load_policy
from ratelimit_ext.policy.schema import document_with
from tests.policy.conftest import Case, Load, check_case, error_of

MISTAKES = [
    Case(
        "unknown table",
        "[blueprint.chat]\nplans = false",
        "2: blueprint",
        ["unknown key", "version", "Did you mean 'blueprints'"],
    ),
    Case(
        "unknown keyword",
        '[[application]]\nlimit = "5/minute"\nbrust = 3',
        "4: application[0].brust",
        ["unknown key", "limit", "Did you mean 'burst'"],
    ),
    Case(
        "keyword of a limit on a blueprint",
        '[blueprints.chat]\nlimit = "5/minute"',
        "3: blueprints.chat.limit",
        ["unknown key", "plans", "Did you mean 'limits'"],
    ),
    Case(
        "unknown key of a plan",
        '[plans.pro]\ntitel = "Pro"',
        "3: plans.pro.titel",
        ["unknown key", "title", "Did you mean 'title'"],
        mistakes=3,
    ),
    Case("key that has to be escaped", '"a\\nb" = 1', '2: "a\\nb"', ["unknown key", "version"]),
    Case(
        "empty name",
        '[blueprints.""]\nlimits = ["5/minute"]',
        "2: blueprints",
        ["found the key '' (a string)", "a name"],
    ),
    Case(
        "list in one pair of brackets",
        '[application]\nlimit = "5/minute"',
        "2: application",
        ["found a table", "a list of at least one limit", "double brackets"],
    ),
    Case(
        "number for a limit",
        'default = ["5/minute", 5]',
        "2: default[1]",
        ["found 5 (a whole number)", "a table"],
    ),
    Case(
        "number for a table",
        "blueprints = 1",
        "2: blueprints",
        ["found 1 (a whole number)", "a table"],
    ),
    Case("date for plans", "plans = 2024-01-01", "2: plans", ["found a date or time", "a table"]),
    Case(
        "empty route",
        "[blueprints.chat.routes.post]",
        "2: blueprints.chat.routes.post",
        ["the table is empty", "plans"],
    ),
    Case(
        "number for a route",
        "[routes]\nindex = 3",
        "3: routes.index",
        ["found 3 (a whole number)", "a table"],
    ),
    Case(
        "bad string",
        '[[default]]\nlimit = "banana"',
        "3: default[0].limit",
        ["found 'banana' (a string)", "amount per period"],
    ),
    Case(
        "bad string in a list",
        'default = [\n  "5/minute",\n  # a comment\n  "5/fortnight",\n]',
        "5: default[1]",
        ["found '5/fortnight' (a string)", "amount per period"],
    ),
    Case(
        "empty string",
        'default = [""]',
        "2: default[0]",
        ["found '' (a string)", "amount per period"],
    ),
    Case(
        "number for the string",
        "[[default]]\nlimit = 30",
        "3: default[0].limit",
        ["found 30 (a whole number)", "amount per period"],
    ),
    Case(
        "a surge of 0",
        '[[default]]\nlimit = "0/minute or 9 x usual"',
        "2: default[0]",
        ["amount is 0; a whole number from 1 to 1000000000000"],
    ),
    Case(
        "unknown strategy",
        '[[default]]\nlimit = "5/minute"\nstrategy = "token_bucket"',
        "4: default[0].strategy",
        ["found 'token_bucket' (a string)", '"block"', "Did you mean 'token-bucket'"],
    ),
    Case(
        "strategy of another type",
        '[[default]]\nlimit = "5/minute"\nstrategy = ["token-bucket"]',
        "4: default[0].strategy",
        ["found a list", '"block"'],
    ),
    Case(
        "burst that is true",
        '[[default]]\nlimit = "5/minute"\nburst = true',
        "4: default[0].burst",
        ["found true", "a whole number from 1 to 1000000000000"],
    ),
    Case(
        "burst with a fraction",
        '[[default]]\nlimit = "5/minute"\nburst = 1.5',
        "4: default[0].burst",
        ["found 1.5 (a number with a fraction)", "a whole number from 1 to 1000000000000"],
    ),
    Case(
        "number that Python refuses to print",
        f'[[default]]\nlimit = "5/minute"\nburst = 0x{"f" * 5000}',
        "4: default[0].burst",
        ["found a whole number of very many digits", "a whole number from 1 to 1000000000000"],
    ),
    Case(
        "unknown unit",
        '[[default]]\nlimit = "5/minute"\nunit = "request"',
        "4: default[0].unit",
        ["found 'request' (a string)", '"requests"', "Did you mean 'requests'"],
    ),
    Case(
        "function for a cost",
        '[[default]]\nlimit = "5/minute"\ncost = "app.costs:tokens"',
        "4: default[0].cost",
        ["found 'app.costs:tokens' (a string)", "a whole number from 0 to 1000000000000"],
    ),
    Case(
        "a cost in dollars of very many digits",
        '[[default]]\nlimit = "0.5 usd/day"\ncost = "1e999999999"',
        "4: default[0].cost",
        ["found '1e999999999' (a string)", "a whole number from 0 to 1000000000000"],
    ),
    Case(
        "1 for true",
        '[[blueprints.chat.limits]]\nlimit = "5/minute"\noverride_defaults = 1',
        "4: blueprints.chat.limits[0].override_defaults",
        ["found 1 (a whole number)", "true or false"],
    ),
    Case(
        "no methods",
        '[[default]]\nlimit = "5/minute"\nmethods = []',
        "4: default[0].methods",
        ["found an empty list", "a list of methods"],
    ),
    Case(
        "number for a method",
        '[[default]]\nlimit = "5/minute"\nmethods = [1]',
        "4: default[0].methods",
        ["found 1 (a whole number) in the list", "CONNECT"],
    ),
    Case(
        "unknown anchor",
        '[[default]]\nlimit = "5/day"\nanchor = "days"',
        "4: default[0].anchor",
        ["found 'days' (a string)", '"day"', "Did you mean 'day'"],
    ),
    Case(
        "path for a time zone",
        '[[default]]\nlimit = "5/day"\nanchor = "day"\ntimezone = "../../etc/passwd"',
        "5: default[0].timezone",
        ["found '../../etc/passwd' (a string)", "a time zone"],
    ),
    Case(
        "shared on the application",
        '[[application]]\nlimit = "5/minute"\nshared = false',
        "4: application[0].shared",
        ["has no effect here: a limit of the application always has one bucket"],
    ),
    Case(
        "shared on a route",
        '[[routes.index.limits]]\nlimit = "5/minute"\nshared = true',
        "4: routes.index.limits[0].shared",
        ["has no effect here: a route has one bucket"],
    ),
    Case(
        "list of groups",
        "groups = [1]",
        "2: groups",
        ["found a list", "a table", "single brackets"],
    ),
    Case(
        "group in two pairs of brackets",
        '[[groups.calls]]\nmembers = ["chat"]',
        "2: groups.calls",
        ["found a list", "a table", "single brackets"],
    ),
    Case("empty group", "[groups.calls]", "2: groups.calls", ["the table is empty", "plans"]),
    Case(
        "unknown key",
        (
            '[groups.calls]\nmember = ["chat"]\n[[groups.calls.limits]]\nname = "user"\n'
            'limit = "30/minute"'
        ),
        "3: groups.calls.member",
        ["unknown key", "plans", "Did you mean 'members'"],
    ),
    Case(
        "string for plans",
        '[groups.calls]\nmembers = ["chat"]\nplans = "pro"',
        "4: groups.calls.plans",
        ["found 'pro' (a string)", "true or false"],
        mistakes=2,
    ),
    Case(
        "empty members",
        (
            '[groups.calls]\nmembers = []\n[[groups.calls.limits]]\nname = "user"\n'
            'limit = "30/minute"'
        ),
        "3: groups.calls.members",
        ["found an empty list", "a list of blueprints and endpoints"],
    ),
    Case(
        "member without a name",
        (
            '[groups.calls]\nmembers = [" "]\n[[groups.calls.limits]]\nname = "user"\n'
            'limit = "30/minute"'
        ),
        "3: groups.calls.members[0]",
        ["found ' ' (a string)", "the name of a blueprint or endpoint"],
    ),
    Case(
        "unknown keyword",
        (
            '[groups.calls]\nmembers = ["chat"]\n[[groups.calls.limits]]\nname = "user"\n'
            'limit = "30/minute"\nbrust = 3'
        ),
        "7: groups.calls.limits[0].brust",
        ["unknown key", "limit", "Did you mean 'burst'"],
    ),
    Case(
        "string for the limit of a plan",
        '[blueprints.chat]\nplans = true\n[plans.pro]\nlimits = ["9/day"]',
        "5: plans.pro.limits[0]",
        ['"name" is missing'],
    ),
    Case(
        "title that is a number",
        "[blueprints.chat]\nplans = true\n[plans.pro]\ntitle = 1",
        "5: plans.pro.title",
        ["found 1 (a whole number)", "a text in quotes"],
        mistakes=2,
    ),
    Case(
        "plans by name",
        '[blueprints.chat]\nplans = ["pro"]',
        "3: blueprints.chat.plans",
        ["found a list", "true or false"],
        mistakes=2,
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_mistake(load: Load, case: Case) -> None:
    """A wrong form has its place, what was found, what is allowed and what to do."""
    check_case(load, case)


# -- keywords of the application -------------------------------------------------------------------


def colour(value: object) -> str:
    if value not in ("red", "blue"):
        raise ValueError(f"found {value!r}; allowed: red, blue.")
    return str(value).upper()


PLANS = """version = 1
[blueprints.chat]
plans = true
[plans.free]
limits = [{{ name = "plan", limit = "5/day" }}]
{line}
"""


@dataclass(frozen=True)
class OneOf:
    """A check without a hash, as a list has none."""

    words: list[str]

    def __call__(self, value: object) -> object:
        if value not in self.words:
            raise ValueError(f"allowed: {self.words}")
        return value


def load_plans(tmp_path: Path, line: str, check: Callable[[object], object] = colour) -> Policy:
    file = tmp_path / "policy.toml"
    file.write_text(PLANS.format(line=line))
    return load_policy(file=file, blueprints=None, plan_keywords={"colour": check})


def test_a_plan_has_the_applications_keywords(tmp_path: Path) -> None:
    """As the function returns them; only those that are written."""
    assert load_plans(tmp_path, 'colour = "red"').plans["free"].keywords == {"colour": "RED"}
    assert load_plans(tmp_path, "").plans["free"].keywords == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('colour = "green"', "plans.free.colour: found 'green'; allowed: red, blue."),
        (
            'color = "red"',
            "default, price, upgrade_url, limits, colour. Did you mean 'colour'?",
        ),
    ],
)
def test_a_mistake_in_the_applications_keyword_has_a_line(
    tmp_path: Path, line: str, sentence: str
) -> None:
    """Like one in the extension's own."""
    message = error_of(lambda: load_plans(tmp_path, line))
    assert "policy.toml:6" in message
    assert sentence in message


def test_applications_with_the_same_keywords_share_the_models() -> None:
    """To make them takes longer than to read a policy."""
    made = document_with({"colour": colour}, {"area": str})
    assert document_with({"colour": colour}, {"area": str}) is made
    assert document_with({"colour": colour}, {"area": int}) is not made
    assert document_with({}, {"area": str}) is not made


def test_the_check_of_a_keyword_needs_no_hash(tmp_path: Path) -> None:
    """Each has models of its own then."""
    for word in ("red", "blue"):
        found = load_plans(tmp_path, f'colour = "{word}"', OneOf([word])).plans["free"]
        assert found.keywords == {"colour": word}
