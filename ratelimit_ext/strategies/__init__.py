"""The algorithms: each is a file of Lua, which runs in every engine, and a file of Python.

Python has what is known of a strategy without its buckets: its traits, the numbers that its Lua
gets, and what its answers mean. Both compute on integers alone. No strategy imports another. To add
one, write both files and call :func:`register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Final, cast

from ratelimit_ext.core import traits
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.concurrency import Concurrency
from ratelimit_ext.strategies.fair_concurrency import FairConcurrency
from ratelimit_ext.strategies.fair_window import FairWindow, MemberShare
from ratelimit_ext.strategies.fixed_window import FixedWindow
from ratelimit_ext.strategies.guards.block import Block
from ratelimit_ext.strategies.guards.quota import Quota
from ratelimit_ext.strategies.guards.surge import Surge
from ratelimit_ext.strategies.line import Line
from ratelimit_ext.strategies.reservations import Reservations
from ratelimit_ext.strategies.session import Session
from ratelimit_ext.strategies.sliding_window import SlidingWindow
from ratelimit_ext.strategies.sliding_window_counter import SlidingWindowCounter
from ratelimit_ext.strategies.strategy import Strategy
from ratelimit_ext.strategies.token_bucket import TokenBucket

#: The strategies by name, and other names of theirs.
STRATEGIES: Final = MappingProxyType(cast(dict[str, Strategy], traits.TABLE))
ALIASES: Final[Mapping[str, str]] = MappingProxyType(traits.ALIASES)


def register(strategy: Strategy, *fair: Strategy) -> None:
    """Make a strategy known by its name, with what decides it if members of a group share a limit.
    Raises ``ValueError`` if another has its name or code."""
    for other in STRATEGIES.values():
        if strategy.name == other.name or strategy.code == other.code:
            raise ValueError(f"{strategy.name!r} ({strategy.code}): {other.name!r} has this name")
    traits.TABLE[strategy.name] = strategy
    strategy.fair = fair
    for variant in (strategy, *fair):
        variant.holding = holding = Reservations(variant)
        holding.fragments()  # reads the Lua of both, once
        if "wait" in strategy.options:
            variant.line, holding.line = Line(variant), Line(holding)
            holding.line.fragments()
    traits.ALIASES.update(dict.fromkeys(strategy.aliases, strategy.name))


def strategy_named(name: str) -> Strategy:
    """Return the strategy of this name. Raises ``ConfigurationError`` if it is unknown."""
    return cast(Strategy, traits.traits_of(name))


#: Returns the strategy that carries out a limit, with reservations if its costs are estimates.
strategy_of: Final[Callable[[Limit], Strategy]] = attrgetter("algorithm")


def check_change(limit: Limit, verb: str) -> None:
    """Raise ``ValueError`` for a change that the limit's strategy does not take."""
    taken = strategy_of(limit).changes
    if verb not in taken:
        raise ValueError(
            f"{limit}: the strategy {limit.traits.name!r} does not take the change {verb!r}; "
            f"it takes {', '.join(map(repr, taken))}."
        )


register(TokenBucket())
register(SlidingWindow())
register(SlidingWindowCounter())
register(FixedWindow(), FairWindow(), MemberShare())
register(Concurrency(), FairConcurrency())
register(Session())
register(Surge())
register(Block())
register(Quota())
