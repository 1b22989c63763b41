"""The algorithms: one file of Python (the reference) and one of Lua (what runs) for each.

Both compute on integers alone and agree to the digit. No strategy imports another. To add one,
write both files and call :func:`register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, cast

from ratelimit_ext.core import traits
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.concurrency import Concurrency
from ratelimit_ext.strategies.fixed_window import FixedWindow
from ratelimit_ext.strategies.guards.block import Block
from ratelimit_ext.strategies.guards.quota import Quota
from ratelimit_ext.strategies.guards.surge import Surge
from ratelimit_ext.strategies.reservations import Reservations
from ratelimit_ext.strategies.sliding_window import SlidingWindow
from ratelimit_ext.strategies.sliding_window_counter import SlidingWindowCounter
from ratelimit_ext.strategies.strategy import Strategy
from ratelimit_ext.strategies.token_bucket import TokenBucket

_strategies: Final[dict[str, Strategy]] = {}
_with_reservations: Final[dict[Strategy, Strategy]] = {}

#: The strategies by name, and other names of theirs.
STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(_strategies)
ALIASES: Final[Mapping[str, str]] = MappingProxyType(traits.ALIASES)


def register(strategy: Strategy) -> None:
    """Make a strategy known by its name. Raises ``ValueError`` if another has its name or code."""
    for other in _strategies.values():
        if strategy.name == other.name or strategy.code == other.code:
            raise ValueError(f"{strategy.name!r} ({strategy.code}): {other.name!r} has this name")
    _strategies[strategy.name] = traits.TABLE[strategy.name] = strategy
    _with_reservations[strategy] = Reservations(strategy)
    traits.ALIASES.update(dict.fromkeys(strategy.aliases, strategy.name))


def strategy_named(name: str) -> Strategy:
    """Return the strategy of this name. Raises ``ConfigurationError`` if it is unknown."""
    return cast(Strategy, traits.traits_of(name))


def strategy_of(limit: Limit) -> Strategy:
    """Return the strategy that carries out the limit, with reservations if its costs are
    estimates."""
    strategy = cast(Strategy, limit.traits)
    return _with_reservations[strategy] if limit.held else strategy


register(TokenBucket())
register(SlidingWindow())
register(SlidingWindowCounter())
register(FixedWindow())
register(Concurrency())
register(Surge())
register(Block())
register(Quota())
for _strategy in _with_reservations.values():
    _strategy.fragments()  # reads the Lua of both, once
