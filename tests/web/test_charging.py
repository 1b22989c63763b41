"""Charges outside of a request: a task spends the budget that its user's requests spend."""

import contextlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, request

from ratelimit_ext import Limiter, RateLimitExceeded
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.web.declarations.callbacks import AnyCallers
from ratelimit_ext.web.identities import user
from tests.clocks import Clock
from tests.web.conftest import Maker

BUDGET: dict[str, Any] = {"name": "usd-day", "cost": lambda: "0.40"}


class Shop:
    """An application whose view costs 0.40 USD of a budget of 1 USD, and two more limits."""

    def __init__(self, make: Maker, uri: str, **config: Any) -> None:
        self.app, self.limiter = make(storage_uri=uri, config=config)
        view: Any = self._view
        view = self.limiter.limit("1 usd/day", **BUDGET)(view)
        view = self.limiter.limit("3/hour", name="calls")(view)
        view = self.limiter.limit("2 in flight", name="slots")(view)
        self.app.add_url_rule("/", "view", view)
        self.client = self.app.test_client()

    def _view(self) -> str:
        self.limiter.settle(usd="0.40")
        return "ok"

    def get(self) -> int:
        return self.client.get("/", headers={"X-Key": "ada"}).status_code

    def left(self, name: str, identity: str = "ada") -> str:
        states = self.limiter.operators.states(identity)
        return str(next(s.as_json()["remaining"] for s in states if s.row.name == name))


@pytest.fixture
def shop(make: Maker, uri: str) -> Iterator[Shop]:
    shop = Shop(make, uri)
    with shop.app.app_context():
        yield shop


def test_a_task_and_requests_spend_one_budget(shop: Shop) -> None:
    """0.40 by a request, an estimate of 0.50 by a task that costs 0.15: 0.45 is left, and another
    user's budget is whole."""
    assert shop.get() == 200
    with shop.limiter.charge("usd-day", "ada", usd="0.50") as call:
        assert shop.left("usd-day") == "0.1"
        call.settle(usd="0.15")
    assert shop.left("usd-day") == "0.45"
    assert shop.left("usd-day", "ben") == "1"


def test_a_refusal_charges_nothing_and_states_the_wait(shop: Shop, clock: Clock) -> None:
    """What is more than is left is refused before the block runs, with the wait of a request."""
    del clock
    with shop.limiter.charge("usd-day", "ada", usd="0.70") as call:
        call.settle(usd="0.70")
    with (
        pytest.raises(RateLimitExceeded) as refused,
        shop.limiter.charge("usd-day", "ada", usd="0.31"),
    ):
        pytest.fail("the block must not run")
    assert refused.value.wait_ms is not None
    assert 0 < refused.value.wait_ms <= 86_400_000
    assert refused.value.is_budget
    assert "Rate limit 'usd-day' exceeded: 1 usd per 1 day." in refused.value.message
    assert shop.left("usd-day") == "0.3"


def test_several_limits_are_charged_together_or_not_at_all(shop: Shop) -> None:
    """A budget, a count and a slot: the fourth call is denied by the count, and takes no money."""
    names = ["usd-day", "calls", "slots"]
    for _ in range(3):
        with shop.limiter.charge(names, "ada", usd="0.10"):
            assert shop.left("slots") == "1"
    with pytest.raises(RateLimitExceeded), shop.limiter.charge(names, "ada", usd="0.10"):
        pass
    assert (shop.left("usd-day"), shop.left("calls"), shop.left("slots")) == ("0.7", "0", "2")


def test_after_an_exception_the_estimate_stays_unless_it_is_cancelled(shop: Shop) -> None:
    """The call may have been made; the block says if it was not."""

    def fail(act: Callable[[Any], object]) -> None:
        with shop.limiter.charge(["usd-day", "slots"], "ada", usd="0.25") as call:
            act(call)
            raise OSError("provider")

    with pytest.raises(OSError, match="provider"):
        fail(lambda call: call)
    assert (shop.left("usd-day"), shop.left("slots")) == ("0.75", "2")
    with pytest.raises(OSError, match="provider"):
        fail(lambda call: call.cancel())
    assert shop.left("usd-day") == "0.75"


