"""The webhook: signed, sent again, and never the reason that something else waits."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from chatapp.alerts.alert import Alert
from chatapp.alerts.webhook import Deliveries, UnreachableError, Webhook, signature
from chatapp.background import Patience
from chatapp.settings import signing_key
from tests.chatapp.alerts.receiver import SECRET, Receiver, receiving

SHORT = Patience(first_s=0.01, longest_s=0.01, whole_s=600.0, at_end_s=0.1)
ONCE = Patience(first_s=0.01, whole_s=0.0, at_end_s=0.1)
ONLY_HERE = "only here: "


def webhook(receiver: Receiver) -> Webhook:
    return Webhook(receiver.url, signing_key(SECRET))


def alert(**fields: Any) -> Alert:
    """Alice has spent most of her day's budget."""
    usual: dict[str, Any] = {
        "type": "budget.reached",
        "identity": "user:alice",
        "name": "usd-day",
        "threshold": 80,
        "spent": 4_020_000,
        "amount": 5_000_000,
        "since": datetime(2026, 11, 26, tzinfo=UTC),
        "resets_at": datetime(2026, 11, 27, tzinfo=UTC),
        "at": datetime(2026, 11, 26, 14, 3, 11, 500_000, tzinfo=UTC),
    }
    return Alert(**usual | fields)


def kept(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The alerts that only the log has."""
    errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    return [json.loads(line.partition(ONLY_HERE)[2]) for line in errors if ONLY_HERE in line]


def test_the_signature_is_that_of_the_published_example() -> None:
    """Of the specification's libraries: the same secret, id, time and body."""
    id_, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", '{"test": 2432232314}'
    signed = signature(signing_key(SECRET), id_, 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_alert_arrives_signed(receiver: Receiver) -> None:
    """One POST of JSON, with the headers of Standard Webhooks."""
    sent = alert()
    assert webhook(receiver).post(sent).status == 204
    (request,) = receiver.received()
    assert request.is_signed
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == sent.id
    assert abs(int(request.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60
    assert request.body == {
        "type": "budget.reached",
        "id": sent.id,
        "timestamp": "2026-11-26T14:03:11Z",
        "text": (
            "User alice has spent 4.02 of 5.00 USD (80 %) of the budget usd-day. "
            "It resets at 2026-11-27 00:00:00 UTC."
        ),
        "data": {
            "identity": "user:alice",
            "user": "alice",
            "key": None,
            "team": None,
            "budget": "usd-day",
            "threshold": 80,
            "spent_usd": 4.02,
            "amount_usd": 5.0,
            "usual_usd": None,
            "since": "2026-11-26T00:00:00Z",
            "resets_at": "2026-11-27T00:00:00Z",
            "forecast": None,
        },
    }


def test_a_failure_passes(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """The alert is sent again with the same id, and the log has one line about it."""
    receiver.script(500, (429, {"Retry-After": "0"}), 408)
    deliveries = Deliveries(webhook(receiver), patience=SHORT)
    sent = alert()
    deliveries.put(sent)
    requests = receiver.received(4)
    assert deliveries.flush(60)
    deliveries.close()
    assert len(receiver.received(4)) == 4
    assert {request.headers["webhook-id"] for request in requests} == {sent.id}
    assert all(request.is_signed for request in requests)
    assert [each.getMessage() for each in caplog.records] == [
        "The alerts' webhook at 127.0.0.1 fails: answered 500"
    ]


def test_the_pause_that_a_receiver_asks_for_is_kept(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent before the end of its Retry-After; the end of the process does not wait."""
    receiver.script((429, {"Retry-After": "100"}))
    deliveries = Deliveries(webhook(receiver), patience=SHORT)
    deliveries.put(alert(name="first"))
    receiver.received(1)
    deliveries.put(alert(name="second"))
    deliveries.close()
    assert len(receiver.received(1)) == 1
    assert {each["data"]["budget"] for each in kept(caplog)} == {"first", "second"}


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
def test_a_refusal_is_final(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """The log has the alert, and what the receiver said; a redirect is a refusal, too."""
    receiver.script((status, {"Location": "/elsewhere"}))
    deliveries = Deliveries(webhook(receiver), patience=SHORT)
    refused, next_one = alert(), alert()
    deliveries.put(refused)
    deliveries.put(next_one)
    requests = receiver.received(2)
    deliveries.close()
    assert [each.headers["webhook-id"] for each in requests] == [refused.id, next_one.id]
    assert [each["id"] for each in kept(caplog)] == [refused.id]
    assert f'refused an alert with {status} ("the receiver\'s words")' in caplog.text


def test_what_is_given_up_is_in_the_log(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """After the patience, with its content."""
    receiver.script(503)
    deliveries = Deliveries(webhook(receiver), patience=ONCE)
    lost = alert()
    deliveries.put(lost)
    receiver.received()
    assert deliveries.flush(60)
    deliveries.close()
    assert [each["id"] for each in kept(caplog)] == [lost.id]


def test_the_end_of_the_process_sends_what_waits(receiver: Receiver) -> None:
    """As far as its patience goes."""
    deliveries = Deliveries(webhook(receiver), patience=Patience())
    for number in range(5):
        deliveries.put(alert(name=f"budget-{number}"))
    deliveries.close()
    names = [request.body["data"]["budget"] for request in receiver.received(5)]
    assert names == [f"budget-{number}" for number in range(5)]


def test_a_closed_port_is_unreachable(receiver: Receiver) -> None:
    """The error has the reason, and not the URL, which may be a secret."""
    with receiving() as gone:
        hook = webhook(gone)
    with pytest.raises(UnreachableError) as caught:
        hook.post(alert())
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_proxies_of_the_environment_are_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alerts go where the setting says."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert webhook(receiver).post(alert()).status == 204


def test_no_log_has_the_secrets(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the signing secret nor the path of the URL, which is Slack's secret."""
    receiver.script(500, 404)
    hook = webhook(receiver)
    deliveries = Deliveries(hook, patience=SHORT)
    deliveries.put(alert())
    receiver.received(2)
    deliveries.close()
    said = f"{caplog.text} {hook!r}"
    assert "127.0.0.1" in said
    assert "secret-path" not in said
    assert SECRET.partition("_")[2] not in said
