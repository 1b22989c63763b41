"""`fair`: a budget that the members of a group share."""

from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request

from ratelimit_ext import ConfigurationError, Guess, Limiter
from ratelimit_ext.metrics import prometheus
from ratelimit_ext.operators import explained
from tests import servers
from tests.web.calls import statuses
from tests.web.conftest import Maker


def team() -> str:
    return "acme"


def user() -> str:
    return request.headers.get("X-User", "")


def limited(app: Flask, limiter: Limiter, **more: Any) -> None:
    """A view for 100 calls a day of a team."""
    words: dict[str, Any] = {"name": "team", "key_func": team, "fair": user, **more}
    app.add_url_rule("/", "view", limiter.limit("100/day", **words)(lambda: "ok"))


def admitted(app: Flask, name: str, calls: int = 8) -> int:
    return statuses(app, "/", calls, headers={"X-User": name}).count(200)


def test_each_member_has_a_share(make: Maker, uri: str) -> None:
    """Ahead of the line each has a twentieth, in the first window."""
    app, limiter = make(storage_uri=uri)
    limited(app, limiter)
    assert [admitted(app, name) for name in ("loop", "ada", "loop", "bob")] == [5, 5, 0, 5]


def test_the_refusal_says_whose_share(make: Maker) -> None:
    """The wait is when the line has reached what the team has spent, and no end of the budget."""
    app, limiter = make(headers_enabled=True)
    limited(app, limiter, error_message="The team has spent everything.")
    admitted(app, "loop")
    refused = app.test_client().get("/", headers={"X-User": "loop"})
    assert refused.json is not None
    assert refused.json["error"].startswith(
        "Your share of 'team' is used: 5 of 5 requests, because 20 members share 100. Try again in "
    )
    assert refused.json["share"] == {"used": 5, "of": 5, "members": 20}
    assert refused.json["policy"] == "team-share"
    assert 5170 < int(refused.headers["Retry-After"]) <= 5184
    assert refused.headers["RateLimit-Policy"] == '"team";q=100;w=86400, "team-share";q=100;w=86400'
    assert refused.headers["RateLimit"].startswith('"team";r=95;')
    assert '"team-share";r=0;' in refused.headers["RateLimit"]
    assert app.test_client().get("/", headers={"X-User": "ada"}).status_code == 200


def test_a_member_may_be_the_number_zero(make: Maker) -> None:
    """As an identity may: its share is its own, and not of those without a name."""
    app, limiter = make()
    limited(app, limiter, fair=lambda: int(request.headers["X-User"]))
    assert [admitted(app, name) for name in ("0", "1")] == [5, 5]
    with app.app_context():
        shares = [limiter.operators.shares("acme", name) for name in ("", "0")]
    assert [state.used for found in shares for state in found] == [0, 5]


def test_an_override_of_the_team_is_shared(make: Maker) -> None:
    """Shares are those of the amount that applies."""
    app, limiter = make()
    limited(app, limiter)
    with app.app_context():
        limiter.operators.override("team", "acme", "40/day")
    assert [admitted(app, name) for name in ("ada", "bob")] == [2, 2]


def test_in_shadow_all_are_admitted(make: Maker) -> None:
    """What would be denied is counted."""
    app, limiter = make()
    exporter = prometheus.measure(limiter)
    limited(app, limiter, mode="shadow")
    assert admitted(app, "loop") == 8
    figures = exporter.scrape()[0].decode()
    counted = 'ratelimit_decisions_total{limit="team-share",outcome="shadow",'
    assert counted in figures


def test_a_shadow_counts_what_it_would_have_admitted(make: Maker, uri: str) -> None:
    """What a share would deny takes nothing of the group's budget, and makes no member of it."""
    app, limiter = make(storage_uri=uri)
    limited(app, limiter, mode="shadow", cost=lambda: int(request.headers.get("X-Cost", "1")))
    for name in ("loop", "ada", "loop", "bob"):
        assert admitted(app, name) == 8
    assert statuses(app, "/", 3, headers={"X-User": "eve", "X-Cost": "6"}) == [200] * 3
    with app.app_context():
        assert [state.used for state in limiter.operators.states("acme")] == [15]
        states = limiter.operators.shares("acme", "loop", "eve")
    shares = [state.verdict.share for state in states]
    assert [share and (share.used, share.members) for share in shares] == [(5, 20), (0, 20)]


