"""The words of an alert."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from chatapp.alerts.alert import Alert
from chatapp.ledger.forecast import Forecast

NOON = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
RESET = datetime(2026, 12, 1, tzinfo=UTC)


def alert(**fields: Any) -> Alert:
    usual: dict[str, Any] = {
        "type": "budget.reached",
        "since": NOON,
        "name": "usd",
        "resets_at": RESET,
    }
    return Alert(**usual | {"spent": 800_000, "amount": 1_000_000} | fields)


SENTENCES = {
    "User alice has spent 0.80 of 1.00 USD (80 %) of the budget usd.": {"identity": "user:alice"},
    "User ip:198.51.100.7 has spent 0.80 of 1.00 USD (80 %) of the budget usd.": {
        "identity": "ip:198.51.100.7"
    },
    "Team red has spent 0.80 of 1.00 USD (80 %) of the budget usd.": {"identity": "team:red"},
    "Key 0123456789abcdef has spent 0.80 of 1.00 USD (80 %) of the budget usd.": {
        "identity": "0123456789abcdef"
    },
    "The whole application has spent 1.20 of 1.00 USD (120 %) of the budget usd, "
    "which now refuses calls.": {"identity": "*", "spent": 1_200_000, "refuses": True},
    "User a has spent 0.000065 of 0.0001 USD (65 %) of the budget usd.": {
        "identity": "user:a",
        "spent": 65,
        "amount": 100,
    },
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_sentence_says_whose_budget_it_is(sentence: str) -> None:
    """And how much of how much, until when."""
    found = alert(**SENTENCES[sentence])
    assert found.sentence == f"{sentence} It resets at 2026-12-01 00:00:00 UTC."


def test_a_name_is_only_text() -> None:
    """It breaks no line of a log; it is no mention and no link for Slack. The data has it as it
    is."""
    found = alert(identity="user:<!channel>&\nERROR all is lost\x1b[2J")
    assert "\n" not in found.sentence
    assert "\x1b" not in found.sentence
    body = json.loads(found.body())
    assert body["text"].startswith(
        "User &lt;!channel&gt;&amp;\\nERROR all is lost\\x1b[2J has spent"
    )
    assert body["data"]["user"] == "<!channel>&\nERROR all is lost\x1b[2J"


def test_a_forecast_says_when() -> None:
    """And how sure it is, also in the data."""
    found = alert(
        type="budget.forecast",
        identity="team:red",
        forecast=Forecast(datetime(2026, 11, 26, 15, tzinfo=UTC), 0.93, 800_000),
    )
    assert found.sentence == (
        "Team red has spent 0.80 of 1.00 USD of the budget usd. At this pace it is used up on "
        "Thursday, 2026-11-26, at 15:00 UTC (93 % sure)."
    )
    data = json.loads(found.body())["data"]
    assert (data["budget"], data["amount_usd"], data["threshold"]) == ("usd", 1.0, None)
    assert data["forecast"] == {"used_up_at": "2026-11-26T15:00:00Z", "sure": 0.93}


def test_unusual_usage_has_a_usual_day() -> None:
    """In place of what a budget has."""
    found = alert(type="usage.unusual", identity="user:bob", name=None, resets_at=None)
    data = json.loads(found.body())["data"]
    assert (data["spent_usd"], data["usual_usd"], data["amount_usd"]) == (0.8, 1.0, None)
    assert (data["budget"], data["threshold"], data["resets_at"]) == (None, None, None)


@pytest.mark.parametrize(
    ("resets_at", "end"), [(RESET, "until 2026-12-01 00:00:00 UTC"), (None, "for now")]
)
def test_a_capped_key_is_named_by_its_source(resets_at: datetime | None, end: str) -> None:
    """It may be a file."""
    capped = {"type": "key.capped", "identity": "acme//run/secrets/key", "resets_at": resets_at}
    found = alert(**capped, name="spending cap", spent=0, amount=0)
    assert found.sentence == (
        "The key /run/secrets/key of the upstream acme has reached a spending cap or has no credit "
        f"left. Its provider refuses it {end}."
    )
    data = json.loads(found.body())["data"]
    assert (data["key"], data["user"]) == ("acme//run/secrets/key", None)


def test_a_used_up_quota_has_its_model_and_its_end() -> None:
    """A caller may have chosen the model's name."""
    found = alert(
        type="key.exhausted",
        identity="openai/OPENAI_API_KEY",
        name="quota of gpt-5\nERROR",
        spent=0,
        amount=0,
        resets_at=RESET,
    )
    assert found.sentence == (
        "The key OPENAI_API_KEY of the upstream openai has used up the quota of gpt-5\\nERROR. Its "
        "provider refuses it until 2026-12-01 00:00:00 UTC."
    )
    data = json.loads(found.body())["data"]
    assert (data["key"], data["threshold"]) == ("openai/OPENAI_API_KEY", None)


def test_a_test_has_no_amounts() -> None:
    """Neither a budget's nor a usual day's."""
    data = json.loads(alert(type="alert.test", identity="*", name=None).body())["data"]
    assert (data["threshold"], data["usual_usd"], data["amount_usd"]) == (None, None, None)
