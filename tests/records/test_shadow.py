"""What limits in shadow and candidates would have denied, and the report of a command."""

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result
from flask import Blueprint, Flask, request

from ratelimit_ext import ConfigurationError, Limiter
from ratelimit_ext.records import shadow as module
from ratelimit_ext.records.counters import REQUESTS
from ratelimit_ext.records.shadow import Counts, Shadow
from tests import servers
from tests.records.site import Down, Site, remembering
from tests.web.calls import serve
from tests.web.conftest import Maker


def limited(make: Maker, uri: str) -> Site:
    """An application with a limit in shadow, and candidates of a window and of a token bucket."""
    site = app, limiter = remembering(make, uri)
    windows = {"candidate": "2/hour", "strategy": "sliding-window"}
    serve(app, limiter.limit("5/hour", name="calls", **windows))
    serve(app, limiter.limit("3/hour", name="shadow", mode="shadow"), path="/shadow")
    bucket = {"candidate": "1/hour", "strategy": "token-bucket"}
    serve(app, limiter.limit("9/hour", name="pace", **bucket), path="/paced")
    return site


def report(site: Site, *words: str, status: int = 0) -> Result:
    return site.run("shadow", "report", *words, status=status)


def counted(site: Site) -> dict[str, Counts]:
    """By the name of the limit."""
    found = site.recorder.shadows.read(1)
    return {shadow.limit: counts for shadow, counts in found.items()}


def test_a_candidate_denies_nothing_and_counts(make: Maker, uri: str) -> None:
    """Beside the limit: with a count of its own, of admitted requests. Headers do not show it."""
    site = app, _ = limited(make, uri)
    assert site.hit(7) == [200] * 5 + [429] * 2
    assert site.hit(1, key="bob") == [200]
    found = counted(site)["calls"]
    assert (found.requests, found.denied) == (6, 3)
    assert (found.by_identity, found.used) == ({"ann": 3}, {"ann": 5, "bob": 1})
    policy = app.test_client().get("/", headers={"X-Key": "zoe"}).headers["RateLimit-Policy"]
    assert policy == '"calls";q=5;w=3600'


def test_reading_stores_nothing(make: Maker) -> None:
    """An hour without a count stays out of the memory of the process, also if it is read."""
    app, limiter = limited(make, "memory://")
    stored = limiter.storage.storage  # type: ignore[attr-defined]
    with app.app_context():
        assert limiter.operators.shadow_report() == []
        assert limiter.operators.denials(since=60).records == []
        assert limiter.operators.log() == []
        assert limiter.operators.overrides() == []
    assert [name for name in stored if ":records:" in name] == []


def test_a_limit_in_shadow_counts(make: Maker, uri: str) -> None:
    """What it would have denied is more than it holds."""
    site = limited(make, uri)
    assert site.hit(5, "/shadow") == [200] * 5
    found = counted(site)["shadow"]
    assert (found.requests, found.denied, found.used) == (5, 2, {"ann": 4})


def test_a_trial_counts_what_it_would_count_if_it_were_enforced(make: Maker, uri: str) -> None:
    """Of ten calls of which another limit admits five, neither a shadow of six nor a candidate of
    six would deny any."""
    site = app, limiter = remembering(make, uri)
    serve(
        app,
        limiter.limit("5/minute", name="pace"),
        limiter.limit("6/day", name="shadow", mode="shadow"),
        limiter.limit("9/day", name="calls", candidate="6/day"),
    )
    assert site.hit(10) == [200] * 5 + [429] * 5
    for name in ("shadow", "calls"):
        found = counted(site)[name]
        assert (found.requests, found.denied, found.used) == (5, 0, {"ann": 5})


