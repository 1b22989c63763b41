"""What the core and its users need to know of a strategy, whatever its algorithm.

The table below is filled by :mod:`ratelimit_ext.strategies`, which the core does not import.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from ratelimit_ext.core.errors import ConfigurationError, did_you_mean

#: What any strategy may count; ``usd`` is counted in whole micro-dollars.
Unit: TypeAlias = Literal["requests", "tokens", "input_tokens", "output_tokens", "usd"]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
#: The strategies that a limit chooses by name. Its string chooses the others.
StrategyName: TypeAlias = Literal[
    "token-bucket", "sliding-window", "sliding-window-counter", "fixed-window", "moving-window"
]


class Form(NamedTuple):
    """How a strategy is written in a limit string, beside "amount per period".

    ``pattern`` is a verbose regular expression, matched without case. ``{rate}`` in it stands for
    an amount per period. Its groups ``amount`` and ``multiple`` are whole numbers. ``text`` is the
    limit as it is shown: ``{rate}``, ``{amount}`` and ``{multiple}`` are filled in. ``keyword`` is
    a word of this form alone: an invalid string with it is answered with the example. ``amount``
    and ``period`` apply if the pattern has none.
    """

    pattern: str
    text: str
    example: str
    keyword: str
    unit: str | None = None
    amount: int = 1
    period: str = "second"

    @property
    def has_rate(self) -> bool:
        return "{rate}" in self.pattern

    @property
    def has_amount(self) -> bool:
        return self.has_rate or "(?P<amount>" in self.pattern


class Traits:
    #: As in decorators and policies.
    name: str
    #: Two letters that name the algorithm in keys and in the arguments of scripts.
    code: str
    aliases: tuple[str, ...] = ()
    #: ``None``: it is written as an amount per period, and chosen by its name.
    form: Form | None = None
    #: The units that it counts.
    units: tuple[str, ...] = UNITS
    #: The options of a limit that this strategy has and most others do not.
    options: tuple[str, ...] = ()
    #: A guard protects something else than an allowance. It overrides no other limits, callers do
    #: not see it in headers and answers, and no cost exceeds its capacity.
    guard: bool = False
    #: Why a request is denied, and the sentence for it. ``limit``: the caller's allowance is used,
    #: and the sentence says how to go on.
    denial_reason: str = "limit"
    denial_sentence: str = ""
    #: Whether every call counts as one. Such a cost is never estimated.
    one_per_call: bool = False
    #: Whether its buckets end with the calls that they count.
    ends_with_calls: bool = False
    #: Whether the count is kept elsewhere, and this one only follows it: no estimate is reserved.
    external: bool = False
    #: Whether one in shadow is judged: a block has no amount to try.
    can_shadow: bool = True
    #: The changes that its buckets take, by their verbs. ``unblock``: an operator may clear them.
    changes: tuple[str, ...] = ("adjust",)
    #: The same strategy with reservations, once it is registered.
    holding: Traits
    #: The same with requests that wait, if they can.
    line: Traits
    #: What decides a limit that members of a group share fairly, and each one's part of a budget.
    fair: tuple[Traits, ...] = ()


#: The strategies by name.
TABLE: Final[dict[str, Traits]] = {}
#: Other names of theirs.
ALIASES: Final[dict[str, str]] = {}


def traits_of(name: str) -> Traits:
    """Return the strategy's traits. Raises :class:`ConfigurationError` with the known names."""
    traits = TABLE.get(ALIASES.get(name, name))
    if traits is None:
        names = sorted([*TABLE, *ALIASES])
        raise ConfigurationError(
            f"unknown strategy {name!r}; known: {', '.join(names)}.{did_you_mean(name, names)}"
        )
    return traits


def units() -> tuple[str, ...]:
    """Return all units, with those that a single strategy counts."""
    return tuple(dict.fromkeys([*UNITS, *(unit for row in TABLE.values() for unit in row.units)]))


def strategies_taking(change: str) -> tuple[str, ...]:
    return tuple(name for name, traits in TABLE.items() if change in traits.changes)


def strategies_with(option: str) -> tuple[str, ...]:
    return tuple([name for name, traits in TABLE.items() if option in traits.options])
