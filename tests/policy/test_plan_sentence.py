"""The sentence for a caller who has used up a plan."""

from dataclasses import replace
from typing import Any

import pytest

from ratelimit_ext.core.limit import LimitOptions
from ratelimit_ext.core.limit_string import parse
from ratelimit_ext.policy.plan_sentence import period_words, plan_sentence
from ratelimit_ext.policy.policy import Plan, PolicyLimit

SECOND_US = 1_000_000
#: A limit, or its text if it has nothing else.
Stated = PolicyLimit | str


def limit(text: str, name: str = "plan", **words: Any) -> PolicyLimit:
    options = LimitOptions(name=name, **words)
    return PolicyLimit(source="", text=text, parsed=parse(text), options=options)


def plan(title: str, *limits: PolicyLimit) -> Plan:
    return Plan(name=title.lower(), title=title, limits=limits)


# The limit of the plan, that of the next one, and the sentence after "The Starter plan allows ".
SENTENCES = [
    ("100/day", "2000/day", "100 calls a day, and they are used up; the Pro plan allows 2,000."),
    ("1/hour", "1234567/hour", "1 call an hour, and it is used up; the Pro plan allows 1,234,567."),
    ("10/minute", None, "10 calls a minute, and they are used up."),
    # After a burst, a caller has used up far less than the amount.
    (
        limit("30/minute", burst=10),
        limit("180/minute", burst=30),
        "30 calls a minute, 10 at once, and they are used up; the Pro plan allows 180.",
    ),
    (limit("10/minute", burst=10), None, "10 calls a minute, and they are used up."),
    (
        limit("5000000/hour", unit="usd", burst=1_500_000),
        None,
        "$5.00 an hour, $1.50 at once, and it is used up.",
    ),
    (
        "5/30 seconds",
        "9/30 seconds",
        "5 calls every 30 seconds, and they are used up; the Pro plan allows 9.",
    ),
    (
        "100/day",
        "9000/month",
        "100 calls a day, and they are used up; the Pro plan allows 9,000 every 30 days.",
    ),
    (
        limit("100/month", anchor="month"),
        limit("900/month", anchor="month"),
        "100 calls a calendar month, and they are used up; the Pro plan allows 900.",
    ),
    (
        "100/day",
        "2/second;500/day",
        "100 calls a day, and they are used up; the Pro plan allows 500.",
    ),
    (
        "100/day",
        limit("5/day", name="other"),
        "100 calls a day, and they are used up; the Pro plan has no such limit.",
    ),
    (
        limit("5000000/day", unit="usd"),
        limit("1250500000/day", unit="usd"),
        "$5.00 a day, and it is used up; the Pro plan allows $1,250.50.",
    ),
    (limit("250/day", unit="usd"), None, "$0.00025 a day, and it is used up."),
    (
        limit("90000/minute", unit="tokens"),
        limit("1000000/minute", unit="tokens"),
        "90,000 tokens a minute, and they are used up; the Pro plan allows 1,000,000.",
    ),
    (
        limit("1/second", unit="calls"),
        limit("10/second", unit="calls"),
        "1 call at once, and it is used up; the Pro plan allows 10.",
    ),
    ("0/day", "100/day", "no calls a day; the Pro plan allows 100."),
    (limit("0/day", unit="usd"), None, "$0.00 a day."),
    # A plan that allows no more is not suggested.
    ("100/day", "100/day", "100 calls a day, and they are used up."),
    ("100/day", "1000/month", "100 calls a day, and they are used up."),
    ("100/day", "3000/month", "100 calls a day, and they are used up."),
]


@pytest.mark.parametrize(("own", "other", "sentence"), SENTENCES)
def test_the_sentence(own: Stated, other: Stated | None, sentence: str) -> None:
    """The plan, what it allows, and the next plan where that allows more."""
    own = limit(own) if isinstance(own, str) else own
    other = limit(other) if isinstance(other, str) else other
    following = None if other is None else plan("Pro", other)
    message = plan_sentence(plan("Starter", own), own, following)
    assert message == f"The Starter plan allows {sentence}"


@pytest.mark.parametrize(
    ("price", "url", "rest"),
    [
        (
            *("$29 a month", "https://example.com/plans"),
            "Upgrade to Pro for 2,000 calls a day, from $29 a month: https://example.com/plans.",
        ),
        ("$29 a month", "", "Upgrade to Pro for 2,000 calls a day, from $29 a month."),
        ("", "https://example.com/plans", "Upgrade to Pro for 2,000 calls a day: https://exa"),
    ],
)
def test_a_days_quota_names_price_and_address_of_the_next_plan(
    price: str, url: str, rest: str
) -> None:
    """One of both is enough. A pace only says what the next plan allows."""
    pro = plan("Pro", limit("2000/day"), limit("180/minute", name="user"))
    pro = replace(pro, price=price, upgrade_url=url)
    starter, day = plan("Starter"), limit("100/day")
    start = "The Starter plan allows 100 calls a day, and they are used up. "
    assert plan_sentence(starter, day, pro).startswith(start + rest)
    pace = plan_sentence(starter, limit("30/minute", name="user"), pro)
    assert pace.endswith("30 calls a minute, and they are used up; the Pro plan allows 180.")
    free = plan_sentence(starter, limit("5/day", name="other"), pro)
    assert "are used up. Upgrade to Pro, which has no such limit" in free
    equal = plan_sentence(starter, limit("2000/day"), pro)
    assert equal == "The Starter plan allows 2,000 calls a day, and they are used up."


@pytest.mark.parametrize(
    ("period_us", "words"),
    [
        (SECOND_US, "a second"),
        (60 * SECOND_US, "a minute"),
        (3600 * SECOND_US, "an hour"),
        (86_400 * SECOND_US, "a day"),
        (2 * SECOND_US, "every 2 seconds"),
        (90 * SECOND_US, "every 90 seconds"),
        (5400 * SECOND_US, "every 90 minutes"),
        (7 * 86_400 * SECOND_US, "every 7 days"),
        (360 * 86_400 * SECOND_US, "every 360 days"),
        (SECOND_US // 2, "every 0.5 seconds"),
    ],
)
def test_the_words_of_a_period(period_us: int, words: str) -> None:
    """The longest unit that fits without a remainder is used."""
    assert period_words(period_us) == words
