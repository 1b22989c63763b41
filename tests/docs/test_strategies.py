"""docs/extension/strategies.md: each limit does what the page says, also at the edges."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.docs import test_choose
from tests.docs.test_choose import passed
from tests.docs.test_documents import ROOT, blocks
from tests.web import conftest as web

clock, time = web.clock, test_choose.time

PAGE = ROOT / "docs" / "extension" / "strategies.md"


@pytest.fixture
def client(time: web.Clock) -> FlaskClient:
    names: dict[str, Any] = {"__name__": "strategies"}
    for block in blocks(PAGE, "python"):
        exec(block.text, names)  # noqa: S102 - our own text
    client: FlaskClient = names["app"].test_client()
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
    time.forward(23 * 3600 - 1)
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