@pytest.mark.parametrize("reserve", [False, True])
@pytest.mark.parametrize("tried", [{"mode": "shadow"}, {"candidate": "3/hour"}])
def test_a_trial_counts_the_last_call_that_is_deducted(
    make: Maker, uri: str, tried: dict[str, Any], *, reserve: bool
) -> None:
    """Also what is charged only after the view: the report's amount is enough for every call."""
    site = app, limiter = remembering(make, uri)
    serve(
        app,
        limiter.limit(
            "9/hour", name="a", deduct_when=lambda _: "ok" in request.args, reserve=reserve, **tried
        ),
    )
    for path in ("/?ok", "/", "/?ok", "/?ok"):
        site.hit(1, path)
    assert counted(site)["a"].used == {"ann": 3}


def test_a_block_in_shadow_is_not_on_trial(make: Maker, uri: str) -> None:
    """It has no amount that could be judged."""
    site = app, limiter = remembering(make, uri)
    serve(app, limiter.limit("unless blocked", name="switch", mode="shadow"))
    assert site.hit(3) == [200] * 3
    assert counted(site) == {}


def test_a_candidate_costs_no_round_trip(make: Maker, redis_uri: str) -> None:
    """It is decided by the call of the script that decides the limit, in a bucket that has the
    limit's name; counts are written together."""
    site = limited(make, redis_uri)
    site.hit(1)
    with redis.Redis.from_url(redis_uri) as client:
        names = [name.decode() for name in client.keys("LIMITS:2:*")]
        assert sorted(name.partition("hour")[0].split(":")[3] for name in names) == [
            "3600",
            "3600-candidate",
        ]
        assert all(name.endswith(":calls:{ann}") for name in names)
        client.config_resetstat()
        site.hit(4)
        stats = client.info("commandstats")
        assert stats.get("cmdstat_fcall", stats.get("cmdstat_evalsha"))["calls"] == 4
        assert "cmdstat_eval" not in stats
        site.recorder.flush()
        assert client.info("commandstats")["cmdstat_eval"]["calls"] == 2  # one for all counts
        assert all(0 < client.ttl(name) <= 48 * 3600 for name in client.keys("*:trials:*"))


def test_callers_with_their_own_amount_try_no_candidate(make: Maker, uri: str) -> None:
    """An operator has decided what they have: by an override, or by the application."""
    site = app, limiter = limited(make, uri)
    with app.app_context():
        limiter.operators.override("calls", "ann", "9/hour")
    site.hit(4)
    site.hit(1, key="bob")
    assert counted(site)["calls"].used == {"bob": 1}
    limiter.amount_loader(lambda: {"calls": "8/hour"})
    site.hit(3, key="zoe")
    assert counted(site)["calls"].used == {"bob": 1}


def test_the_report_says_who_would_be_hit_and_which_amount_is_enough(
    make: Maker, redis_uri: str
) -> None:
    """From usage for windows; a token bucket's amount needs `suggest`."""
    worker, console = limited(make, redis_uri), limited(make, redis_uri)
    assert report(console).stderr.startswith("No request of the last day")
    worker.hit(4)
    worker.hit(1, key="bob")
    worker.hit(3, "/paced")
    worker.recorder.flush()
    found = {(r["limit"], r["period"]): r for r in json.loads(report(console, "--json").stdout)}
    day = found["calls", "day"]
    assert (day["requests"], day["denied"], day["identities"]) == (5, 2, 2)
    assert (day["amount"], day["enforced"]) == ("2/hour", "5 per 1 hour")
    assert day["worst"] == [{"identity": "ann", "denied": 2}]
    assert (day["enough_for_99_percent"], day["source"]) == (4, "usage")
    assert found["pace", "hour"]["source"] == "suggest"
    shown = report(console, "--limit", "calls").stdout
    assert "at 4, 99 % of 2 callers would have had no refusal" in shown
    assert "`flask ratelimit suggest`" in report(console, "--limit", "pace").stdout
    error = "Error: No limit 'cals' is in shadow or has a candidate; found: calls, pace, shadow."
    assert report(console, "--limit", "cals", status=1).stderr.strip() == error


