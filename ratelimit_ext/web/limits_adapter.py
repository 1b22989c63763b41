"""The items of the library `limits` that carry a limit's options.

``LimitManager`` and the ``flask limiter`` commands pass on nothing of a limit but its
``RateLimitItem``. So the options are part of the item and of its equality: two limits that differ
only in their strategy are two limits.
"""

from __future__ import annotations

from functools import lru_cache, total_ordering
from typing import Any

from limits import RateLimitItem
from limits.limits import GRANULARITIES

from ratelimit_ext.core.limit import NO_OPTIONS, Limit, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit, parse
from ratelimit_ext.strategies import ALIASES, strategy_named


def _extended(stock: type[RateLimitItem]) -> type[RateLimitItem]:
    """A subclass of a stock item with room for a parsed limit and its options.

    The body must not name ``GRANULARITY``: the stock metaclass would make the subclass what
    `limits` parses that word to.
    """

    def identity(self: Any) -> tuple[LimitOptions, int | None]:
        return self.options, self.parsed.multiple

    def equal(self: Any, other: object) -> bool:
        return stock.__eq__(self, other) and identity(self) == (
            options_of(other),
            _multiple_of(other),
        )

    def hashed(self: Any) -> int:
        return hash((stock.__hash__(self), *identity(self)))

    def before(self: Any, other: RateLimitItem) -> bool:
        return rank(self) < rank(other)

    body = {
        "__slots__": ["options", "parsed"],
        "__eq__": equal,
        "__hash__": hashed,
        "__lt__": before,
        "__repr__": lambda self: str(self.parsed),
    }
    metaclass: Any = type(stock)
    extended: type[RateLimitItem] = metaclass(f"Extended{stock.__name__}", (stock,), body)
    return total_ordering(extended)


_EXTENDED = {period: _extended(stock) for period, stock in GRANULARITIES.items()}


def items_of(text: object, options: LimitOptions) -> tuple[RateLimitItem, ...]:
    """The items of a limit string. Raises ``ConfigurationError`` for an invalid one."""
    return tuple([_item(parsed, parsed.merged(options)) for parsed in parse(text)])


def _item(parsed: ParsedLimit, options: LimitOptions) -> RateLimitItem:
    """The item; a stock one if there is nothing that it could not carry."""
    amount, count, period = parsed.amount, parsed.count, parsed.period
    if options == NO_OPTIONS:
        return GRANULARITIES[period](amount, count)
    item: Any = _EXTENDED[period](amount, count)
    item.options, item.parsed = options, parsed
    return item  # type: ignore[no-any-return]


def options_of(item: object) -> LimitOptions:
    """The item's options; a stock item has none."""
    options: LimitOptions = getattr(item, "options", NO_OPTIONS)
    return options


def _multiple_of(item: object) -> int | None:
    parsed: ParsedLimit | None = getattr(item, "parsed", None)
    return parsed.multiple if parsed else None


def rank(item: RateLimitItem) -> tuple[int, int]:
    """Shorter periods come first, smaller amounts before larger ones."""
    return item.get_expiry(), item.amount


def limit_of(item: RateLimitItem, default_strategy: str) -> Limit:
    """The core's limit for an item. Raises ``ConfigurationError`` for an invalid combination.

    ``default_strategy`` is the extension's, for items without a strategy.
    """
    parsed: ParsedLimit = getattr(item, "parsed", None) or ParsedLimit(
        str(item), item.amount, item.multiples, item.GRANULARITY.name
    )
    return _limit_of(parsed, options_of(item), default_strategy)


@lru_cache(maxsize=4096)
def _limit_of(parsed: ParsedLimit, options: LimitOptions, default_strategy: str) -> Limit:
    strategy = parsed.strategy or options.strategy or default_strategy
    strategy_named(strategy)
    return parsed.limit(options, ALIASES.get(strategy, strategy))
