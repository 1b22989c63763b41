"""Limits of a server of the Model Context Protocol: the tool that counts, and the refusal."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, request
from werkzeug.serving import make_server

from ratelimit_ext import mcp_tool
from tests.examples import example
from tests.web.conftest import Maker

NAMED = {"Mcp-Method": "tools/call", "Mcp-Name": "clock"}


def called(tool: str, number: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": tool}}


@pytest.mark.parametrize(
    ("sent", "headers", "expected"),
    [
        ({"json": called("search")}, {}, "search"),
        ({"json": called("search")}, NAMED, "search"),  # what runs, not what the header says
        ({"json": {"method": "tools/list", "id": 1}}, NAMED, "tools/list"),
        ({"json": {"method": "tools/call", "params": [1]}}, {}, "other"),
        ({"json": {"method": 7}}, NAMED, "other"),
        ({"json": [called("search")]}, NAMED, "other"),
        ({"data": b"\xff{"}, NAMED, "clock"),
        ({"data": b""}, {}, "other"),
        ({"data": b"x" * 2000}, NAMED, "clock"),  # larger than the application takes
    ],
)
def test_the_tool_that_runs_is_counted(
    sent: dict[str, Any], headers: dict[str, str], expected: str
) -> None:
    """By the body; by the headers alone if it cannot be read."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 1000
    with app.test_request_context("/", method="POST", headers=headers, **sent):
        assert mcp_tool() == expected


def test_a_view_still_refuses_what_is_not_sent_as_json(make: Maker) -> None:
    """Pages of other sites may send text, and no JSON. What is JSON can be read afterwards."""
    app, limiter = make()
    view: Any = limiter.limit("9/hour", key_func=mcp_tool)(lambda: request.get_json()["method"])
    app.add_url_rule("/", "view", view, methods=["POST"])
    client = app.test_client()
    text = client.post("/", data='{"method": "x"}', content_type="text/plain")
    assert text.status_code == 415
    assert client.post("/", json={"method": "x"}).text == "x"


def test_a_refusal_is_an_error_of_the_protocol(make: Maker) -> None:
    """With the id of each request, also where the denial is repeated from memory, and beside the
    usual body of other clients; a body that cannot be read has no id."""
    app, limiter = make()
    view: Any = limiter.limit("1/hour", name="work")(lambda: "")
    app.add_url_rule("/", "view", view, methods=["POST"])
    client = app.test_client()
    client.post("/")
    for number in (7, "eight", 9):
        refused = client.post("/", json=called("search", number), headers=NAMED)
        assert (refused.status_code, refused.mimetype) == (429, "application/json")
        assert (refused.json or {})["id"] == number
        error = (refused.json or {})["error"]
        assert error["code"] == -32023
        assert error["message"].startswith("Rate limit 'work' exceeded: 1 per 1 hour. Try again in")
        data = error["data"]
        assert data["retryAfter"] - 1 < data["retry_after"] <= data["retryAfter"] <= 3600
        assert refused.headers["Retry-After"] == str(data["retryAfter"])
        assert (data["code"], data["policy"]) == ("rate_limited", "work")
        assert "error" in (client.post("/").json or {})
        assert client.post("/", headers={"Accept": "text/html"}).mimetype == "text/html"
    unread = client.post("/", data=b"{", headers={"MCP-Protocol-Version": "2025-06-18"})
    assert (unread.json or {})["id"] is None


def test_other_refusals_have_codes_of_json_rpc(make: Maker) -> None:
    """An operator's block is 403 and an invalid request, a pause 503 and an internal error."""
    app, limiter = make()
    view: Any = limiter.limit("unless blocked", name="guard")(lambda: "")
    app.add_url_rule("/", "view", view, methods=["POST"])
    answers = []
    with app.app_context():
        for reason, seconds in (("blocked", None), ("overloaded", 60)):
            limiter.operators.unblock("guard", "someone")
            limiter.operators.block("guard", "someone", reason=reason, for_s=seconds)
            refused = app.test_client().post("/", json=called("search"), headers=NAMED)
            answers.append((refused.status_code, (refused.json or {})["error"]["code"]))
    assert answers == [(403, -32600), (503, -32603)]


@pytest.fixture
def address() -> Iterator[str]:
    """The example, served."""
    server = make_server("127.0.0.1", 0, example("mcp_server").create_app(), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/mcp"
    server.shutdown()
    thread.join()


@pytest.mark.skipif(os.environ.get("RATELIMIT_COMPAT") != "1", reason="RATELIMIT_COMPAT=1: mcp")
def test_the_official_client_backs_off_and_succeeds(address: str) -> None:
    """Six searches, two of them in each second: the client sees the code and the wait, sleeps as
    long, and is served. The clock costs less, and has no pace."""
    import asyncio

    mcp = pytest.importorskip("mcp")

    async def calls() -> list[int]:
        refusals: list[int] = []
        async with mcp.Client(address) as client:
            while len(refusals) < 2:
                try:
                    found = await client.call_tool("search", {"query": "x"})
                    assert found.content[0].text == "3 documents"
                except mcp.MCPError as refusal:
                    refusals.append(refusal.error.code)
                    await asyncio.sleep(refusal.error.data["retryAfter"])
            assert not (await client.call_tool("search", {"query": "x"})).is_error
            assert not (await client.call_tool("clock", {})).is_error
        return refusals

    assert asyncio.run(calls()) == [-32023, -32023]


def test_the_example_charges_each_tool_its_cost() -> None:
    """Of 30 a minute, the clock takes 1, a listing nothing; an unknown method is an error."""
    client = example("mcp_server").create_app().test_client()
    left = []
    for tool in ("clock", "search"):
        headers = client.post("/mcp", json=called(tool)).headers
        left.append([item.split(";")[1] for item in headers["RateLimit"].split(", ")])
    assert left[0] == ["r=29"]
    assert "r=24" in left[1]
    listed = client.post("/mcp", json={"id": 1, "method": "tools/list"})
    assert len((listed.json or {})["result"]["tools"]) == 2
    assert client.post("/mcp", json={"id": 1, "method": "x"}).status_code == 404
    assert client.post("/mcp", json={"method": "notifications/initialized"}).status_code == 202