def test_identities_are_bounded_and_the_report_says_so(
    make: Maker, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest count gives way; no count becomes too small, and totals stay exact."""
    monkeypatch.setattr(module, "MOST_IDENTITIES", 3)
    site = limited(make, uri)
    for key in ("a", "a", "b", "c", "d", "e"):
        site.hit(2 if key != "a" else 5, key=key)
        site.hit(1, key=key)
        site.recorder.flush()
    found = counted(site)["calls"]
    assert found.is_partial
    assert found.denied == 3 + 4
    assert len(found.used) == 3
    assert found.enough() is None
    assert found.by_identity["a"] >= 3


def test_the_storage_keeps_the_largest_counts(make: Maker, redis_uri: str) -> None:
    """Merged over workers. A new identity takes the place and count of the smallest."""
    shadows = limited(make, redis_uri).recorder.shadows
    shadow = Shadow("calls", "2/hour", "5/hour", "requests", 2, is_window=True)
    for number in range(module.MOST_IDENTITIES):
        counts = Counts(1, 1)
        counts.by_identity["heavy" if number == 0 else f"light-{number}"] = 50 if number == 0 else 1
        counts.used["heavy"] = number
        if number % 100 == 0 or number > 990:
            shadows.add(7, shadow, counts)
    many = Counts(2000, 2000)
    many.by_identity.update({f"new-{number}": 2 for number in range(1100)})
    shadows.add(7, shadow, many)
    found = shadows.of_hour(7)[shadow]
    assert len(found.by_identity) == module.MOST_IDENTITIES
    assert found.by_identity["heavy"] == 50
    assert found.is_rough
    assert found.used == {"heavy": 999}


def test_an_outage_keeps_the_counts(make: Maker, redis_uri: str) -> None:
    """They are added when the storage is back."""
    site = limited(make, redis_uri)
    shadows = site.recorder.shadows
    store = shadows.store
    for _ in range(2):
        site.hit(2)
        shadows.store = Down()  # type: ignore[assignment]
        site.recorder.flush()
    shadows.store = store
    assert counted(site)["calls"].requests == 4


def test_records_of_a_cluster_are_in_one_slot(make: Maker, cluster_server: servers.Cluster) -> None:
    """Of shadow limits, decisions and denials: written by one call, read like on one server."""
    with cluster_server.client() as client:
        client.flushall()
    site = limited(make, cluster_server.uri)
    site.hit(6)
    site.recorder.flush(all_of_them=True)
    assert (counted(site)["calls"].denied, counted(site)["calls"].used) == (3, {"ann": 5})
    [counts] = site.recorder.counters.read(1).values()
    assert counts[REQUESTS] == {"allowed": 5, "denied": 1}
    assert "denied by 'calls'" in site.run("why", "ann").stdout


def test_a_candidate_may_be_in_a_file_and_in_the_configuration(tmp_path: Path) -> None:
    """Like every keyword; a mistake has its line."""
    file = tmp_path / "policy.toml"
    file.write_text('version = 1\n[[default]]\nlimit = "5/hour"\ncandidate = "2/hour"\n')
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    app.config["RATELIMIT_BLUEPRINTS"] = {"shop": [{"limit": "4/hour", "candidate": "1/hour"}]}
    shop = Blueprint("shop", "shop", url_prefix="/shop")
    shop.add_url_rule("/", "all", lambda: "ok")
    app.register_blueprint(shop)
    app.add_url_rule("/", "index", lambda: "ok")
    limiter = Limiter(lambda: "ann", app=app, storage_uri="memory://")
    limiter.remember_denials()
    site = Site(app, limiter)
    assert site.hit(3) == site.hit(3, "/shop/") == [200] * 3
    found = counted(site)
    assert {name: counts.denied for name, counts in found.items()} == {
        "5-per-3600s": 1,
        "4-per-3600s": 2,
    }
    file.write_text('version = 1\n[[default]]\nlimit = "5/hour"\ncandidate = "2/day"\n')
    wrong = pytest.raises(ConfigurationError, match=r"policy\.toml:4: default\[0\]\.candidate: ")
    with app.app_context(), wrong:
        limiter.operators.check_policy_file(file)
