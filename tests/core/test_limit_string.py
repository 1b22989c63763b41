"""The grammar of the limit string: that of `limits`, money, calls in flight and guards."""

from __future__ import annotations

import re

import limits
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, MOST_AMOUNT, NO_OPTIONS, LimitOptions
from ratelimit_ext.core.limit_string import LONGEST_TEXT, _parse, length_s, parse, states_guard

#: Pieces that make up limit strings, valid and invalid.
PIECES = st.sampled_from(
    [
        *(*"0123456789", "15", "100", "/", "per", "PER", " ", "  ", "\t", "\n", "\u00a0"),
        *("second", "Minutes", "hour", "days", "month", "years", "m", "fortnight", "\u0663"),
        *("\u017f", ":", ";", ",", "|"),
    ]
)
RATES = st.builds(
    "{}{}{}{}{}{}".format,
    st.integers(0, 10**6),
    st.sampled_from(["/", " per ", "per", " / "]),
    st.sampled_from(["", "1", "0", " 30 "]),
    st.sampled_from(["", " "]),
    st.sampled_from(["second", "minutes", "Hour", "DAYS", "month", "year"]),
    st.sampled_from(["", " ", "\n"]),
)
PERIOD_OF_0 = re.compile(r"(?:/|per)\s*0+\s*[a-z]", re.IGNORECASE)
#: Neither a unit nor a strategy is stated.
NO = (None, None)
STRINGS = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.lists(RATES, min_size=1, max_size=4).flatmap(
        lambda rates: st.sampled_from([";", ",", "|", " ; ", ":;", ";;"]).map(
            lambda separator: separator.join(rates)
        )
    ),
    st.text(max_size=20),
)


