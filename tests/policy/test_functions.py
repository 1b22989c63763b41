"""Functions and identities that a policy names."""

from __future__ import annotations

import pytest

from tests.policy.conftest import Case, Load, check_case

MISTAKES = [
    Case(
        "identity that is a number",
        '[[default]]\nlimit = "5/minute"\nkey = 1',
        "4: default[0].key",
        ["found 1 (a whole number)", "the name of an identity"],
    ),
    Case(
        "not a function",
        '[[default]]\nlimit = "5/minute"\nkey = "tests.policy.functions:NOT_A_FUNCTION"',
        "4: default[0].key",
        ["found 1 (a whole number)", "a function"],
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
]


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_mistake(load: Load, case: Case) -> None:
    """A name that leads to no suitable function is a mistake at its keyword."""
    check_case(load, case)
