"""What code states of a limit, checked where it is stated and not when a request needs it."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

from limits import RateLimitItem

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.policy.stated import check_stated, refuse_string
from ratelimit_ext.web.item import PLAIN, Keywords, keywords_of, limit_of
from ratelimit_ext.web.limit_string import items_of


def check_statement(
    text: object, keywords: Keywords, cost: Any, default_strategy: str | None
) -> None:
    """Raise ``ConfigurationError`` for what cannot be carried out."""
    stated = cost if isinstance(cost, Hashable) else repr(cost)
    _check(text, keywords, _asked if callable(cost) else stated, default_strategy)


def _asked() -> None:
    """Stands for any cost that is a function: what it answers is seen at the request."""


# Blocks inside views come here at every request. Typed: a cost of True equals 1, and is none.
@lru_cache(maxsize=1024, typed=True)
def _check(
    text: Any,
    keywords: Keywords,
    cost: Any,
    default_strategy: str | None,
) -> None:
    try:
        items = items_of(str(text), keywords)
    except ConfigurationError:
        raise
    except ValueError:
        refuse_string(text)
    fitting = "token-bucket" if keywords.burst is not None else "fixed-window"
    for item in items:
        limit_of(item, default_strategy or fitting)
    said = {word: value for word, value in keywords._asdict().items() if word in _beside(keywords)}
    limits = [_as_in_a_file(item, text, keywords, cost) for item in items]
    check_stated(text, said, limits, default_strategy)


def _beside(keywords: Keywords) -> set[str]:
    """The keywords that say something."""
    pairs = zip(keywords._fields, keywords, PLAIN, strict=True)
    return {word for word, value, nothing in pairs if value != nothing}


def _as_in_a_file(item: RateLimitItem, text: str, beside: Keywords, cost: Any) -> PolicyLimit:
    """One limit of the string with what the string and its keywords make of it."""
    return PolicyLimit(
        source="",
        # As it is written where that matters: whether it states dollars.
        limit=text if beside.unit == "usd" else str(item),
        rates=((item.amount, item.get_expiry() * 1_000_000),),
        cost=cost,
        **keywords_of(item)._asdict(),
    )
