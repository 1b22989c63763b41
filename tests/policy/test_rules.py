"""The parts of a limit go together."""

from __future__ import annotations

import pytest

from tests.policy.conftest import Case, Load, check_case

MISTAKES = [
    Case(
        "another unit than the string's",
        '[[default]]\nlimit = "5 usd/day"\nunit = "tokens"',
        "4: default[0].unit",
        ["found 'tokens' beside '5 usd/day'", "states 'usd' itself"],
    ),
    Case(
        "a block that counts",
        '[[default]]\nlimit = "unless blocked"\nunit = "tokens"',
        "2: default[0]",
        ["'block'", "'tokens'"],
    ),
    Case(
        "a multiple that is too large",
        '[[default]]\nlimit = "1 usd/hour or 5000 x usual"',
        "2: default[0]",
        ["multiple", "5000"],
    ),
    Case(
        "a surge without its multiple",
        '[[default]]\nlimit = "1 usd/hour"\nstrategy = "surge"',
        "2: default[0]",
        ["'surge'", "Write '1 usd/hour or 20 x usual'"],
    ),
    Case(
        "a block that has an amount",
        '[[default]]\nlimit = "5/minute"\nstrategy = "block"',
        "2: default[0]",
        ["found '5/minute' with the strategy 'block'", "Write 'unless blocked'"],
    ),
    Case(
        "burst on a window",
        '[[default]]\nlimit = "5/minute"\nstrategy = "sliding-window"\nburst = 3',
        "5: default[0].burst",
        ["'sliding-window'"],
    ),
    Case(
        "unit of another strategy, noted once",
        '[[default]]\nlimit = "5/minute"\nstrategy = "fixed-window"\nunit = "calls"',
        "2: default[0]",
        ["'fixed-window' counts", "Write '4 in flight'"],
    ),
    Case(
        "a cost in dollars above the amount",
        '[[default]]\nlimit = "0.5 usd/day"\ncost = 0.75',
        "4: default[0].cost",
        ["found 0.75, but '0.5 usd/day' holds at most 0.5 usd"],
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
        "cost above the burst",
        '[[default]]\nlimit = "5/minute"\nstrategy = "token-bucket"\nburst = 2\ncost = 3',
        "6: default[0].cost",
        ["found 3, but '5/minute' holds at most 2"],
    ),
    Case(
        "anchor on another strategy",
        '[[default]]\nlimit = "5/day"\nstrategy = "sliding-window"\nanchor = "day"',
        "5: default[0].anchor",
        ["'sliding-window'"],
    ),
    Case(
        "burst and anchor",
        '[[default]]\nlimit = "5/day"\nanchor = "day"\nburst = 3',
        "4: default[0].anchor",
        ["'token-bucket'"],
    ),
    Case(
        "a week of a day",
        '[[default]]\nlimit = "5/day"\nanchor = "week"',
        "4: default[0].anchor",
        ["a calendar week needs a limit per week", '"1000/week"'],
    ),
    Case(
        "an unknown first day",
        '[[default]]\nlimit = "5/week"\nanchor = "week"\nweek_starts = "moonday"',
        "5: default[0].week_starts",
        ["found 'moonday'", "Did you mean 'monday'?"],
    ),
    Case(
        "a first day without a week",
        '[[default]]\nlimit = "5/day"\nanchor = "day"\nweek_starts = "sunday"',
        "5: default[0].week_starts",
        ["found 'sunday' without a calendar week"],
    ),
    Case(
        "an idle time of no session",
        '[[default]]\nlimit = "5/day"\nidle = "1 hour"',
        "4: default[0].idle",
        ["only a session ends so", '"5 usd per session"'],
    ),
    Case(
        "an idle time that is no time",
        '[[default]]\nlimit = "5 per session"\nidle = "often"',
        "4: default[0].idle",
        ["found idle='often'", 'above 0, up to 3257 days, such as "30 minutes"'],
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_mistake(load: Load, case: Case) -> None:
    """A contradiction is noted at the keyword that has to change."""
    check_case(load, case)
