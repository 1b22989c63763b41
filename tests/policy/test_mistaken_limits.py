"""What a limit cannot be is told: its string, the values of its keywords, and these together."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ratelimit_ext.core.traits import units
from ratelimit_ext.strategies import ALIASES, STRATEGIES
from tests.policy.case import Case
from tests.policy.conftest import Load, told_by


def listed(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


MISTAKES = [
    # -- the string of a limit
    Case(
        "missing limit",
        '[[default]]\nname = "x"',
        'policy.toml:2: default[0]: "limit" is missing; write for example limit = "30/minute".',
    ),
    Case(
        "bad string",
        '[[default]]\nlimit = "banana"',
        "policy.toml:3: default[0].limit: found 'banana' (a string); allowed: amount per period, "
        'as "30/minute", "100 per day", "5/second;1000/day" or "5 usd/day"; "4 in flight"; '
        '"1 usd/hour or 20 x usual"; "unless blocked" and "as reported".',
    ),
    Case(
        "another strategy than the string's",
        '[[default]]\nlimit = "unless blocked"\nstrategy = "token-bucket"',
        "policy.toml:4: default[0].strategy: found 'token-bucket' beside 'unless blocked', which "
        "says 'block' itself. Remove it.",
    ),
    Case(
        "another unit than the string's",
        '[[default]]\nlimit = "5 usd/day"\nunit = "tokens"',
        "policy.toml:4: default[0].unit: found 'tokens' beside '5 usd/day', which says 'usd' "
        "itself. Remove it.",
    ),
    Case(
        "a block that costs",
        '[[default]]\nlimit = "unless blocked"\ncost = 0',
        'policy.toml:4: default[0].cost: found a cost, but "unless blocked" counts nothing. Remove '
        "it.",
    ),
    Case(
        "a block that counts",
        '[[default]]\nlimit = "unless blocked"\nunit = "tokens"',
        "policy.toml:2: default[0]: 1 per 1 s: unit is 'tokens'; the strategy 'block' counts "
        "'requests'. Leave it out, or write an amount per period.",
    ),
    Case(
        "a multiple that is too large",
        '[[default]]\nlimit = "1 usd/hour or 5000 x usual"',
        "policy.toml:2: default[0]: limit 'surge': multiple is 5000; a whole number from 1 to "
        "1000 is allowed.",
    ),
    Case(
        "a surge without its multiple",
        '[[default]]\nlimit = "1 usd/hour"\nstrategy = "surge"',
        "policy.toml:2: default[0]: 1000000 per 3600 s: the strategy 'surge' needs a "
        "multiple. Write '1 usd/hour or 20 x usual'.",
    ),
    Case(
        "bad string in a list",
        'default = [\n  "5/minute",\n  # a comment\n  "5/fortnight",\n]',
        "policy.toml:5: default[1]: found '5/fortnight' (a string); allowed: amount per period",
    ),
    Case(
        "empty string", 'default = [""]', "policy.toml:2: default[0]: found '' (a string); allowed:"
    ),
    Case(
        "number for the string",
        "[[default]]\nlimit = 30",
        "policy.toml:3: default[0].limit: found 30 (a whole number); allowed: amount per period",
    ),
    Case(
        "amount of 0",
        '[[default]]\nlimit = "0/minute"',
        "policy.toml:3: default[0].limit: found '0/minute' (a string); allowed: an amount from 1 "
        "to 1000000000000.",
    ),
    Case(
        "huge amount",
        'default = ["5/second;99999999999999999999/minute"]',
        "policy.toml:2: default[0]: found '5/second;99999999999999999999/minute' (a string); "
        "allowed: an amount from 1 to 1000000000000.",
    ),
    Case(
        "huge period",
        'default = ["5 per 50 years"]',
        "policy.toml:2: default[0]: found '5 per 50 years' (a string); allowed: a period of up to "
        "3257 days.",
    ),
    Case(
        "one period twice in a string",
        'default = ["5/minute;60/60 seconds"]',
        "policy.toml:2: default[0]: found '5/minute;60/60 seconds', in which two limits have the "
        "same period: only the smaller would ever deny. Keep the smaller one.",
    ),
    # -- values of keywords
    Case(
        "unknown strategy",
        '[[default]]\nlimit = "5/minute"\nstrategy = "token_bucket"',
        "policy.toml:4: default[0].strategy: found 'token_bucket' (a string); allowed: "
        f"{listed(sorted([*STRATEGIES, *ALIASES]))}. Did you mean 'token-bucket'?",
    ),
    Case(
        "strategy of another type",
        '[[default]]\nlimit = "5/minute"\nstrategy = ["token-bucket"]',
        "policy.toml:4: default[0].strategy: found a list; allowed:",
    ),
    Case(
        "burst on a window",
        '[[default]]\nlimit = "5/minute"\nstrategy = "sliding-window"\nburst = 3',
        "policy.toml:5: default[0].burst: 5 per 60 s: burst=3 is not an option of the "
        "strategy 'sliding-window'; only 'token-bucket' has a burst. Remove it or change the "
        "strategy.",
    ),
    Case(
        "burst that is true",
        '[[default]]\nlimit = "5/minute"\nburst = true',
        "policy.toml:4: default[0].burst: found true; allowed: a whole number from 1 to "
        "1000000000000.",
    ),
    Case(
        "burst of 0",
        '[[default]]\nlimit = "5/minute"\nburst = 0',
        "policy.toml:4: default[0].burst: found 0 (a whole number); allowed: a whole number from 1",
    ),
    Case(
        "burst with a fraction",
        '[[default]]\nlimit = "5/minute"\nburst = 1.5',
        "policy.toml:4: default[0].burst: found 1.5 (a number with a fraction); allowed:",
    ),
    Case(
        "number that Python refuses to print",
        f'[[default]]\nlimit = "5/minute"\nburst = 0x{"f" * 5000}',
        "policy.toml:4: default[0].burst: found a whole number of very many digits; allowed:",
    ),
    Case(
        "name with quotes",
        '[[default]]\nlimit = "5/minute"\nname = \'say "hi"\'',
        "policy.toml:4: default[0].name: found 'say \"hi\"' (a string); allowed: a name of 1 to 64 "
        "letters, digits, _, -, . and spaces.",
    ),
    Case(
        "unknown unit",
        '[[default]]\nlimit = "5/minute"\nunit = "request"',
        "policy.toml:4: default[0].unit: found 'request' (a string); allowed: "
        f"{listed(units())}. Did you mean 'requests'?",
    ),
    Case(
        "unit of another strategy, told once",
        '[[default]]\nlimit = "5/minute"\nstrategy = "fixed-window"\nunit = "calls"',
        "1 mistake in the limits by configuration:\n  policy.toml:2: default[0]: 5 per 60 s: "
        "unit is 'calls'; the strategy 'fixed-window' counts",
    ),
    Case(
        "unknown mode",
        '[[default]]\nlimit = "5/minute"\nmode = "shadows"',
        "policy.toml:4: default[0].mode: found 'shadows' (a string); allowed: \"enforce\", "
        "\"shadow\". Did you mean 'shadow'?",
    ),
    Case(
        "negative cost",
        '[[default]]\nlimit = "5/minute"\ncost = -1',
        "policy.toml:4: default[0].cost: found -1 (a whole number); allowed: a whole number from 0 "
        "to 1000000000000; for a limit in usd an amount of dollars such as 0.01.",
    ),
    Case(
        "function for a cost",
        '[[default]]\nlimit = "5/minute"\ncost = "app.costs:tokens"',
        "policy.toml:4: default[0].cost: found 'app.costs:tokens' (a string); allowed: a whole "
        "number from 0 to 1000000000000; for a limit in usd an amount of dollars such as 0.01.",
    ),
    Case(
        "dollars for a cost in tokens",
        '[[default]]\nlimit = "5/minute"\nunit = "tokens"\ncost = "0.01"',
        "policy.toml:5: default[0].cost: found '0.01' (a string); allowed: a whole number from 0 "
        "up.",
    ),
    Case(
        "a cost in dollars above the amount",
        '[[default]]\nlimit = "0.5 usd/day"\ncost = 0.75',
        "policy.toml:4: default[0].cost: found 0.75, but '0.5 usd/day' holds at most 0.5 usd: no "
        "call could ever pass. Lower the cost or raise the limit.",
    ),
    Case(
        "a cost in dollars of very many digits",
        '[[default]]\nlimit = "0.5 usd/day"\ncost = "1e999999999"',
        "policy.toml:4: default[0].cost: found '1e999999999' (a string); allowed: a whole number",
    ),
    Case(
        "money by a keyword alone",
        '[[default]]\nlimit = "3/minute"\nunit = "usd"',
        "policy.toml:4: default[0].unit: found 'usd' beside '3/minute', which states no dollars. "
        "Write '3 usd/minute'.",
    ),
    Case(
        "money in one of two limits",
        '[[default]]\nlimit = "5 usd/day;100 per hour"\nunit = "usd"',
        "policy.toml:4: default[0].unit: found 'usd' beside '100 per hour', which states no "
        "dollars. Write '100 usd per hour'.",
    ),
    Case(
        "calls at once by a bucket",
        '[[default]]\nlimit = "4 in flight"\nstrategy = "token-bucket"',
        "policy.toml:4: default[0].strategy: found 'token-bucket' beside '4 in flight', which says "
        "'concurrency' itself. Remove it.",
    ),
    Case(
        "a cost of calls at once",
        '[[default]]\nlimit = "4 in flight"\ncost = 2',
        "policy.toml:4: default[0].cost: found a cost, but in '4 in flight' each call is one. "
        "Remove it.",
    ),
    Case(
        "one name for two limits",
        '[[default]]\nlimit = "3/minute;5/hour"\nname = "x"',
        "policy.toml:4: default[0].name: found 'x' beside '3/minute;5/hour', which is 2 limits: "
        "headers and answers could not tell them apart. Write each by itself, with a name of its "
        "own.",
    ),
    Case(
        "cost above the amount",
        '[[default]]\nlimit = "5/minute"\ncost = 6',
        "policy.toml:4: default[0].cost: found 6, but '5/minute' holds at most 5: no call could "
        "ever pass. Lower the cost or raise the limit.",
    ),
    Case(
        "cost above the burst",
        '[[default]]\nlimit = "5/minute"\nstrategy = "token-bucket"\nburst = 2\ncost = 3',
        "policy.toml:6: default[0].cost: found 3, but '5/minute' holds at most 2: no call",
    ),
    Case(
        "string for true",
        '[[default]]\nlimit = "5/minute"\nper_method = "yes"',
        "policy.toml:4: default[0].per_method: found 'yes' (a string); allowed: true or false, "
        "without quotes.",
    ),
    Case(
        "1 for true",
        '[[blueprints.chat.limits]]\nlimit = "5/minute"\noverride_defaults = 1',
        "policy.toml:4: blueprints.chat.limits[0].override_defaults: found 1 (a whole number); "
        "allowed: true or false, without quotes.",
    ),
    Case(
        "empty error message",
        '[[default]]\nlimit = "5/minute"\nerror_message = " "',
        "policy.toml:4: default[0].error_message: found ' ' (a string); allowed: a text in quotes.",
    ),
    Case(
        "unknown method",
        '[[default]]\nlimit = "5/minute"\nmethods = ["GET", "PSOT"]',
        "policy.toml:4: default[0].methods: found 'PSOT' (a string) in the list; allowed: CONNECT, "
        "DELETE, GET, OPTIONS, PATCH, POST, PUT, TRACE. Did you mean 'POST'?",
    ),
    Case(
        "HEAD",
        '[[default]]\nlimit = "5/minute"\nmethods = ["head"]',
        'policy.toml:4: default[0].methods: found "HEAD"; HEAD is counted as GET. Write "GET".',
    ),
    Case(
        "string for methods",
        '[[default]]\nlimit = "5/minute"\nmethods = "POST"',
        "policy.toml:4: default[0].methods: found 'POST' (a string); allowed: a list of methods "
        'such as ["POST"].',
    ),
    Case(
        "no methods",
        '[[default]]\nlimit = "5/minute"\nmethods = []',
        "policy.toml:4: default[0].methods: found an empty list; allowed: a list of methods",
    ),
    Case(
        "number for a method",
        '[[default]]\nlimit = "5/minute"\nmethods = [1]',
        "policy.toml:4: default[0].methods: found 1 (a whole number) in the list; allowed: CONNECT",
    ),
    # -- the calendar
    Case(
        "anchor on another strategy",
        '[[default]]\nlimit = "5/day"\nstrategy = "sliding-window"\nanchor = "day"',
        "policy.toml:5: default[0].anchor: 5 per 86400 s: anchor='day' is not an "
        "option of the strategy 'sliding-window'; only 'fixed-window' has an anchor.",
    ),
    Case(
        "unknown anchor",
        '[[default]]\nlimit = "5/day"\nanchor = "days"',
        'policy.toml:4: default[0].anchor: found \'days\' (a string); allowed: "day", "month". '
        "Did you mean 'day'?",
    ),
    Case(
        "anchor on another period",
        '[[default]]\nlimit = "5/hour"\nanchor = "month"',
        "policy.toml:4: default[0].anchor: found 'month' beside '5/hour'; the window of a calendar "
        'month needs a limit per month, such as "1000/month".',
    ),
    Case(
        "burst and anchor",
        '[[default]]\nlimit = "5/day"\nanchor = "day"\nburst = 3',
        "policy.toml:4: default[0].anchor: 5 per 86400 s: anchor='day' is not an option of the "
        "strategy 'token-bucket'",
    ),
    Case(
        "unknown time zone",
        '[[default]]\nlimit = "5/day"\nanchor = "day"\ntimezone = "Europe/Berln"',
        "policy.toml:5: default[0].timezone: found 'Europe/Berln' (a string); allowed: a time zone "
        "such as \"Europe/Berlin\". Did you mean 'Europe/Berlin'?",
    ),
    Case(
        "path for a time zone",
        '[[default]]\nlimit = "5/day"\nanchor = "day"\ntimezone = "../../etc/passwd"',
        "policy.toml:5: default[0].timezone: found '../../etc/passwd' (a string); allowed:",
    ),
    Case(
        "time zone without an anchor",
        '[[default]]\nlimit = "5/day"\ntimezone = "Europe/Berlin"',
        "policy.toml:4: default[0].timezone: found 'Europe/Berlin' without an anchor; only a "
        'window of the calendar has a time zone. Add anchor = "day" or "month", or remove it.',
    ),
    # -- identities and functions
    Case(
        "identity with a space",
        '[[default]]\nlimit = "5/minute"\nkey = "the user"',
        "policy.toml:4: default[0].key: found 'the user' (a string); allowed: the name of an "
        'identity such as "user", or "package.module:function".',
    ),
    Case(
        "identity that is a number",
        '[[default]]\nlimit = "5/minute"\nkey = 1',
        "policy.toml:4: default[0].key: found 1 (a whole number); allowed: the name of an identity",
    ),
    Case(
        "module that is not there",
        '[[default]]\nlimit = "5/minute"\nkey = "no_such_module.keys:tenant"',
        "policy.toml:4: default[0].key: found 'no_such_module.keys:tenant', but importing "
        "'no_such_module.keys' fails: ModuleNotFoundError: No module named 'no_such_module'. Check "
        "its name and that it can be imported here.",
    ),
    Case(
        "function that is not there",
        '[[default]]\nlimit = "5/minute"\nkey = "tests.policy.functions:tenent"',
        "policy.toml:4: default[0].key: found 'tests.policy.functions:tenent', but "
        "'tests.policy.functions' has no 'tenent'. Did you mean 'tenant'? Where that module is "
        "still being imported, move the function to a module of its own.",
    ),
    Case(
        "name of no function",
        '[[default]]\nlimit = "5/minute"\nkey = "tests.policy.functions:NOT_A_FUNCTION"',
        "policy.toml:4: default[0].key: found 1 (a whole number); allowed: a function.",
    ),
    Case(
        "function with other arguments",
        '[[default]]\nlimit = "5/minute"\nexempt_when = "tests.policy.functions:takes_response"',
        "policy.toml:4: default[0].exempt_when: found the function 'takes_response'(response: "
        "'object') -> 'bool'; allowed: a function that is called with no argument.",
    ),
    Case(
        "asynchronous function",
        '[[default]]\nlimit = "5/minute"\nkey = "tests.policy.functions:asynchronous"',
        "policy.toml:4: default[0].key: found the function 'asynchronous', which is asynchronous; "
        "allowed: a plain function (def).",
    ),
    Case(
        "malformed name of a function",
        '[[default]]\nlimit = "5/minute"\ndeduct_when = "app.costs"',
        "policy.toml:4: default[0].deduct_when: found 'app.costs' (a string); allowed: a function "
        'as "package.module:function".',
    ),
    Case(
        "name of a function that is none",
        '[[default]]\nlimit = "5/minute"\nkey = "app.keys:the tenant"',
        "policy.toml:4: default[0].key: found 'app.keys:the tenant' (a string); allowed: a "
        'function as "package.module:function".',
    ),
    Case(
        "number for a function",
        '[[default]]\nlimit = "5/minute"\non_breach = 1',
        "policy.toml:4: default[0].on_breach: found 1 (a whole number); allowed: "
        '"package.module:function".',
    ),
    # -- keywords that mean nothing where they stand
    Case(
        "shared on the application",
        '[[application]]\nlimit = "5/minute"\nshared = false',
        "policy.toml:4: application[0].shared: means nothing here: a limit of the application "
        "always is one bucket for all of it. Remove it.",
    ),
    Case(
        "override_defaults on a default",
        '[[default]]\nlimit = "5/minute"\noverride_defaults = true',
        "policy.toml:4: default[0].override_defaults: means nothing here: this is a default.",
    ),
    Case(
        "shared on a route",
        '[[routes.index.limits]]\nlimit = "5/minute"\nshared = true',
        "policy.toml:4: routes.index.limits[0].shared: means nothing here: a route has one bucket "
        'anyway; with others it is shared by scope = "…". Remove it.',
    ),
    Case(
        "scope that is not shared",
        '[[blueprints.chat.limits]]\nlimit = "5/minute"\nscope = "llm"\nshared = false',
        "policy.toml:5: blueprints.chat.limits[0].shared: found false beside scope = 'llm', which "
        "names a bucket that is shared. Remove one of the two.",
    ),
    # -- limits beside each other
    Case(
        "one name twice",
        '[[default]]\nname = "a"\nlimit = "5/minute"\n[[default]]\nname = "a"\nlimit = "9/hour"',
        "policy.toml:6: default[1].name: found 'a', which is also the name of policy.toml: "
        "default[0]. Limits that apply together need names of their own.",
    ),
    Case(
        "one name in a blueprint and in it",
        '[[blueprints.chat.routes.post.limits]]\nlimit = "5/minute"\nname = "a"\n'
        '[[blueprints.chat.limits]]\nlimit = "9/hour"\nname = "a"',
        "policy.toml:4: blueprints.chat.routes.post.limits[0].name: found 'a', which is also the "
        "name of policy.toml: blueprints.chat.limits[0]. Limits that apply together need names",
    ),
    Case(
        "one name in the application and in a blueprint",
        '[[application]]\nlimit = "5/minute"\nname = "a"\n'
        '[[blueprints.chat.limits]]\nlimit = "9/hour"\nname = "a"',
        "policy.toml:7: blueprints.chat.limits[0].name: found 'a', which is also the name of "
        "policy.toml: application[0].",
    ),
    Case(
        "one bucket twice",
        'default = ["5/minute", "9/minute"]',
        "policy.toml:2: default[1]: '9/minute' applies together with '5/minute' of "
        "policy.toml: default[0]: both have the same period, strategy and key, and no name, so "
        "that only the smaller would ever decide.",
    ),
    Case(
        "one route in two tables",
        '[[routes."chat.post".limits]]\nlimit = "5/minute"\n'
        '[[blueprints.chat.routes.post.limits]]\nlimit = "9/minute"',
        "'5/minute' applies together with '9/minute' of policy.toml: "
        "blueprints.chat.routes.post.limits[0]",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_told(load: Load, mistake: Case) -> None:
    """Each mistake has its line, with what was found, what is allowed and what to do."""
    assert mistake.told in told_by(lambda: load(f"version = 1\n{mistake.text}\n"))
