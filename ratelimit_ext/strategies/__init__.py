"""The algorithms: one file of Python (the reference) and one of Lua (what runs) for each.

Both compute on integers alone and agree to the digit. A strategy is a module with the functions
of :class:`~ratelimit_ext.strategies.strategy.Strategy`; no strategy imports another.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from ratelimit_ext.core.errors import ConfigurationError, did_you_mean
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies import (
    concurrency,
    fixed_window,
    sliding_window,
    sliding_window_counter,
    token_bucket,
)
from ratelimit_ext.strategies.guards import block, provider_quota, surge
from ratelimit_ext.strategies.reservations import Holding
from ratelimit_ext.strategies.strategy import Strategy

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "token-bucket": cast(Strategy, token_bucket),
        "sliding-window": cast(Strategy, sliding_window),
        "sliding-window-counter": cast(Strategy, sliding_window_counter),
        "fixed-window": cast(Strategy, fixed_window),
        "concurrency": cast(Strategy, concurrency),
        "surge": cast(Strategy, surge),
        "block": cast(Strategy, block),
        "reported": cast(Strategy, provider_quota),
    }
)

#: The same for limits whose calls cost an estimate until they are over.
HOLDING: Mapping[str, Holding] = MappingProxyType(
    {name: Holding(strategy) for name, strategy in STRATEGIES.items()}
)

#: Flask-Limiter's name for the exact log, which our sliding window serves.
ALIASES: Mapping[str, str] = MappingProxyType({"moving-window": "sliding-window"})


def strategy_named(name: str) -> Strategy:
    """The strategy of this name, or a :class:`ConfigurationError` that lists the names."""
    strategy = STRATEGIES.get(ALIASES.get(name, name))
    if strategy is None:
        known = sorted([*STRATEGIES, *ALIASES])
        raise ConfigurationError(
            f"unknown strategy {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return strategy


def strategy_of(limit: Limit) -> Strategy:
    """The strategy that carries out the limit, with holds where its costs are estimates."""
    if limit.held:
        return HOLDING[ALIASES.get(limit.strategy, limit.strategy)]
    return strategy_named(limit.strategy)