def test_another_attempt_is_decided_by_its_own_group(make: Maker, uri: str) -> None:
    """Its rough estimate takes more of the share and less of the budget than the first one's, and
    another group's request came in between."""
    app, limiter = make(storage_uri=uri)
    guesses = [Guess(500, least=1), Guess(10, least=1), Guess(400, least=300)]
    limiter.estimator("tokens")(lambda: guesses.pop(0))
    waits: list[float | None] = []

    def view() -> str:
        if team_of_header() == "acme":
            assert statuses(app, "/", headers={"X-Team": "other", "X-User": "bob"}) == [200]
            waits.append(limiter.current.admit_again())
        return "ok"

    def team_of_header() -> str:
        return request.headers.get("X-Team", "acme")

    words: dict[str, Any] = {"name": "team", "key_func": team_of_header, "fair": user}
    app.add_url_rule("/", "view", limiter.limit("1000/day", unit="tokens", **words)(view))
    assert statuses(app, "/", headers={"X-User": "ada"}) == [200]
    assert len(waits) == 1
    assert waits[0]


def test_metrics_have_the_index_of_fairness(make: Maker) -> None:
    """Jain's: (sum of x)^2 / (n * sum of x^2) of what the members have used."""
    app, limiter = make()
    exporter = prometheus.measure(limiter)
    limited(app, limiter)
    for name, calls, index in (("ada", 3, 1.0), ("bob", 3, 1.0), ("eve", 1, 49 / 57)):
        assert admitted(app, name, calls) == calls
        figures = exporter.scrape()[0].decode()
        [line] = [each for each in figures.splitlines() if each.startswith("ratelimit_fairness{")]
        assert line.startswith('ratelimit_fairness{identity="acme",limit="team"} ')
        assert float(line.rpartition(" ")[2]) == pytest.approx(index)


def test_operators_see_shares(make: Maker, uri: str) -> None:
    """What each member has used, and who was refused."""
    app, limiter = make(storage_uri=uri)
    limiter.remember_denials()
    limited(app, limiter)
    admitted(app, "loop")
    admitted(app, "ada", 2)
    with app.app_context():
        found = limiter.operators.shares("acme", "loop", "ada", "new")
        [denial] = limiter.operators.denials("loop", since=60).records
    assert [each.as_json()["used"] for each in found] == [5, 2, 0]
    assert [each.verdict.allowed for each in found] == [False, True, True]
    assert found[0].as_json()["members"] == 20
    assert denial.limit == "team-share"
    assert explained(denial).cause == "5 used of the share of each of 20 members, 5"


def test_estimates_are_settled_in_both(make: Maker, uri: str) -> None:
    """What a call has not cost is the member's again, and the team's."""
    app, limiter = make(storage_uri=uri)

    def view() -> str:
        limiter.current.reservation.settle(usd=0.01)
        return "ok"

    words: dict[str, Any] = {"name": "team", "key_func": team, "fair": user, "cost": lambda: "0.05"}
    app.add_url_rule("/", "view", limiter.limit("1 usd/day", **words)(view))
    assert admitted(app, "loop") == 1 + 0  # the first leaves 0.04 of the share, less than 0.05
    with app.app_context():
        [share] = limiter.operators.shares("acme", "loop")
    assert share.as_json()["used"] == share.row.limit.outside(10_000)


def test_an_outage_has_shares(make: Maker, own_server: servers.Server) -> None:
    """Of what this host may spend."""
    app, limiter = make(storage_uri=own_server.uri)
    limited(app, limiter)
    assert admitted(app, "loop") == 5
    own_server.stop()
    assert admitted(app, "ada") == 5


def test_an_identity_by_its_name(make: Maker) -> None:
    """Also of a limit in code."""
    app, limiter = make()
    limiter.identity("someone")(user)
    limited(app, limiter, fair="someone")
    assert admitted(app, "loop") == 5


@pytest.mark.parametrize(
    ("line", "place", "sentence"),
    [
        ('fair = "user"\nkey = "user"', ":5: ", "by which the limit counts already"),
        ('fair = "noone"', ":5: ", "Register it before"),
        ('fair = "user"\npace = 0.9', ":6: ", "a number from 1 to 100"),
        ('fair = "user"\nhours = "late"', ":6: ", "two whole hours"),
        ('spread = "11%"', ":5: ", "whole percents up to 10"),
    ],
)
def test_mistakes_in_a_policy(
    make: Maker, tmp_path: Path, line: str, place: str, sentence: str
) -> None:
    """Each with its file and line."""
    file = tmp_path / "policy.toml"
    file.write_text(f'version = 1\n[[default]]\nname = "team"\nlimit = "100/day"\n{line}\n')
    app, limiter = make()
    with app.app_context(), pytest.raises(ConfigurationError) as mistake:
        limiter.operators.check_policy_file(file)
    assert sentence in str(mistake.value)
    assert f"policy.toml{place}" in str(mistake.value)