def test_an_operators_amount_applies(shop: Shop) -> None:
    """An override counts for tasks, too."""
    shop.limiter.operators.override("usd-day", "ada", "3 usd/day")
    with shop.limiter.charge("usd-day", "ada", usd="2.50") as call:
        call.settle(usd="2.50")
    assert shop.left("usd-day") == "0.5"


def test_never_more_than_the_amount_by_threads(shop: Shop) -> None:
    """Of 30 threads that spend 0.10 each, 10 are admitted."""
    admitted: list[int] = []
    app, limiter = shop.app, shop.limiter

    def work(_: int) -> None:
        with app.app_context():
            try:
                with limiter.charge("usd-day", "ada", usd="0.10") as call:
                    call.settle(usd="0.10")
                    admitted.append(1)
            except RateLimitExceeded:
                pass

    with ThreadPoolExecutor(30) as pool:
        list(pool.map(work, range(30)))
    assert len(admitted) == 10
    assert shop.left("usd-day") == "0"


def test_a_class_of_traffic_keeps_its_part(make: Maker) -> None:
    """A task of no class leaves what interactive calls are kept."""
    app, limiter = make()
    options: Any = {"keep": {"interactive": 4}, "priority": lambda: "interactive"}
    limiter.limit("10/hour", name="pace", **options)(lambda: "ok")
    app.add_url_rule("/", "view", limiter.limit("10/hour", name="pace", **options)(lambda: "ok"))
    with app.app_context():
        for _ in range(6):
            with limiter.charge("pace", "ada"):
                pass
        with pytest.raises(RateLimitExceeded), limiter.charge("pace", "ada"):
            pass
        with limiter.charge("pace", "ada", priority="interactive"):
            pass


