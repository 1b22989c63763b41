"""Items of `limits` that carry our keywords."""

from __future__ import annotations

import pytest
from limits import RateLimitItemPerMinute, parse

from ratelimit_ext import ConfigurationError
from ratelimit_ext.web.item import Keywords, keywords_of, limit_of, rank, with_keywords

BUCKET = Keywords(strategy="token-bucket", burst=2)


def test_an_item_without_keywords_is_the_stock_one() -> None:
    """Nothing changes for who uses none."""
    item = parse("5/minute")
    assert with_keywords(item, Keywords()) is item
    assert keywords_of(item) == Keywords()


def test_keywords_count_in_an_items_equality() -> None:
    """In sets and as keys of dictionaries as well."""
    plain, bucket = parse("5/minute"), with_keywords(parse("5/minute"), BUCKET)
    assert bucket == with_keywords(parse("5/minute"), BUCKET)
    assert bucket != plain
    assert plain != bucket
    assert bucket != with_keywords(parse("5/minute"), BUCKET._replace(burst=3))
    assert len({plain, bucket, with_keywords(parse("5/minute"), BUCKET)}) == 2


def test_the_parser_goes_on_making_stock_items() -> None:
    """Our classes are not what `parse` returns."""
    with_keywords(parse("5/minute"), BUCKET)
    assert type(parse("5/minute")) is RateLimitItemPerMinute


def test_an_item_is_still_an_item() -> None:
    """It reads and measures like the stock one."""
    item = with_keywords(parse("5 per 2 minutes"), BUCKET)
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
    assert sorted(with_keywords(item, BUCKET) for item in ranked[::-1]) == [
        with_keywords(item, BUCKET) for item in ranked
    ]


def test_the_extensions_strategy_serves_items_that_name_none() -> None:
    """An item's own comes first; Flask-Limiter's word for the log is understood."""
    plain, bucket = parse("5/minute"), with_keywords(parse("5/minute"), BUCKET)
    assert limit_of(plain, "sliding-window").strategy == "sliding-window"
    assert limit_of(plain, "moving-window").strategy == "sliding-window"
    assert limit_of(bucket, "sliding-window").strategy == "token-bucket"
    assert limit_of(bucket, "sliding-window").capacity == 2


def test_an_item_that_cannot_be_carried_out_says_why() -> None:
    """By the words of its keywords."""
    with pytest.raises(ConfigurationError, match="unknown strategy 'leaky'"):
        limit_of(with_keywords(parse("5/minute"), Keywords(strategy="leaky")), "fixed-window")
