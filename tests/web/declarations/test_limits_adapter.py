"""Items of `limits` that carry the options of a limit."""

from dataclasses import replace

import pytest
from limits import RateLimitItem, RateLimitItemPerMinute, parse

from ratelimit_ext import ConfigurationError
from ratelimit_ext.core.limit import NO_OPTIONS, LimitOptions
from ratelimit_ext.web.declarations.limits_adapter import items_of, limit_of, options_of, rank
from tests.clocks import Clock
from tests.web.calls import statuses
from tests.web.conftest import Maker, root

BUCKET = LimitOptions(strategy="token-bucket", burst=2)


def bucket(text: str, options: LimitOptions = BUCKET) -> RateLimitItem:
    (item,) = items_of(text, options)
    return item


def test_an_item_without_options_is_the_stock_one() -> None:
    """Nothing changes for an application that uses none."""
    (item,) = items_of("5/minute", NO_OPTIONS)
    assert type(item) is RateLimitItemPerMinute
    assert item == parse("5/minute")
    assert options_of(item) == NO_OPTIONS


def test_options_are_part_of_an_items_equality() -> None:
    """In sets and as keys of dictionaries as well."""
    plain = parse("5/minute")
    assert bucket("5/minute") == bucket("5 per 1 minutes")
    assert bucket("5/minute") != plain
    assert plain != bucket("5/minute")
    assert bucket("5/minute") != bucket("5/minute", replace(BUCKET, burst=3))
    assert bucket("5/hour or 2 x usual") != bucket("5/hour or 3 x usual")
    assert len({plain, bucket("5/minute"), bucket("5/minute")}) == 2


def test_the_stock_parser_still_makes_stock_items() -> None:
    """The extended classes are not what `limits.parse` returns."""
    bucket("5/minute")
    assert type(parse("5/minute")) is RateLimitItemPerMinute


def test_an_item_is_still_an_item() -> None:
    """It reads and measures like the stock one."""
    item = bucket("5 per 2 minutes")
    assert str(item) == "5 per 2 minute"
    assert item.get_expiry() == 120
    assert isinstance(item, RateLimitItemPerMinute)


def test_items_rank_by_period_then_by_amount() -> None:
    """30 minutes come after one, and before an hour."""
    texts = ["1/hour", "1/30 minutes", "3/minute", "2/minute", "5/2 seconds"]
    ranked = sorted(map(parse, texts), key=rank)
    assert [str(item) for item in ranked] == [
        "5 per 2 second",
        "2 per 1 minute",
        "3 per 1 minute",
        "1 per 30 minute",
        "1 per 1 hour",
    ]
    texts = list(map(str, ranked))
    assert list(map(str, sorted(map(bucket, texts[::-1])))) == texts


def test_the_extensions_strategy_serves_items_that_name_none() -> None:
    """An item's own comes first; Flask-Limiter's word for the log is understood."""
    plain, own = parse("5/minute"), bucket("5/minute")
    assert limit_of(plain, "sliding-window").strategy == "sliding-window"
    assert limit_of(plain, "moving-window").strategy == "sliding-window"
    assert limit_of(own, "sliding-window").strategy == "token-bucket"
    assert limit_of(own, "sliding-window").capacity == 2


def test_an_item_that_cannot_be_carried_out_says_why() -> None:
    """By the words of its keywords."""
    with pytest.raises(ConfigurationError, match="unknown strategy 'leaky'"):
        limit_of(bucket("5/minute", LimitOptions(strategy="leaky")), "fixed-window")


# -- limiter.limiter: Flask-Limiter's strategy object, over the buckets of requests ---------------


@pytest.mark.parametrize("prefix", ["", "tenant"])
def test_it_reads_and_writes_what_requests_are_charged_to(make: Maker, prefix: str) -> None:
    """By identity and scope, whether or not the prefix is given with them."""
    app, limiter = make(key_prefix=prefix)
    app.get("/")(limiter.limit("3/minute")(root))
    item, strategy = parse("3/minute"), limiter.limiter
    assert statuses(app) == [200]
    assert strategy.get_window_stats(item, "someone", "root").remaining == 2
    assert strategy.get_window_stats(item, prefix, "someone", "root").remaining == 2
    assert strategy.hit(item, "someone", "root", cost=2)
    assert not strategy.test(item, "someone", "root")
    assert statuses(app) == [429]
    strategy.clear(item, prefix, "someone", "root")
    assert statuses(app) == [200]


def test_an_items_own_strategy_and_name_lead_to_its_bucket(make: Maker, clock: Clock) -> None:
    """An item with keywords is another limit than one without."""
    app, limiter = make()
    app.get("/")(limiter.limit("6/minute", strategy="token-bucket", burst=2, name="pace")(root))
    assert statuses(app) == [200]
    options = LimitOptions(strategy="token-bucket", burst=2, name="pace")
    (item,) = items_of("6/minute", options)
    stats = limiter.limiter.get_window_stats(item, "someone", "root")
    assert (stats.remaining, stats.reset_time) == (1, clock.now_s + 10)
    assert limiter.limiter.get_window_stats(parse("6/minute"), "someone", "root").remaining == 6


def test_an_unopened_window_is_full(make: Maker, clock: Clock) -> None:
    """Asking does not open it."""
    _, limiter = make()
    stats = limiter.limiter.get_window_stats(parse("3/minute"), "someone", "root")
    assert stats.remaining == 3
    assert stats.reset_time >= clock.now_s


def test_while_the_storage_is_away_it_is_the_fallbacks(make: Maker) -> None:
    """What it says is what decides."""
    app, limiter = make(storage_uri="redis://127.0.0.1:1", in_memory_fallback_enabled=True)
    app.get("/")(limiter.limit("3/minute")(root))
    assert statuses(app) == [200]
    assert limiter.limiter.get_window_stats(parse("3/minute"), "someone", "root").remaining == 2
