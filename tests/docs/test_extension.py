"""docs/extension: what the pages say of their examples is so, also as time passes."""

import pytest
from flask.testing import FlaskClient

from tests.docs import test_choose
from tests.docs.test_choose import HOUR_S, examples, passed
from tests.web import conftest as web

clock, time = web.clock, test_choose.time


@pytest.fixture
def client(time: web.Clock) -> FlaskClient:
    """For the limits of strategies.md."""
    client: FlaskClient = examples("strategies")["app"].test_client()
    return client


def test_token_bucket(client: FlaskClient, time: web.Clock) -> None:
    """One token takes two seconds."""
    assert passed(client, "/search", 11) == 10
    time.forward(10)
    assert passed(client, "/search", 11) == 5


def test_sliding_window(client: FlaskClient, time: web.Clock) -> None:
    """At most the amount, wherever counting begins."""
    assert passed(client, "/sliding", 10) == 10
    time.forward(59.9)
    assert passed(client, "/sliding", 10) == 0
    time.forward(0.1)
    assert passed(client, "/sliding", 20) == 10


def test_sliding_window_counter(client: FlaskClient, time: web.Clock) -> None:
    """14 within 31 seconds."""
    assert passed(client, "/counter", 1) == 1
    time.forward(59)
    assert passed(client, "/counter", 10) == 9
    time.forward(31)
    assert passed(client, "/counter", 10) == 5


def test_calendar_day(client: FlaskClient, time: web.Clock) -> None:
    """The window ends at midnight in Berlin, where it is one o'clock."""
    assert passed(client, "/daily", 3) == 2
    time.forward(23 * HOUR_S - 1)
    assert passed(client, "/daily", 3) == 0
    time.forward(1)
    assert passed(client, "/daily", 3) == 2


def test_session(client: FlaskClient, time: web.Clock) -> None:
    """Each run has its own, which a refused call does not prolong."""
    assert passed(client, "/step?run=7", 3) == 2
    assert passed(client, "/step?run=8", 1) == 1
    time.forward(1799)
    assert passed(client, "/step?run=7", 1) == 0
    time.forward(1)
    assert passed(client, "/step?run=7", 1) == 1


def test_guesses_at_a_password(time: web.Clock) -> None:
    """Three wrong ones are the most, and a right one forgets those before it."""
    client = examples("decorators", "login")["client"]
    tried = ["wrong", "wrong", "right", "wrong", "wrong", "wrong", "wrong", "right"]
    statuses = [client.get(f"/login/{word}").status_code for word in tried]
    assert statuses == [401, 401, 200, 401, 401, 401, 429, 429]


def test_a_quota_refills_between_reports(time: web.Clock) -> None:
    """Three calls are left after the first, and one more a second later."""
    client = examples("guards")["app"].test_client()
    assert passed(client, "/quota", 4) == 4
    assert client.get("/quota").headers["retry-after-ms"] == "1000"
    time.forward(1)
    assert client.get("/quota").status_code == 200


def test_a_surge(time: web.Clock) -> None:
    """Four times the usual amount passes, and everything once it is forgotten."""
    names = examples("guards")
    client = names["app"].test_client()
    for _ in range(3):
        assert passed(client, "/work", 3, headers={}) == 3
        time.forward(HOUR_S)
    assert passed(client, "/work", 100, headers={}) == 12
    assert client.get("/work").get_json()["code"] == "abnormal_usage"
    with names["app"].app_context():
        names["limiter"].operators.unblock("surge", "ada")
    assert passed(client, "/work", 100, headers={}) == 100


def test_a_stream_settles_what_it_has_sent(time: web.Clock) -> None:
    """Afterwards the slot is free, and the stream has cost three tokens."""
    names = examples("settlement")
    app, client = names["app"], names["app"].test_client()
    with client.post("/stream") as response:
        assert response.text == "one two three"
    with app.test_request_context("/", method="POST"):
        slots, allowance = names["limiter"].current.peek("stream", method="POST")
    assert (slots.remaining, allowance.remaining) == (4, 999_997)
    assert client.post("/job").status_code == 202
