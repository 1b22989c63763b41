"""The inventory makes the limits of an application once, until something that they are made of
changes."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, request

from ratelimit_ext import Limiter, OperatorError
from tests.web.calls import statuses
from tests.web.conftest import Maker


@pytest.fixture
def app(make: Maker) -> tuple[Flask, Limiter]:
    app, limiter = make(storage_uri="memory://")
    app.get("/", endpoint="view")(limiter.limit("2/hour", name="calls")(lambda: "ok"))
    return app, limiter


def shown(limiter: Limiter) -> list[tuple[str, str]]:
    return [(row.name, row.key) for row in limiter.operators.rows()]


def test_limits_are_made_once(app: tuple[Flask, Limiter]) -> None:
    """All of them, and those of a name, are the same objects while nothing changes."""
    with app[0].app_context():
        inventory = app[1]._components.inventory
        inventory.all_rows(app[0])  # the view gets its wrapper
        assert inventory.all_rows(app[0])[0] is inventory.all_rows(app[0])[0]
        assert inventory.named(app[0], "calls")[0] is inventory.named(app[0], "calls")[0]


def add_view(app: Flask, limiter: Limiter) -> None:
    app.get("/other", endpoint="other")(limiter.limit("3/hour", name="more")(lambda: "ok"))


def replace_view(app: Flask, limiter: Limiter) -> None:
    app.view_functions["view"] = limiter.limit("3/hour", name="more")(lambda: "ok")


def limit_again(app: Flask, limiter: Limiter) -> None:
    limiter.limit("3/hour", name="more")(app.view_functions["view"])


def name_identity(_: Flask, limiter: Limiter) -> None:
    limiter.identity("caller")(limiter._key_func)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (add_view, [("calls", "asked_key"), ("more", "asked_key")]),
        (replace_view, [("more", "asked_key")]),
        (limit_again, [("calls", "asked_key"), ("more", "asked_key")]),
        (name_identity, [("calls", "caller")]),
    ],
)
def test_limits_are_made_again(
    app: tuple[Flask, Limiter],
    change: Callable[[Flask, Limiter], None],
    expected: list[tuple[str, str]],
) -> None:
    """After a view is added or replaced, one gets another limit, or an identity gets a name. The
    limits of one name are those, too."""
    with app[0].app_context():
        assert shown(app[1]) == [("calls", "asked_key")]
        assert len(app[1]._components.inventory.named(app[0], "calls")) == 1
        change(*app)
        assert shown(app[1]) == expected
        for name, key in expected:
            assert [row.key for row in app[1]._components.inventory.named(app[0], name)] == [key]


def test_functions_are_called_each_time(app: tuple[Flask, Limiter]) -> None:
    """What returns a string, a scope or a limit on denials may return another one later."""
    answers = iter(["3/hour", "4/hour", "5/hour"])
    limit: Any = app[1].limit
    app[0].get("/asks", endpoint="asks")(limit(lambda: next(answers), name="asks")(lambda: "ok"))
    scoped = limit("5/hour", scope=lambda endpoint: f"{endpoint} {request.path}", name="scoped")
    app[0].get("/scoped", endpoint="scoped")(scoped(lambda: "ok"))
    with app[0].test_request_context("/one"):
        asked = [row for row in app[1].operators.rows() if row.name == "asks"]
        assert [row.limit.amount for row in asked] == [3]
        (row,) = app[1]._components.inventory.named(app[0], "asks")
        assert row.limit.amount == 4
        prefixes = {row.prefix for row in app[1].operators.rows() if row.name == "scoped"}
    with app[0].test_request_context("/two"):
        prefixes |= {row.prefix for row in app[1].operators.rows() if row.name == "scoped"}
    assert len(prefixes) == 2


def test_an_override_is_no_part_of_a_limit(app: tuple[Flask, Limiter]) -> None:
    """It applies at once, and its end, too; the limit that is listed stays."""
    with app[0].app_context():
        rows = app[1].operators.rows()
        app[1].operators.override("calls", "someone", "3/hour")
        assert [state.row.limit.amount for state in app[1].operators.states("someone")] == [3]
        assert app[1].operators.rows() == rows
        app[1].operators.clear_override("calls", "someone")
        assert [state.row.limit.amount for state in app[1].operators.states("someone")] == [2]


def test_a_guard_that_is_added_later_blocks(app: tuple[Flask, Limiter]) -> None:
    """Although its name was asked for before, and was unknown."""
    with app[0].app_context():
        with pytest.raises(OperatorError, match="known names: none"):
            app[1].operators.block("stop", "someone")
        guard = app[1].limit("unless blocked", name="stop")
        app[0].get("/other", endpoint="other")(guard(lambda: "ok"))
        assert app[1].operators.block("stop", "someone")
    assert statuses(app[0], "/other", times=1) == [403]
