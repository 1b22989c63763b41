"""`limiter.operators` in code: what cannot be done has a code and a sentence."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from ratelimit_ext import Limiter, OperatorError
from ratelimit_ext.operators import Operators
from tests.web.calls import statuses
from tests.web.conftest import Maker


def limited(make: Maker, **options: Any) -> tuple[Flask, Limiter]:
    app, limiter = make(**options)
    app.get("/", endpoint="view")(limiter.limit("2/hour", name="calls")(lambda: "ok"))
    return app, limiter


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda operators: operators.override("cals", "someone", "3/hour"), "unknown_limit"),
        (lambda operators: operators.override("calls", "someone", "3/day"), "invalid_amount"),
        (lambda operators: operators.override("someone", "calls", "3/hour"), "swapped"),
        (lambda operators: operators.override("calls", "a", "3/hour", until=1), "past_time"),
        (lambda operators: operators.override("calls", "a", "3/hour", until=2e12), "invalid_time"),
        (
            lambda operators: operators.override("calls", "a", "3/hour", until=math.inf),
            "invalid_time",
        ),
        (lambda operators: operators.block("calls", "someone"), "unknown_limit"),
        (lambda operators: operators.block("calls", "someone", for_s=0), "wrong_block"),
        (lambda operators: operators.reset("someone"), "nothing_counted"),
        (lambda operators: operators.reset("someone", "cals"), "unknown_limit"),
        (lambda operators: [*operators.groups("nowhere")], "unknown_endpoint"),
        (lambda operators: operators.denials(since=60), "not_remembered"),
        (lambda operators: operators.counters(1), "not_remembered"),
        (lambda operators: operators.used(), "not_searchable"),
        (lambda operators: operators.shared(), "not_shared"),
    ],
)
def test_what_cannot_be_done_has_a_code(
    make: Maker, act: Callable[[Operators], object], code: str
) -> None:
    """And a sentence that names no command."""
    app, limiter = limited(make)
    with app.app_context(), pytest.raises(OperatorError) as raised:
        act(limiter.operators)
    assert raised.value.code == code
    assert "`" not in str(raised.value)


def test_disabled_limits_cannot_be_changed(make: Maker) -> None:
    """Every change is refused, and no other process shares their storage."""
    app, limiter = limited(make, enabled=False)
    with app.app_context():
        assert not limiter.operators.is_shared
        for act in (limiter.operators.log, limiter.operators.rows, limiter.operators.shared):
            with pytest.raises(OperatorError, match="RATELIMIT_ENABLED"):
                act()


def test_a_function_may_have_the_name_of_an_identity(make: Maker) -> None:
    """It takes an operator's text as it is, although it is named as the built-in `user`."""

    def user() -> str:
        return "someone"

    app, limiter = limited(make, key_func=user)
    with app.app_context():
        limiter.operators.override("calls", "someone", "3/hour", as_written=True)
    assert statuses(app, times=4) == [200, 200, 200, 429]


def test_it_is_of_the_current_application(make: Maker) -> None:
    """An override in one application does not apply in another."""
    app, limiter = limited(make)
    other = Flask("other")
    limiter.init_app(other)
    with app.app_context():
        limiter.operators.override("calls", "someone", "3/hour")
        assert [each.identity for each in limiter.operators.overrides()] == ["someone"]
    with other.app_context():
        assert limiter.operators.overrides() == []
    assert statuses(app, times=4) == [200, 200, 200, 429]