def test_a_member_of_a_group(make: Maker, uri: str) -> None:
    """A task of a member spends their share of the group's budget, as their requests do, and is
    settled in both. One that names no member is the group's alone."""
    app, limiter = make(storage_uri=uri)
    words: dict[str, Any] = {"name": "team", "key_func": lambda: "acme", "cost": lambda: 10}
    view = limiter.limit("1000/day", unit="tokens", fair=lambda: "ada", **words)(lambda: "ok")
    app.add_url_rule("/", "view", view)

    def used(member: str) -> list[int]:
        states = limiter.operators.states("acme"), limiter.operators.shares("acme", member)
        return [state.used for found in states for state in found]

    with app.app_context():
        with limiter.charge("team", "acme", tokens=40, member="ada") as call:
            call.settle(tokens=30)
        with limiter.charge("team", "acme", tokens=5):
            pass
        assert (used("ada"), used("bob")) == ([35, 30], [35, 0])
        assert app.test_client().get("/").status_code == 200
        assert used("ada") == [45, 40]
        with (
            pytest.raises(RateLimitExceeded, match="Your share of 'team' is used: 40 of 50"),
            limiter.charge("team", "acme", tokens=11, member="ada"),
        ):
            pytest.fail("the block must not run")
        with limiter.charge("team", "acme", tokens=11, member="bob"):
            pass
        for member in (None, 0):  # a user's number is a member, as a function may return it
            with limiter.charge("team", "acme", tokens=1, member=member):  # type: ignore[arg-type]
                pass
        assert (used("0")[1], used("None")[1]) == (1, 0)


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_requests_and_tasks_of_members(make: Maker, uri: str, mode: str) -> None:
    """In any order, as the members' own counts say: what a task has really used is theirs, and one
    that is refused has used nothing."""
    app, limiter = make(storage_uri=uri)
    words: dict[str, Any] = {"name": "team", "key_func": lambda: "acme", "cost": lambda: 3}
    words |= {"fair": lambda: request.headers["X-Key"], "mode": mode}
    view = limiter.limit("200/day", unit="tokens", **words)(lambda: "ok")
    app.add_url_rule("/", "view", view)
    chance, used, refused = random.Random(14), Counter[str](), 0
    with app.app_context():
        for _ in range(80):
            member, cost = chance.choice(("ada", "ada", "bob", "eve")), chance.randrange(1, 9)
            before = used[member]
            if chance.random() < 0.5:
                answer = app.test_client().get("/", headers={"X-Key": member})
                used[member] += 3 * (answer.status_code == 200)
            else:
                with (
                    contextlib.suppress(RateLimitExceeded),
                    limiter.charge("team", "acme", tokens=cost, member=member) as task,
                ):
                    task.settle(tokens=cost // 2)
                    used[member] += cost // 2
            refused += used[member] == before and cost > 1
            if mode == "enforce":
                shares = limiter.operators.shares("acme", member)
                assert [state.used for state in shares] == [used[member]]
                [state] = limiter.operators.states("acme")
                assert state.used == used.total()
    assert (refused > 0) is (mode == "enforce")


def test_a_member_of_a_lower_class(make: Maker) -> None:
    """Their share is the same bucket, whatever the class may use of the group's budget."""
    app, limiter = make()
    words: dict[str, Any] = {"fair": lambda: "ada", "priority": lambda: "", "unit": "tokens"}
    words |= {"name": "team", "key_func": lambda: "acme", "cost": lambda: 10}
    view = limiter.limit("1000/day", keep={"people": 400}, **words)(lambda: "ok")
    app.add_url_rule("/", "view", view)
    with app.app_context():
        for priority in ("people", "batch"):
            with limiter.charge("team", "acme", tokens=20, member="ada", priority=priority):
                pass
        (state,) = limiter.operators.shares("acme", "ada")
    assert state.used == 40


def test_a_charge_without_with(shop: Shop) -> None:
    """It charges nothing, and warns where it is written."""
    with pytest.warns(RuntimeWarning, match="has charged nothing; write: with") as caught:
        shop.limiter.charge("calls", "ada")
    assert [warning.filename for warning in caught] == [__file__]
    assert shop.left("calls") == "3"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with shop.limiter.charge("calls", "ada"):
            pass
    assert shop.left("calls") == "2"


@pytest.mark.parametrize("own", [None, "5 usd/day"])
def test_a_limit_is_bound_once(make: Maker, own: str | None) -> None:
    """However many charges there are, with overrides and amounts of callers: what requests have
    bound stays."""

    class Known(AnyCallers):
        def amounts(self, identity: str) -> Mapping[str, str]:
            return {"usd-day": own} if own else {}

    app, limiter = make()
    limiter.operators.callers = Known(limiter.operators.identities)
    app.add_url_rule("/", "view", limiter.limit("1 usd/day", **BUDGET)(lambda: "ok"))
    with app.app_context():
        limiter.operators.override("usd-day", "ada", "900 usd/day")
        resolver = limiter._components.resolver

        def charge(identity: str) -> None:
            with limiter.charge("usd-day", identity, usd="0.01"):
                pass

        charge("ada")
        charge("bob")
        resolver._with_override.cache_clear()
        for _ in range(10):
            charge("ada")
            charge("bob")
        found = resolver._with_override.cache_info()
    assert (found.misses, found.hits, len(resolver._outside)) == (1, 9, 1)


@pytest.mark.parametrize(
    ("name", "costs", "sentence"),
    [
        ("usd-dya", {"usd": 1}, "charge: unknown limit 'usd-dya'"),
        ("usd-day", {}, "counts usd; give an estimate, such as usd=0.01"),
        ("calls", {"usd": 1}, "charge: found usd, but 'calls' count requests"),
        (
            "calls",
            {"member": "ada"},
            "charge: found the member 'ada', but 'calls' are shared by no",
        ),
    ],
)
def test_mistakes_are_sentences(
    shop: Shop, name: str, costs: dict[str, Any], sentence: str
) -> None:
    """An unknown name, a missing estimate, a unit that the limit does not count."""
    with pytest.raises(ConfigurationError) as error, shop.limiter.charge(name, "ada", **costs):
        pass
    assert sentence in str(error.value)
    with pytest.raises(ValueError, match="-1 is not an amount of dollars"):
        shop.limiter.charge("usd-day", "ada", usd=-1)


def test_a_limit_without_a_name_is_named_first(make: Maker) -> None:
    """The error says what to do if no limit has a name yet."""
    app, limiter = make()
    with app.app_context(), pytest.raises(ConfigurationError, match="Give a limit this name"):
        limiter.charge("reports", "ada").__enter__()


@pytest.mark.parametrize("identity", [None, "", ["ada", "gpt-5"]])
def test_an_identity_that_no_request_has(shop: Shop, identity: Any) -> None:
    """It would be charged to a bucket that no request uses."""
    with pytest.raises(ConfigurationError, match="allowed: a text that is not empty"):
        shop.limiter.charge("calls", identity)


def test_each_name_is_charged_once(shop: Shop) -> None:
    """And there has to be one."""
    with shop.limiter.charge(["calls", "calls"], "ada"):
        assert shop.left("calls") == "2"
    with pytest.raises(ConfigurationError, match="no name"), shop.limiter.charge([], "ada"):
        pass


@pytest.mark.parametrize("key", [user, ["user", "model"]])
def test_a_users_own_amount_applies(make: Maker, key: Any) -> None:
    """To tasks as to requests, also if the limit counts other identities with the user."""

    class Known(AnyCallers):
        def amounts(self, identity: str) -> Mapping[str, str]:
            return {"each": "2/hour"} if identity == "user-ada" else {}

    app, limiter = make()
    function = limiter.limit("9/hour", name="each", key_func=key)
    app.add_url_rule("/", "view", function(lambda: "ok"))
    identity = "user-ada" if key is user else "user-ada,gpt-5"
    with app.app_context():
        limiter.operators.callers = Known(limiter.operators.identities)
        for _ in range(2):
            with limiter.charge("each", identity):
                pass
        with pytest.raises(RateLimitExceeded), limiter.charge("each", identity):
            pass


def test_disabled_limits_charge_nothing(make: Maker) -> None:
    """The block runs, and may settle."""
    app, limiter = make(config={"RATELIMIT_ENABLED": False})
    assert isinstance(limiter, Limiter)
    with app.app_context(), limiter.charge("usd-day", "ada", usd=1) as call:
        call.settle(usd="0.5")


def test_a_limit_that_does_not_apply_charges_nothing() -> None:
    """A limit of another plan, and an optional one without an amount: as in a request. With an
    override, the optional one applies."""

    class Free(AnyCallers):
        def plan(self, identity: str) -> str:
            return "free"

    extra = {"name": "extra", "limit": "9/day", "key": "user", "optional": True}
    light = {"name": "light", "limit": "1/day", "key": "user"}
    research = {"name": "research", "limit": "1/day", "key": "user"}
    policy = {
        "groups": {"calls": {"members": ["view"], "plans": True, "limits": [extra]}},
        "plans": {"free": {"limits": [light]}, "pro": {"limits": [research]}},
    }
    app, limiter = Flask("example"), Limiter(lambda: "someone", storage_uri="memory://")
    app.config["RATELIMIT_POLICY"] = policy
    limiter.amount_loader(dict)
    limiter.plan_loader(lambda: "free")
    app.add_url_rule("/", "view", lambda: "")
    limiter.init_app(app)
    with app.app_context():
        limiter.operators.callers = Free(limiter.identities)
        for _ in range(3):
            with limiter.charge(["research", "extra"], "user-ada"):
                pass
        limiter.operators.override("extra", "user-ada", "2/day")
        for _ in range(2):
            with limiter.charge("extra", "user-ada"):
                pass
        with pytest.raises(RateLimitExceeded), limiter.charge("extra", "user-ada"):
            pass
