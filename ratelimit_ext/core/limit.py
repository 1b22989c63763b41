"""A limit: an allowance of some amount per period, by a named strategy, in a unit."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Final

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.money import MICRO
from ratelimit_ext.core.spelling import did_you_mean

#: ``usd`` is counted in whole micro-dollars; ``calls`` are those in flight.
UNITS: Final = ("requests", "tokens", "input_tokens", "output_tokens", "usd", "calls")
MODES: Final = ("enforce", "shadow")
ANCHORS: Final = ("day", "month")

#: Strategies that are nobody's allowance: callers are not told of them, and what they hold has no
#: amount that a cost could exceed.
GUARDS: Final = ("block", "reported", "surge")
MOST_MULTIPLE: Final = 1000

#: Amounts reach a million dollars in micro-dollars, and periods almost nine years. Within both,
#: every sum and product of the strategies stays below 2**53, where Lua's doubles are still exact.
MOST_AMOUNT: Final = 10**12
LONGEST_PERIOD_US: Final = 2**48


@dataclass(kw_only=True, unsafe_hash=True)
class LimitOptions:
    """The keywords of a limit beside its string: the same in decorators, ``app.config`` and TOML.

    The only list of them. A value: it never changes once it is made. It is not declared frozen
    because Flask-Limiter's definitions, which take these keywords by inheritance, are not.
    """

    #: The algorithm; ``None``: what the string states, else the extension's default.
    strategy: str | None = None
    #: What a token bucket holds at most; ``None``: the amount.
    burst: int | None = None
    #: What is counted; ``None``: what the string states, else requests.
    unit: str | None = field(default=None, metadata={"allowed": UNITS})
    #: The limit's name in headers and answers.
    name: str = ""
    #: ``enforce``, or ``shadow``: evaluated and counted, never enforced.
    mode: str = field(default="enforce", metadata={"allowed": MODES})
    #: ``day`` or ``month``: a fixed window of the calendar in ``timezone``.
    anchor: str | None = field(default=None, metadata={"allowed": ANCHORS})
    timezone: str = "UTC"


#: The names of the keywords.
OPTION_NAMES: Final = tuple(each.name for each in fields(LimitOptions))
NO_OPTIONS: Final = LimitOptions()


@dataclass(frozen=True, slots=True)
class Limit:
    """An allowance of ``amount`` per ``period_us`` microseconds.

    ``burst`` is what a token bucket holds at most (default: the amount). ``anchor`` ties a fixed
    window to the calendar of ``timezone``. ``multiple`` is how many times the usual a surge may
    use. A ``shadow`` limit is decided and counted, and never enforced. Raises
    :class:`ConfigurationError` where the values cannot go together.
    """

    amount: int
    period_us: int
    strategy: str = "fixed-window"
    burst: int | None = None
    unit: str = "requests"
    name: str = ""
    mode: str = "enforce"
    anchor: str | None = None
    timezone: str = "UTC"
    multiple: int | None = None
    #: Whether a cost is an estimate until the call is over, and its lease gives it back.
    held: bool = field(init=False, repr=False, compare=False)
    #: Whether it is an allowance of the caller's, which answers tell about.
    told: bool = field(init=False, repr=False, compare=False)
    #: The largest cost that can ever pass, in units.
    capacity: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._within("amount", self.amount, MOST_AMOUNT)
        self._within("period_us", self.period_us, LONGEST_PERIOD_US)
        if self.burst is not None:
            self._within("burst", self.burst, MOST_AMOUNT)
            if self.strategy != "token-bucket":
                raise ConfigurationError(
                    f"{self}: burst={self.burst} means nothing to the strategy {self.strategy!r}; "
                    "only 'token-bucket' has a burst. Remove it or change the strategy."
                )
        self._one_of("unit", self.unit, UNITS)
        self._one_of("mode", self.mode, MODES)
        if (self.unit == "calls") != (self.strategy == "concurrency"):
            raise ConfigurationError(
                f"{self}: the strategy 'concurrency' and the unit 'calls' belong together; found "
                f"strategy {self.strategy!r} and unit {self.unit!r}. Write 'N in flight'."
            )
        if self.strategy == "block" and self.unit != "requests":
            raise ConfigurationError(
                f"{self}: the strategy 'block' counts nothing; found unit {self.unit!r}. Leave it "
                "out, or write an amount per period."
            )
        if self.strategy == "reported" and self.unit == "usd":
            raise ConfigurationError(
                f"{self}: the strategy 'reported' knows no money; found unit 'usd'. Leave it out, "
                "or write an amount per period."
            )
        if (self.multiple is not None) != (self.strategy == "surge"):
            raise ConfigurationError(
                f"{self}: the strategy 'surge' and a multiple belong together; found strategy "
                f"{self.strategy!r}. Write '1 usd/hour or 20 x usual'."
            )
        if self.multiple is not None:
            self._within("multiple", self.multiple, MOST_MULTIPLE)
        if self.anchor is not None:
            self._one_of("anchor", self.anchor, ANCHORS)
            if self.strategy != "fixed-window":
                raise ConfigurationError(
                    f"{self}: anchor={self.anchor!r} means nothing to the strategy "
                    f"{self.strategy!r}; only 'fixed-window' can be anchored to the calendar."
                )
        # Every request asks for these, several times: attributes, and no properties.
        derive = object.__setattr__
        derive(self, "held", self.unit != "requests" and self.strategy != "reported")
        derive(self, "told", self.strategy not in GUARDS)
        capacity = MOST_AMOUNT if self.strategy in GUARDS else self.burst or self.amount
        derive(self, "capacity", capacity)

    def outside(self, units: int) -> int | Decimal:
        """An amount of the limit for a person: dollars are dollars."""
        return Decimal(units) / MICRO if self.unit == "usd" else units

    def _within(self, word: str, value: object, most: int) -> None:
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigurationError(
                f"limit {self.name or self.strategy!r}: {word} is {value!r}; "
                f"a whole number from 1 to {most} is allowed."
            )

    def _one_of(self, word: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ConfigurationError(
                f"{self}: {word} is {value!r}; allowed: {', '.join(map(repr, allowed))}."
                f"{did_you_mean(str(value), allowed)}"
            )

    def __str__(self) -> str:
        seconds, rest = divmod(self.period_us, 1_000_000)
        period = str(seconds) if not rest else f"{self.period_us / 1_000_000:g}"
        label = f"{self.name}: " if self.name else ""
        return f"{label}{self.amount} per {period} s"
