"""The parts of a limit go together."""

from __future__ import annotations

import pytest

from tests.policy.conftest import Case, Load, check_case

MISTAKES = [
    Case(
        "another strategy than the string's",
        '[[default]]\nlimit = "unless blocked"\nstrategy = "token-bucket"',
        "4: default[0].strategy",
        ["found 'token-bucket' beside 'unless blocked'", "states 'block' itself"],
    ),
    Case(
        "another unit than the string's",
        '[[default]]\nlimit = "5 usd/day"\nunit = "tokens"',
        "4: default[0].unit",
        ["found 'tokens' beside '5 usd/day'", "states 'usd' itself"],
    ),
    Case(
        "a block that costs",
        '[[default]]\nlimit = "unless blocked"\ncost = 0',
        "4: default[0].cost",
        ['found a cost, but "unless blocked" counts nothing'],
    ),
    Case(
        "a block that counts",
        '[[default]]\nlimit = "unless blocked"\nunit = "tokens"',
        "2: default[0]",
        ["counts nothing"],
    ),
    Case(
        "a multiple that is too large",
        '[[default]]\nlimit = "1 usd/hour or 5000 x usual"',
        "2: default[0]",
        ["multiple is 5000"],
    ),
    Case(
        "a surge without its multiple",
        '[[default]]\nlimit = "1 usd/hour"\nstrategy = "surge"',
        "2: default[0]",
        ["belong together", "Write '1 usd/hour or 20 x usual'"],
    ),
    Case(
        "burst on a window",
        '[[default]]\nlimit = "5/minute"\nstrategy = "sliding-window"\nburst = 3',
        "5: default[0].burst",
        ["means nothing to the strategy 'sliding-window'"],
    ),
    Case(
        "unit of another strategy, noted once",
        '[[default]]\nlimit = "5/minute"\nstrategy = "fixed-window"\nunit = "calls"',
        "2: default[0]",
        ["belong together", "Write 'N in flight'"],
    ),
    Case(
        "dollars for a cost in tokens",
        '[[default]]\nlimit = "5/minute"\nunit = "tokens"\ncost = "0.01"',
        "5: default[0].cost",
        ["found '0.01' (a string)", "a whole number from 0 up"],
    ),
    Case(
        "a cost in dollars above the amount",
        '[[default]]\nlimit = "0.5 usd/day"\ncost = 0.75',
        "4: default[0].cost",
        ["found 0.75, but '0.5 usd/day' holds at most 0.5 usd"],
    ),
    Case(
        "money by a keyword alone",
        '[[default]]\nlimit = "3/minute"\nunit = "usd"',
        "4: default[0].unit",
        ["found 'usd' beside '3/minute'", "states no dollars", "Write '3 usd/minute'"],
    ),
    Case(
        "money in one of two limits",
        '[[default]]\nlimit = "5 usd/day;100 per hour"\nunit = "usd"',
        "4: default[0].unit",
        ["found 'usd' beside '100 per hour'", "states no dollars", "Write '100 usd per hour'"],
    ),
    Case(
        "calls at once by a bucket",
        '[[default]]\nlimit = "4 in flight"\nstrategy = "token-bucket"',
        "4: default[0].strategy",
        ["found 'token-bucket' beside '4 in flight'", "states 'concurrency' itself"],
    ),
    Case(
        "a cost of calls at once",
        '[[default]]\nlimit = "4 in flight"\ncost = 2',
        "4: default[0].cost",
        ["found a cost, but '4 in flight' counts each call as 1"],
    ),
    Case(
        "one name for two limits",
        '[[default]]\nlimit = "3/minute;5/hour"\nname = "x"',
        "4: default[0].name",
        ["found 'x' beside '3/minute", "which is 2 limits"],
    ),
    Case(
        "cost above the amount",
        '[[default]]\nlimit = "5/minute"\ncost = 6',
        "4: default[0].cost",
        ["found 6, but '5/minute' holds at most 5"],
    ),
    Case(
        "cost above the burst",
        '[[default]]\nlimit = "5/minute"\nstrategy = "token-bucket"\nburst = 2\ncost = 3',
        "6: default[0].cost",
        ["found 3, but '5/minute' holds at most 2"],
    ),
    Case(
        "anchor on another strategy",
        '[[default]]\nlimit = "5/day"\nstrategy = "sliding-window"\nanchor = "day"',
        "5: default[0].anchor",
        ["means nothing to the strategy 'sliding-window'"],
    ),
    Case(
        "anchor on another period",
        '[[default]]\nlimit = "5/hour"\nanchor = "month"',
        "4: default[0].anchor",
        ["found 'month' beside '5/hour'", "needs a limit per month"],
    ),
    Case(
        "burst and anchor",
        '[[default]]\nlimit = "5/day"\nanchor = "day"\nburst = 3',
        "4: default[0].anchor",
        ["means nothing to the strategy 'token-bucket'"],
    ),
    Case(
        "time zone without an anchor",
        '[[default]]\nlimit = "5/day"\ntimezone = "Europe/Berlin"',
        "4: default[0].timezone",
        ["found 'Europe/Berlin' without an anchor"],
    ),
    Case(
        "scope that is not shared",
        '[[blueprints.chat.limits]]\nlimit = "5/minute"\nscope = "llm"\nshared = false',
        "5: blueprints.chat.limits[0].shared",
        ["found false beside scope = 'llm'"],
    ),
    Case(
        "scope that is not shared",
        (
            '[groups.calls]\nmembers = ["chat"]\n[[groups.calls.limits]]\nname = "user"\n'
            'limit = "30/minute"\nscope = "llm"\nshared = false'
        ),
        "8: groups.calls.limits[0].shared",
        ["found false beside scope = 'llm'"],
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_mistake(load: Load, case: Case) -> None:
    """A contradiction is noted at the keyword that has to change."""
    check_case(load, case)
