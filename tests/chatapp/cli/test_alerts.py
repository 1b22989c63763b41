"""`chat alerts`: what was raised, and whether the webhook works."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from chatapp.alerts import table
from chatapp.alerts.alert import Alert
from chatapp.services import services_of
from tests.chatapp.alerts.receiver import SECRET, Receiver, receiving
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker

NOON = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def app(make_app: AppMaker, receiver: Receiver) -> Flask:
    return make_app(CHATAPP_ALERT_WEBHOOK_URL=receiver.url, CHATAPP_ALERT_WEBHOOK_SECRET=SECRET)


def test_a_test_arrives(app: Flask, receiver: Receiver) -> None:
    """One signed alert, which is not remembered; the command shows the answer."""
    assert run(app, "alerts", "test").stdout == "127.0.0.1 accepted it with 204.\n"
    shown = json.loads(run(app, "alerts", "test", "--json").stdout)
    first, second = receiver.received(2)
    assert first.is_signed
    assert (first.body["type"], first.body["text"]) == (
        "alert.test",
        "This is a test of chatapp's spending alerts.",
    )
    assert shown == {
        "host": "127.0.0.1",
        "status": 204,
        "id": second.headers["webhook-id"],
        "done": "127.0.0.1 accepted it with 204.",
    }
    assert table.alerts(services_of(app).database, since=None) == []


def test_a_test_that_fails_says_why(app: Flask, receiver: Receiver) -> None:
    """What was answered, or that there was no answer; once, and with exit status 1."""
    receiver.script(500)
    refused = run(app, "alerts", "test", status=1).stderr
    assert refused == "Error: 127.0.0.1 refused it with 500: the receiver's words\n"
    assert len(receiver.received()) == 1


def test_a_test_without_a_receiver(make_app: AppMaker) -> None:
    """The error names the settings, or the reason."""
    assert "Set CHATAPP_ALERT_WEBHOOK_URL" in run(make_app(), "alerts", "test", status=1).stderr
    with receiving() as gone:
        url = gone.url
    app = make_app(CHATAPP_ALERT_WEBHOOK_URL=url, CHATAPP_ALERT_WEBHOOK_SECRET=SECRET)
    failed = run(app, "alerts", "test", status=1).stderr
    assert failed.startswith("Error: 127.0.0.1 did not answer: ")
    assert "secret-path" not in failed


def test_the_alerts_are_listed(app: Flask) -> None:
    """The oldest first, as a table or as JSON."""
    assert run(app, "alerts", "list").stderr == "There are no alerts.\n"
    database = services_of(app).database
    common = {"spent": 8_250_000, "amount": 10_000_000, "since": NOON - timedelta(hours=12)}
    table.remember(
        database,
        Alert(
            type="budget.reached",
            identity="user:alice",
            name="usd-day",
            threshold=80,
            at=NOON,
            resets_at=NOON + timedelta(hours=12),
            **common,
        ),
    )
    table.remember(
        database,
        Alert(
            type="usage.unusual", identity="user:b\x1b[1m", at=NOON + timedelta(days=1), **common
        ),
    )
    heads, budget, unusual = run(app, "alerts", "list").stdout.splitlines()
    assert heads.split("  ")[0] == "AT"
    assert unusual.split()[:6] == ["2026-11-27", "12:00:00", "UTC", "user:b\\x1b[1m", "-", "0"]
    assert budget.split() == [
        *("2026-11-26", "12:00:00", "UTC", "user:alice", "usd-day", "80", "8.25", "10"),
        *("2026-11-27", "00:00:00", "UTC"),
    ]
    listed = json.loads(run(app, "alerts", "list", "--since", "2026-11-27", "--json").stdout)
    assert [each["identity"] for each in listed] == ["user:b\x1b[1m"]


def test_old_alerts_are_forgotten(app: Flask) -> None:
    """After 400 days."""
    database = services_of(app).database
    for at in (NOON - timedelta(days=401), NOON - timedelta(days=399), NOON):
        assert table.remember(
            database,
            Alert(type="usage.unusual", identity="user:a", spent=1, amount=1, since=at, at=at),
        )
    assert len(table.alerts(database, since=None)) == 2
