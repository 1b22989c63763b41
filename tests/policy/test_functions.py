"""Functions and identities that a policy names."""

from __future__ import annotations

import pytest

from tests.policy.conftest import Case, Load, check_case

MISTAKES = [
    Case(
        "identity with a space",
        '[[default]]\nlimit = "5/minute"\nkey = "the user"',
        "4: default[0].key",
        ["found 'the user' (a string)", "the name of an identity"],
    ),
    Case(
        "identity that is a number",
        '[[default]]\nlimit = "5/minute"\nkey = 1',
        "4: default[0].key",
        ["found 1 (a whole number)", "the name of an identity"],
    ),
    Case(
        "missing module",
        '[[default]]\nlimit = "5/minute"\nkey = "no_such_module.keys:tenant"',
        "4: default[0].key",
        [
            "found 'no_such_module.keys:tenant'",
            "importing 'no_such_module.keys' fails: ModuleNotFoundError",
        ],
    ),
    Case(
        "missing function",
        '[[default]]\nlimit = "5/minute"\nkey = "tests.policy.functions:tenent"',
        "4: default[0].key",
        ["found 'tests.policy.functions:tenent'", "has no 'tenent'", "Did you mean 'tenant'"],
    ),
    Case(
        "not a function",
        '[[default]]\nlimit = "5/minute"\nkey = "tests.policy.functions:NOT_A_FUNCTION"',
        "4: default[0].key",
        ["found 1 (a whole number)", "a function"],
    ),
    Case(
        "function with other arguments",
        ('[[default]]\nlimit = "5/minute"\nexempt_when = "tests.policy.functions:takes_response"'),
        "4: default[0].exempt_when",
        ["found the function 'takes_response'", "a function that is called with no argument"],
    ),
    Case(
        "asynchronous function",
        '[[default]]\nlimit = "5/minute"\nkey = "tests.policy.functions:asynchronous"',
        "4: default[0].key",
        ["found the function 'asynchronous'", "an async function", "a plain one (def)"],
    ),
    Case(
        "malformed name of a function",
        '[[default]]\nlimit = "5/minute"\ndeduct_when = "app.costs"',
        "4: default[0].deduct_when",
        ["found 'app.costs' (a string)", 'a function as "package'],
    ),
    Case(
        "malformed name with a colon",
        '[[default]]\nlimit = "5/minute"\nkey = "app.keys:the tenant"',
        "4: default[0].key",
        ["found 'app.keys:the tenant' (a string)", 'a function as "package'],
    ),
    Case(
        "number for a function",
        '[[default]]\nlimit = "5/minute"\non_breach = 1',
        "4: default[0].on_breach",
        ["found 1 (a whole number)", '"package'],
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_mistake(load: Load, case: Case) -> None:
    """A name that leads to no suitable function is a mistake at its keyword."""
    check_case(load, case)
