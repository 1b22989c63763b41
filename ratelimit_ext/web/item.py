"""Rate limit items that carry what Flask-Limiter's own have no room for.

``LimitManager`` and the ``flask limiter`` commands hand on nothing of a limit but its
``RateLimitItem``, so strategy, burst and the rest ride on it, and count in its equality: two limits
that differ only in their strategy are two limits.
"""

from __future__ import annotations

from functools import lru_cache, total_ordering
from typing import Any, Final, NamedTuple

from limits import RateLimitItem
from limits.limits import GRANULARITIES

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.money import shown_dollars
from ratelimit_ext.strategies import ALIASES, strategy_named


class Keywords(NamedTuple):
    """What is said of a limit beside its string. The defaults say nothing."""

    strategy: str | None = None
    burst: int | None = None
    unit: str = "requests"
    name: str = ""
    mode: str = "enforce"
    anchor: str | None = None
    timezone: str = "UTC"
    multiple: int | None = None


PLAIN = Keywords()

#: Limits that state no amount, as they are written.
_WORDS: Final = {"block": "unless blocked", "reported": "as reported"}


def _extended(stock: type[RateLimitItem]) -> type[RateLimitItem]:
    """A subclass of a stock item with room for keywords.

    The body must not name ``GRANULARITY``: the stock metaclass would make the subclass what
    ``parse`` returns for that word.
    """

    def equal(self: Any, other: object) -> bool:
        return stock.__eq__(self, other) and self.keywords == keywords_of(other)

    def hashed(self: Any) -> int:
        return hash((stock.__hash__(self), self.keywords))

    def before(self: Any, other: RateLimitItem) -> bool:
        return rank(self) < rank(other)

    def shown(self: Any) -> str:
        keywords = self.keywords
        if keywords.strategy in _WORDS:
            return _WORDS[keywords.strategy]
        if keywords.unit == "calls":
            return f"{self.amount} in flight"
        stated: str = stock.__repr__(self)
        if keywords.unit == "usd":
            period = f"{self.multiples} {self.GRANULARITY.name}"
            stated = f"{shown_dollars(self.amount)} usd per {period}"
        return stated if keywords.multiple is None else f"{stated} or {keywords.multiple} x usual"

    body = {
        "__slots__": ["keywords"],
        "__eq__": equal,
        "__hash__": hashed,
        "__lt__": before,
        "__repr__": shown,
    }
    metaclass: Any = type(stock)
    extended: type[RateLimitItem] = metaclass(f"Extended{stock.__name__}", (stock,), body)
    return total_ordering(extended)


_EXTENDED = {stock: _extended(stock) for stock in GRANULARITIES.values()}


def with_keywords(item: RateLimitItem, keywords: Keywords) -> RateLimitItem:
    """The item with keywords; the item itself where they say nothing."""
    if keywords == PLAIN:
        return item
    extended: Any = _EXTENDED[type(item)](item.amount, item.multiples, item.namespace)
    extended.keywords = keywords
    return extended  # type: ignore[no-any-return]


def keywords_of(item: object) -> Keywords:
    """The item's keywords; a stock item has none."""
    keywords: Keywords = getattr(item, "keywords", PLAIN)
    return keywords


def rank(item: RateLimitItem) -> tuple[int, int]:
    """Shorter periods come first, smaller amounts before larger ones."""
    return item.get_expiry(), item.amount


def limit_of(item: RateLimitItem, default_strategy: str) -> Limit:
    """The core's limit for an item; raises ``ConfigurationError`` where it cannot be carried out.

    ``default_strategy`` is the extension's, for items that name none.
    """
    return _limit_of(item.amount, item.get_expiry(), keywords_of(item), default_strategy)


@lru_cache(maxsize=4096)
def _limit_of(amount: int, period_s: int, keywords: Keywords, default_strategy: str) -> Limit:
    given = keywords.strategy or default_strategy
    strategy = ALIASES.get(given, given)
    strategy_named(strategy)
    return Limit(
        amount=amount,
        period_us=period_s * 1_000_000,
        strategy=strategy,
        burst=keywords.burst,
        unit=keywords.unit,
        name=keywords.name,
        mode=keywords.mode,
        anchor=keywords.anchor,
        timezone=keywords.timezone,
        multiple=keywords.multiple,
    )