@given(STRINGS)
@example("5/minute:;10/hour")
@example("7/0 minutes")
@example("5/minute;")
@example("9" * 5000 + "/minute")
def test_it_reads_every_string_of_limits_as_limits_does(text: str) -> None:
    """The same amounts and periods, and the same strings refused; amounts and periods that no
    strategy can count are the largest. A period of 0, which `limits` takes for 1, is refused, too.
    """
    try:
        items = [] if PERIOD_OF_0.search(text) else limits.parse_many(text)
    except ValueError:
        items = []
    if not items:
        with pytest.raises(ConfigurationError):
            parse(text)
        return
    parsed = parse(text)
    assert [(each.amount, each.period_us) for each in parsed] == [
        (min(item.amount, MOST_AMOUNT), min(item.get_expiry() * 1_000_000, LONGEST_PERIOD_US))
        for item in items
    ]
    assert all(
        str(each) == str(item)
        for each, item in zip(parsed, items, strict=True)
        if item.amount <= MOST_AMOUNT
    )
    assert {(each.unit, each.strategy, each.multiple) for each in parsed} == {(None,) * 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30/minute", [(30, 60, None, None, "30 per 1 minute")]),
        ("5 usd/day", [(5_000_000, 86400, "usd", None, "5 usd per 1 day")]),
        ("0.50 USD per 2 hours", [(500_000, 7200, "usd", None, "0.5 usd per 2 hours")]),
        ("0.0000001 usd/day", [(1, 86400, "usd", None, "0.000001 usd per 1 day")]),
        ("0/minute", [(0, 60, None, None, "0 per 1 minute")]),
        ("0 usd/day", [(0, 86400, "usd", None, "0 usd per 1 day")]),
        ("10000000000000/day", [(MOST_AMOUNT, 86400, None, None, f"{MOST_AMOUNT} per 1 day")]),
        ("9000000000 usd/day", [(MOST_AMOUNT, 86400, "usd", None, "1000000 usd per 1 day")]),
        ("5/s", [(5, 1, None, None, "5 per 1 second")]),
        ("5/SEC", [(5, 1, None, None, "5 per 1 second")]),
        ("5 per 2 min", [(5, 120, None, None, "5 per 2 minute")]),
        ("5 /3mins", [(5, 180, None, None, "5 per 3 minute")]),
        ("5/h;6/2 hrs", [(5, 3600, *NO, "5 per 1 hour"), (6, 7200, *NO, "6 per 2 hour")]),
        ("5/d", [(5, 86400, None, None, "5 per 1 day")]),
        ("0.5/second", [(1, 2, None, None, "1 per 2 second")]),
        ("2.50 per 10 minutes", [(5, 1200, None, None, "5 per 20 minute")]),
        ("2.0/minute", [(2, 60, None, None, "2 per 1 minute")]),
        ("4 in flight", [(4, 1, "calls", "concurrency", "4 in flight")]),
        ("0 in flight", [(0, 1, "calls", "concurrency", "0 in flight")]),
        ("unless blocked", [(1, 1, None, "block", "unless blocked")]),
        ("As  Reported", [(MOST_AMOUNT, 60, None, "reported", "as reported")]),
        ("9/hour or 20x usual", [(9, 3600, None, "surge", "9 per 1 hour or 20 x usual")]),
        (
            "5 usd/day;100/hour , 4 in flight",
            [
                (5_000_000, 86400, "usd", None, "5 usd per 1 day"),
                (100, 3600, None, None, "100 per 1 hour"),
                (4, 1, "calls", "concurrency", "4 in flight"),
            ],
        ),
    ],
)
def test_what_a_string_states(text: str, expected: list[tuple[object, ...]]) -> None:
    """Amount, seconds, unit, strategy, and one spelling for a person."""
    parsed = parse(text)
    assert [
        (each.amount, each.period_us // 1_000_000, each.unit, each.strategy, str(each))
        for each in parsed
    ] == expected


@pytest.mark.parametrize(("text", "multiple"), [("1 usd/hour or 20 x usual", 20), ("1/hour", None)])
def test_the_multiple_of_a_surge(text: str, multiple: int | None) -> None:
    """It is part of the string alone."""
    assert [each.multiple for each in parse(text)] == [multiple]


@pytest.mark.parametrize(
    "text",
    [
        *("usd/day", "-5 usd/day", "5 usd", "5 usd/fortnight", "5. usd/day", "5 .5 usd/day"),
        *("in flight", "2.5 in flight", "4 in flight or 2 x usual", "unless blocked or 2 x usual"),
        *("1/hour or 2", "\u0665 usd/day", "5 usd/day;", "5/m", "5/ss", "-1/s", "5/1.5 minutes"),
        *(".5/second", "1e3/day", "", 5, None, ["5/minute"]),
        *("5 usd/0 days", "5 usd/00month", "5 usd per 0 hours", "5/0 seconds", "7 per 00 days"),
    ],
)
def test_what_is_no_limit(text: object) -> None:
    """An incomplete limit is an error."""
    with pytest.raises(ConfigurationError, match=r"found .*; allowed: "):
        parse(text)


def test_a_long_text_is_no_limit() -> None:
    """A caller may send one of any length. Searching it would take hours, and caching it memory."""
    kept = _parse.cache_info().currsize
    for text in (f"5/{' ' * LONGEST_TEXT}day", ";".join(["5/day"] * 100), f"5/{' ' * 10**6}"):
        for read in (parse, parse("5/day")[0].with_amount):
            with pytest.raises(ConfigurationError, match=r"found '5/.*…'.*; allowed: "):
                read(text)
    assert _parse.cache_info().currsize <= kept + 1


def test_what_the_string_states_comes_before_the_options() -> None:
    """Options fill in what the string leaves open."""
    options = LimitOptions(strategy="token-bucket", unit="tokens", burst=3)
    calls, tokens = parse("4 in flight;90/minute")
    assert calls.merged(options) == LimitOptions(strategy="concurrency", unit="calls", burst=3)
    assert tokens.merged(options) == options
    limit = tokens.limit(options, "token-bucket")
    assert (limit.unit, limit.capacity, limit.period_us) == ("tokens", 3, 60_000_000)


@pytest.mark.parametrize("strategy", ["block", "reported", "surge", "concurrency"])
def test_a_strategy_with_a_form_is_written_in_it(strategy: str) -> None:
    """An amount per period would say nothing to it: "5/minute" as a block never denies."""
    (parsed,) = parse("5/minute")
    with pytest.raises(ConfigurationError, match=f"'5/minute' with the strategy '{strategy}'"):
        parsed.limit(NO_OPTIONS, strategy)


@pytest.mark.parametrize(
    ("text", "strategy", "guard"),
    [
        ("unless blocked", None, True),
        ("30/minute;as reported", None, True),
        ("1/hour or 20 x usual", None, True),
        ("1/hour", "block", True),
        ("4 in flight", None, False),
        ("30/minute", "token-bucket", False),
        ("no limit: blocked, usual", None, False),
        (lambda: "unless blocked", None, False),
    ],
)
def test_which_limits_are_guards(text: object, strategy: str | None, guard: bool) -> None:
    """By the string or the strategy; unknown for a function."""
    assert states_guard(text, LimitOptions(strategy=strategy)) is guard


def test_no_options_are_the_defaults() -> None:
    """The defaults are no options."""
    (parsed,) = parse("30/minute")
    assert parsed.merged(NO_OPTIONS) == NO_OPTIONS
    assert parsed.merged(LimitOptions(unit="requests")) == NO_OPTIONS


def test_a_string_is_parsed_once() -> None:
    """A function returns the same strings at every request."""
    assert parse("17/minute;3 usd/day") is parse("17/minute;3 usd/day")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2 min", 120),
        ("2h", 7200),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("2 Weeks", 1_209_600),
        ("1 month", 2_592_000),
        ("0s", 0),
        ("20", None),
        ("2 fortnights", None),
        ("-2h", None),
        (2, None),
    ],
)
def test_a_length_of_time_has_one_grammar(text: object, length: int | None) -> None:
    """In `wait` and `idle`, in all commands, in the API and in periods of limits, where "m" is
    refused, because it may be a month."""
    assert length_s(text) == length
    if length and "m" not in str(text):
        [limit] = parse(f"5 per {text}")
        assert limit.period_us == length * 1_000_000
