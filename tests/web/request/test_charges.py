"""The plan of a call: what is kept of a caller's charges, and what each request asks again."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from flask import request

from ratelimit_ext.core.charge import Charge, Claim, PreparedCharges
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.arguments import Arguments
from tests.web.conftest import Maker

MINUTE = 60_000_000


def left(client: Any, name: str, **headers: str) -> int:
    """What a limit has left, as the answer says."""
    response = client.get("/", headers=headers)
    assert response.status_code == 200, response.text
    items = dict(item.split(";r=") for item in response.headers["RateLimit"].split(", "))
    return int(items[f'"{name}"'].partition(";")[0])


def test_each_request_has_costs_of_its_own(make: Maker) -> None:
    """A caller who comes again pays what this request costs, and not what the last one did."""
    app, limiter = make()
    limiter.estimator("tokens")(lambda: int(request.headers["X-Tokens"]))
    limited = limiter.limit("1000/hour", unit="tokens", name="tokens")(
        limiter.limit("1000/hour", name="calls", cost=lambda: int(request.headers["X-Cost"]))(
            lambda: "ok"
        )
    )
    app.add_url_rule("/", "view", limited)
    client = app.test_client()
    requests = [("a", 3, 970, 997), ("a", 40, 570, 957), ("b", 5, 950, 995), ("a", 1, 560, 956)]
    for key, cost, tokens, calls in requests:
        headers = {"X-Key": key, "X-Tokens": str(10 * cost), "X-Cost": str(cost)}
        response = client.get("/", headers=headers)
        assert f'"tokens";r={tokens};' in response.headers["RateLimit"]
        assert f'"calls";r={calls};' in response.headers["RateLimit"]


def test_each_function_is_asked_once_a_request(make: Maker) -> None:
    """However many limits use it, also of a caller who is known; the identity and the estimate of
    a limit that does not apply are not asked."""
    app, limiter = make(key_func=lambda: "unused")
    asked = Counter[str]()

    def noting(name: str, answer: Callable[[], Any]) -> Callable[[], Any]:
        def ask() -> Any:
            asked[name] += 1
            return answer()

        return ask

    limiter.estimator("tokens")(noting("estimate", lambda: 7))
    user, other = noting("user", lambda: "ann"), noting("other", lambda: "x")
    exempt = noting("exempt", lambda: "X-Free" in request.headers)
    view: Callable[[], str] = lambda: "ok"  # noqa: E731
    view.__name__ = "view"
    for text, options in [
        ("90/hour", {"key_func": user}),
        ("900/hour", {"key_func": user, "unit": "tokens"}),
        ("800/day", {"key_func": other, "unit": "tokens", "exempt_when": exempt}),
        ("70/day", {"key_func": other, "exempt_when": exempt}),
    ]:
        view = limiter.limit(text, **options)(view)
    app.add_url_rule("/", "view", view)
    client, once = app.test_client(), {"estimate": 1, "user": 1, "exempt": 1}
    for headers, expected in [({}, {**once, "other": 1}), ({"X-Free": "1"}, once)] * 2:
        asked.clear()
        assert client.get("/", headers=headers).status_code == 200
        assert asked == expected


def test_an_override_ends_the_plan_of_its_identity_alone(make: Maker) -> None:
    """From the next request on, with the estimate of that request; and it returns afterwards."""
    app, limiter = make()
    limiter.estimator("tokens")(lambda: int(request.headers["X-Tokens"]))
    limit = limiter.limit("1000/hour", unit="tokens", name="tokens")
    app.add_url_rule("/", "view", limit(lambda: "ok"))
    client = app.test_client()
    assert left(client, "tokens", **{"X-Key": "a", "X-Tokens": "10"}) == 990
    assert left(client, "tokens", **{"X-Key": "b", "X-Tokens": "10"}) == 990
    with app.app_context():
        limiter.operators.override("tokens", "a", "2000/hour")
    assert left(client, "tokens", **{"X-Key": "a", "X-Tokens": "20"}) == 1970
    assert left(client, "tokens", **{"X-Key": "b", "X-Tokens": "20"}) == 970
    with app.app_context():
        limiter.operators.clear_override("tokens", "a")
    assert left(client, "tokens", **{"X-Key": "a", "X-Tokens": "30"}) == 940


def test_a_function_that_fails_fails_each_time(make: Maker) -> None:
    """What it raised is not kept, and what it returned before does not stand in for it."""
    app, limiter = make(config={"PROPAGATE_EXCEPTIONS": False})
    limiter.estimator("tokens")(lambda: int(request.headers["X-Tokens"]))
    limit = limiter.limit("1000/hour", unit="tokens", name="tokens")
    app.add_url_rule("/", "view", limit(lambda: "ok"))
    client = app.test_client()
    assert left(client, "tokens", **{"X-Key": "a", "X-Tokens": "10"}) == 990
    for _ in range(2):
        assert client.get("/", headers={"X-Key": "a"}).status_code == 500
    assert left(client, "tokens", **{"X-Key": "a", "X-Tokens": "10"}) == 980


@pytest.mark.parametrize(
    "claims",
    [[None, None], [Claim(1, 2, 3, 4), None], [None, Claim(9, 8, 7, 6)], [Claim(1, 1, 1, 1)] * 2],
)
def test_charges_of_a_plan_have_the_arguments_of_all_others(claims: list[Claim | None]) -> None:
    """For any costs and claims, in any order, within a minute and beyond it."""
    limits = [Limit(5, MINUTE), *[Limit(50, MINUTE, unit="usd")] * 2, Limit(9, MINUTE)]
    kept = PreparedCharges([Charge(limit, f"{n}", 1) for n, limit in enumerate(limits)])
    kept.unpriced = (1, 2)
    arguments = Arguments()
    for now_us, cost in [(0, 3), (1, 4), (2, 99), (MINUTE, 3), (MINUTE + 1, 0)]:
        for order in (claims, [None, None], claims[::-1]):
            charges = list(kept)
            for place, claim in zip(kept.unpriced, order, strict=True):
                charges[place] = charges[place]._replace(cost=cost + place, claim=claim)
            planned = PreparedCharges(charges)
            planned.kept = kept
            expected = Arguments().admission(charges, now_us)
            assert arguments.admission(planned, now_us) == expected
