"""How long a call took, part by part: in its header, in its trace, and over many calls."""

import re
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatapp import POLICY_FILE
from chatapp.accounts.store import Accounts
from chatapp.ledger import table
from chatapp.ledger.reports import HOUR, Latency
from chatapp.services import services_of
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.test_admin import log_in
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, json_of, policy_file
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import Answer, UpstreamServer
from tests.clocks import Night

CALL = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "ping"}]}
TIMES = re.compile(r"limits;dur=(\d+\.\d), upstream;dur=(\d+\.\d)")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
#: How long the provider thinks, in seconds.
THINKS_S = 0.2


@pytest.fixture
def app(make_app: AppMaker, provider: UpstreamServer, uri: str) -> Flask:
    return make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=TOKEN)


@pytest.fixture
def slow(provider: UpstreamServer) -> None:
    """The provider begins its answer THINKS_S after it has the call."""

    def answer() -> None:
        provider.waiting.wait(30)
        threading.Timer(THINKS_S, provider.go_on).start()

    provider.think()
    threading.Thread(target=answer, daemon=True).start()


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_how_long_its_parts_took(app: Flask, stream: bool) -> None:
    """The limits, and the provider until it began. The trace has the same, and the whole."""
    began = time.monotonic()
    answer = app.test_client().post("/v1/chat/completions", json={**CALL, "stream": stream})
    assert answer.get_data()
    whole_ms = (time.monotonic() - began) * 1000
    times = TIMES.fullmatch(answer.headers["Server-Timing"])
    assert times is not None
    limits_ms, upstream_ms = map(float, times.groups())
    assert 0 < limits_ms < whole_ms - upstream_ms
    assert THINKS_S * 1000 <= upstream_ms < whole_ms
    assert services_of(app).ledger.flush()
    [row] = services_of(app).reports.calls()
    assert row["limits_ms"] == limits_ms
    assert row["first_byte_ms"] == pytest.approx(upstream_ms, abs=1)
    assert limits_ms + upstream_ms <= row["total_ms"] + 2
    assert row["total_ms"] <= whole_ms + 1
    assert (row["waited_ms"], row["streamed"]) == (0, stream)


def test_a_call_without_an_answer_has_no_first_byte(app: Flask, provider: UpstreamServer) -> None:
    """Neither its header nor its row; how slow a provider is does not count it."""
    provider.script(*[Answer(500, {"error": {"message": "x"}})] * 2)
    answer = app.test_client().post("/v1/chat/completions", json=CALL)
    assert answer.status_code >= 500
    assert re.fullmatch(r"limits;dur=\d+\.\d", answer.headers["Server-Timing"])
    assert services_of(app).ledger.flush()
    [row] = services_of(app).reports.calls()
    assert row["first_byte_ms"] is None
    assert row["total_ms"] > 0
    assert "There are no answers" in run(app, "latency").stderr


def test_other_answers_have_no_times(app: Flask) -> None:
    """Only calls have them, so no refusal tells how long anything took."""
    client = app.test_client()
    for answer in (client.get("/usage"), client.post("/v1/chat/completions", json={})):
        assert "Server-Timing" not in answer.headers


