"""A strategy is two files and a line, also a guard with a form, a unit and a reason of its own."""

from collections.abc import Iterator
from typing import cast

import flask
import pytest
import redis

from ratelimit_ext import Limiter, RateLimitExceeded, strategies
from ratelimit_ext.core import traits
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import NO_OPTIONS, Limit
from ratelimit_ext.core.limit_string import parse, states_guard
from ratelimit_ext.engine.arguments import composed
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.strategies import strategy
from ratelimit_ext.strategies.fair_window import MemberShare
from ratelimit_ext.strategies.guards.block import new_block
from ratelimit_ext.strategies.strategy import Strategy
from tests.strategies.toy.credits import Credits, TopUp

#: Parsed limits are remembered, with their strategy.
CREDITS = Credits()


@pytest.fixture(autouse=True)
def _credits() -> Iterator[None]:
    """The line, undone after the test."""
    strategies.register(CREDITS)
    yield
    traits.TABLE.pop("credits")


def test_from_the_string_to_the_answer(uri: str) -> None:
    """Its form in a decorator, its decision, its own reason in a 429, and its own change."""
    app = flask.Flask("toy")
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri)
    denied: list[Charge] = []

    @app.route("/")
    @limiter.limit("2 credits")
    def view() -> str:
        return "ok"

    @app.errorhandler(RateLimitExceeded)
    def refusal(error: RateLimitExceeded) -> RateLimitExceeded:
        denied.append(error.denials[0].charge)
        return error

    client = app.test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]
    body = client.get("/").json
    assert body is not None
    assert (body["code"], body["policy"]) == ("no_credit", "2-credits")
    assert body["error"].startswith("Your credits are used up. Buy more.")
    problem = client.get("/", headers={"Accept": "application/problem+json"})
    assert (problem.status_code, problem.content_type) == (429, "application/problem+json")
    assert limiter._components.engines.current.settle([TopUp(denied[0], 1)]) == 1
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("driver", ["admit", "settle"])
def test_it_runs_as_a_function(redis_client: redis.Redis, driver: str) -> None:
    """Also with reservations. While a library is loaded, Lua lacks most of its own functions."""
    script = composed(driver, (CREDITS, cast(Strategy, CREDITS.holding)))
    assert redis_client.function_load(script.library, replace=True) == script.function.encode()


def test_its_form_and_its_unit_are_known() -> None:
    """The parser shows it, and mistakes name it."""
    (parsed,) = parse("50  Credits")
    assert (parsed.amount, parsed.unit, str(parsed)) == (50, "credits", "50 credits")
    assert states_guard("5/minute; 50 credits", NO_OPTIONS)
    with pytest.raises(ConfigurationError, match='"50 credits"'):
        parse("credit 50")
    with pytest.raises(ConfigurationError, match=r"counts 'requests', .*Write '50 credits'"):
        Limit(1, 1, unit="credits")


def test_other_strategies_do_not_take_its_change() -> None:
    """And it takes none of theirs."""
    with pytest.raises(ValueError, match="'block' does not take the change 'top_up'"):
        MemoryEngine().settle([TopUp(Charge(Limit(1, 1, "block"), "b"), 1)])
    with pytest.raises(ValueError, match="'credits' does not take the change 'block'; it takes"):
        MemoryEngine().settle([new_block(Charge(Limit(1, 1, "credits", unit="credits"), "b"), 1)])


def test_its_lua_is_read_when_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of what decides it for members of a group: later no file may be open."""
    read: list[str] = []
    monkeypatch.setattr(strategy, "lua", lambda file: read.append(file.stem) or "")
    traits.TABLE.pop("credits")
    strategies.register(CREDITS, MemberShare())
    assert {"credits", "fair_window"} <= set(read)
    CREDITS.fair = ()


def test_a_name_or_a_code_is_taken_once() -> None:
    """Two strategies under one code would share their buckets."""
    with pytest.raises(ValueError, match="'credits' has this name"):
        strategies.register(Credits())
