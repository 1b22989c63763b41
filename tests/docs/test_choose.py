"""docs/extension/choose.md: the lines of each situation do what the page says."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.docs.test_documents import ROOT, blocks
from tests.web import conftest as web

clock = web.clock

ADA, BOB = {"X-Customer": "ada"}, {"X-Customer": "bob"}
HOUR_S = 3600


def examples(page: str, last: str = "") -> dict[str, Any]:
    """What the blocks of a page define, up to the one that defines ``last``."""
    names: dict[str, Any] = {"__name__": page}
    for block in blocks(ROOT / "docs" / "extension" / f"{page}.md", "python"):
        exec(block.text, names)  # noqa: S102 - our own text
        if last in names:
            break
    return names


@pytest.fixture
def time(clock: web.Clock) -> web.Clock:
    """It stands still at the beginning of a month: 1 January 2029, 0:00 UTC."""
    clock.now_s = 1_861_920_000.0
    return clock


@pytest.fixture
def page(time: web.Clock) -> dict[str, Any]:
    return examples("choose")


@pytest.fixture
def client(page: dict[str, Any]) -> FlaskClient:
    client: FlaskClient = page["app"].test_client()
    return client


def passed(client: FlaskClient, path: str, calls: int, **request: Any) -> int:
    """How many of the calls pass."""
    request.setdefault("headers", ADA)
    statuses = [client.open(path, **request).status_code for _ in range(calls)]
    assert set(statuses) <= {200, 429}
    return statuses.count(200)


def test_a_burst_then_a_pace(client: FlaskClient, time: web.Clock) -> None:
    """Ten at once, then one every two seconds."""
    assert passed(client, "/search", 12) == 10
    time.forward(2)
    assert passed(client, "/search", 2) == 1


def test_a_quota_of_any_day(client: FlaskClient, time: web.Clock) -> None:
    """A thousand in 24 hours, for each customer."""
    assert passed(client, "/lookup", 1001) == 1000
    assert passed(client, "/lookup", 1, headers=BOB) == 1
    time.forward(24 * HOUR_S - 1)
    assert passed(client, "/lookup", 1) == 0
    time.forward(1)
    assert passed(client, "/lookup", 1) == 1


def test_a_quota_of_the_calendar(client: FlaskClient, time: web.Clock) -> None:
    """It begins afresh on the first of February in Berlin."""
    assert passed(client, "/invoice", 1001) == 1000
    time.forward((31 * 24 - 1) * HOUR_S - 1)
    assert passed(client, "/invoice", 1) == 0
    time.forward(1)
    assert passed(client, "/invoice", 1) == 1


def test_only_failures_count(client: FlaskClient) -> None:
    """Good log-ins are free, and the sixth guess is denied."""
    good, bad = ({"data": {"password": word}, "method": "POST"} for word in ("right", "wrong"))
    assert passed(client, "/login", 8, **good) == 8
    statuses = [client.open("/login", **bad).status_code for _ in range(6)]
    assert statuses == [401] * 5 + [429]


def test_two_at_the_same_time(page: dict[str, Any], client: FlaskClient) -> None:
    """A slot is free again when the request ends."""
    report = {"path": "/report", "method": "POST", "headers": ADA}
    with page["app"].test_request_context(**report):
        page["app"].full_dispatch_request()
        with page["app"].test_request_context(**report):
            page["app"].full_dispatch_request()
            assert passed(client, "/report", 1, method="POST") == 0
        assert passed(client, "/report", 1, method="POST") == 1


def test_a_batch_counts_as_its_texts(client: FlaskClient) -> None:
    """Two batches of 50 fit in 100."""
    batch = {"method": "POST", "json": {"texts": ["text"] * 50}}
    assert passed(client, "/translate", 3, **batch) == 2


@pytest.mark.parametrize(("path", "left"), [("/ask", 90_000 - 150), ("/draw", Decimal("4.97"))])
def test_the_real_cost_is_settled(
    page: dict[str, Any], client: FlaskClient, path: str, left: Decimal | int
) -> None:
    """The rest of the estimate comes back."""
    assert passed(client, path, 1, method="POST") == 1
    with page["app"].test_request_context(headers=ADA):
        [limit] = page["limiter"].current.peek(path.strip("/"), method="POST")
    assert limit.remaining == left


def test_all_callers_together(client: FlaskClient) -> None:
    """The geocoder gets 50 a second."""
    assert passed(client, "/map", 30) + passed(client, "/map", 30, headers=BOB) == 50


def test_a_part_is_kept_for_people(client: FlaskClient) -> None:
    """The job gets 60 of 100, and a person the rest."""
    assert passed(client, "/complete", 70, headers={"X-Customer": "nightly"}) == 60
    assert passed(client, "/complete", 50) == 40


def test_views_share(client: FlaskClient) -> None:
    """Both exports draw from one bucket."""
    assert passed(client, "/export.csv", 6) + passed(client, "/export.json", 6) == 10


def test_unknown_pages_count(page: dict[str, Any]) -> None:
    """The 21st is a 429 instead of a 404."""
    client = page["guarded"].test_client()
    statuses = [client.get(f"/{number}.php").status_code for number in range(21)]
    assert statuses == [404] * 20 + [429]


def test_shadow_denies_nothing(page: dict[str, Any], client: FlaskClient) -> None:
    """It counts what it would have denied."""
    assert passed(client, "/feed", 25) == 25
    with page["app"].app_context():
        states = page["limiter"].operators.states("ada")
    assert [state.share for state in states if state.row.name == "feed"] == [1]


def test_all_limits_or_none(client: FlaskClient, time: web.Clock) -> None:
    """A call that the quota denies leaves the pace as it was."""
    assert passed(client, "/both", 10) == 10
    time.forward(20)
    assert passed(client, "/both", 20) == 2
    denied = client.get("/both", headers=ADA)
    assert denied.json is not None
    assert denied.json["policy"] == "quota"