def test_a_wait_is_told_apart(
    make_app: AppMaker,
    provider: UpstreamServer,
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The seconds in line are no part of the time that the limits took."""
    pace = 'limit = "10/minute"\nburst = 1\nwait = "9 seconds"'
    text = POLICY_FILE.read_text().replace('limit = "30/minute"\nburst = 10', pace)
    night = Night(monkeypatch)
    app = make_app(RATELIMIT_STORAGE_URI=uri, RATELIMIT_POLICY_FILE=policy_file(tmp_path, text))
    for _ in range(2):
        assert app.test_client().post("/v1/chat/completions", json=CALL).status_code == 200
    assert services_of(app).ledger.flush()
    first, second = services_of(app).reports.calls()
    assert first["waited_ms"] == 0
    assert second["waited_ms"] == pytest.approx(sum(night.lengths) * 1000, abs=100)
    assert second["waited_ms"] > 1000
    assert second["limits_ms"] + second["waited_ms"] <= second["total_ms"] + 1


def traced(app: Flask, id_: str) -> dict[str, object]:
    answer = app.test_client().get(f"/admin/api/v1/ledger/calls/{id_}", headers=BEARER)
    return dict(json_of(answer))


def test_a_trace_has_the_limits(app: Flask, accounts: Accounts) -> None:
    """Each that was asked, with its verdict, its charge and what it left: in the API, by the
    command, and at /admin. Guards, which have no amount, are left out."""
    key = accounts.create_key("alice", plan="starter", default_plan="starter").text
    client = app.test_client()
    for _ in range(2):
        answer = client.post("/v1/chat/completions", json=CALL, headers={"x-api-key": key})
    assert services_of(app).ledger.flush()
    id_ = answer.headers["x-call-id"]
    limits = {row["limit"]: row for row in traced(app, id_)["limits"]}  # type: ignore[attr-defined]
    names = {
        "key",
        "model",
        "user",
        "plan",
        "tokens",
        "at-once",
        "usd-hour",
        "usd-day",
        "usd-month",
    }
    assert limits.keys() == names
    assert {row["verdict"] for row in limits.values()} == {"admitted"}
    plan = {"limit": "plan", "verdict": "admitted", "unit": "requests", "charged": 1, "left": 98}
    assert limits["plan"] == plan
    assert limits["at-once"]["left"] == 3
    day = limits["usd-day"]
    assert (day["unit"], 0 < day["charged"] < 0.1, 4.9 < day["left"] < 5) == ("usd", True, True)
    said = run(app, "trace", id_).stdout
    assert re.search(r"^plan +admitted +requests +1 +98$", said, re.MULTILINE)
    assert re.search(r"^first byte ms: \d+$", said, re.MULTILINE)
    operator = app.test_client()
    log_in(operator)
    page = operator.get(f"/admin/call?id={id_}").text
    assert "First byte in ms" in page
    assert re.search(r"plan</th>\s*<td>admitted</td>\s*<td class=\"number\">1</td>", page)


def test_a_limit_in_shadow_says_that_it_would_deny(
    make_app: AppMaker, provider: UpstreamServer, uri: str, tmp_path: Path
) -> None:
    """It was charged nothing, and the call was made."""
    text = POLICY_FILE.read_text().replace('limit = "100/day"', 'limit = "1/day"\nmode = "shadow"')
    config = {"RATELIMIT_POLICY_FILE": policy_file(tmp_path, text), "CHATAPP_ADMIN_TOKEN": TOKEN}
    app = make_app(RATELIMIT_STORAGE_URI=uri, **config)
    for _ in range(2):
        answer = app.test_client().post("/v1/chat/completions", json=CALL)
    assert services_of(app).ledger.flush()
    limits = traced(app, answer.headers["x-call-id"])["limits"]
    [plan] = [row for row in limits if row["limit"] == "plan"]  # type: ignore[attr-defined]
    assert (plan["verdict"], plan["charged"], plan["left"]) == ("would deny", 0, 0)


# -- how slow a provider is ----------------------------------------------------------------------


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def kept(app: Flask, now: datetime) -> Flask:
    """Of gpt-4o a hundred streams that began after 1 to 100 ms, an hour ago, and one of yesterday;
    of claude-haiku-4-5 a whole answer, and one that failed."""
    calls = [
        finished(begun(started_at=now - timedelta(minutes=59)), first_byte_ms=ms, streamed=True)
        for ms in range(1, 101)
    ]
    calls = [
        finished(call, slug="gpt-4o", provider="openai", first_byte_ms=call.first_byte_ms)
        for call in calls
    ]
    old = finished(begun(started_at=now - timedelta(hours=23)), first_byte_ms=900, streamed=True)
    whole = finished(begun(started_at=now), first_byte_ms=2000)
    failed = finished(begun(started_at=now), status="timeout")
    table.write(services_of(app).database, [*calls, old, whole, failed])
    return app


def test_half_of_the_answers_and_nearly_all(kept: Flask) -> None:
    """By upstream, model and kind, in the API and by the command; of the last hour by default."""
    address = "/admin/api/v1/ledger/latency"
    rows = json_of(kept.test_client().get(address, headers=BEARER))["items"]
    haiku = {"upstream": "anthropic", "model": "claude-haiku-4-5"}
    assert rows == [
        {**haiku, "streamed": False, "calls": 1, "p50_ms": 2000, "p95_ms": 2000},
        {"upstream": "openai", "model": "gpt-4o", "streamed": True, "calls": 100}
        | {"p50_ms": 50, "p95_ms": 95},
    ]
    said = run(kept, "latency").stdout.splitlines()
    assert said[0].split() == ["UPSTREAM", "MODEL", "STREAMED", "CALLS", "P50", "MS", "P95", "MS"]
    assert said[2].split() == ["openai", "gpt-4o", "yes", "100", "50", "95"]
    assert "900" in run(kept, "latency", "--since", "1d").stdout


@pytest.mark.parametrize("calls", [1, 2, 19, 20, 21])
def test_latencies_are_of_calls(app: Flask, now: datetime, calls: int) -> None:
    """A percentile is the least time within which that share of the calls began."""
    rows = [finished(begun(started_at=now), first_byte_ms=ms) for ms in range(1, calls + 1)]
    table.write(services_of(app).database, rows)
    found = services_of(app).reports.latencies(HOUR, since=now)
    ceiling = (-(-calls // 2), -(-calls * 95 // 100))
    assert found == {(f"{now:%Y-%m-%d %H}",): Latency(calls, *ceiling)}


def test_the_page_draws_them(kept: Flask, now: datetime) -> None:
    """By the hour or the day, of streams or whole answers, of all models or one."""
    operator: FlaskClient = kept.test_client()
    log_in(operator)
    page = operator.get("/admin/latency").text
    hour = f"{now - timedelta(minutes=59):%Y-%m-%d %H}"
    assert f"half within, {hour}: 50 ms" in page
    assert f"extra time to 95 %, {hour}: 45 ms" in page
    assert "900 ms" in page
    one = operator.get("/admin/latency?model=gpt-4o&days=7").text
    assert "Latency of gpt-4o" in one
    assert f"half within, {now - timedelta(minutes=59):%Y-%m-%d}: 50 ms" in one
    assert ": 900 ms" not in one
    assert "2,000 ms" in operator.get("/admin/latency?kind=whole&model=nothing").text
    table_of = operator.get("/admin/latency?csv=latency").text.splitlines()
    assert table_of[0] == "upstream,model,streamed,calls,p50_ms,p95_ms"
    assert len(table_of) == 4
