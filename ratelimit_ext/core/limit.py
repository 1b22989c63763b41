"""A limit: an allowance of some amount per period, by a named strategy, in a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, get_args
from zlib import crc32

from ratelimit_ext.core.errors import ConfigurationError, did_you_mean
from ratelimit_ext.core.money import MICRO, micro_dollars, shown_dollars
from ratelimit_ext.core.traits import (
    TABLE,
    UNITS,
    StrategyName,
    Traits,
    Unit,
    strategies_with,
    traits_of,
    units,
)

Mode: TypeAlias = Literal["enforce", "shadow"]
Anchor: TypeAlias = Literal["day", "week", "month"]
WeekDay: TypeAlias = Literal[
    "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"
]
OnFailure: TypeAlias = Literal["open", "closed", "local"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
#: The mode of a limit that a ``candidate`` makes: a shadow with buckets of its own.
CANDIDATE: Final = "candidate"
ANCHORS: Final[tuple[Anchor, ...]] = get_args(Anchor)
#: In the order of ``datetime.weekday()``.
WEEK_DAYS: Final[tuple[WeekDay, ...]] = get_args(WeekDay)
ON_FAILURES: Final[tuple[OnFailure, ...]] = get_args(OnFailure)
MOST_MULTIPLE: Final = 1000

#: Flask-Limiter's default.
DEFAULT_STRATEGY: Final = "fixed-window"

#: Amounts reach a million dollars in micro-dollars, and periods almost nine years. Within both,
#: every sum and product of the strategies stays below 2**53, where Lua's doubles are still exact.
MOST_AMOUNT: Final = 10**12
LONGEST_PERIOD_US: Final = 2**48


@dataclass(kw_only=True, unsafe_hash=True)
class LimitOptions:
    """The keywords of a limit beside its string: the same in decorators, ``app.config`` and TOML.

    The only list of them. An immutable value. It is not declared frozen because Flask-Limiter's
    definitions, which inherit these keywords, are not.
    """

    #: The algorithm; ``None``: that of the string, else the extension's default.
    strategy: StrategyName | None = None
    #: What a token bucket holds at most; ``None``: the amount.
    burst: int | None = None
    #: What is counted; ``None``: that of the string, else requests.
    unit: Unit | None = field(default=None, metadata={"allowed": units})
    #: The limit's name in headers and answers.
    name: str = ""
    #: ``enforce``, or ``shadow``: evaluated and counted, never enforced.
    mode: Mode = field(default="enforce", metadata={"allowed": lambda: MODES})
    #: ``day``, ``week`` or ``month``: a fixed window of the calendar in ``timezone``.
    anchor: Anchor | None = field(default=None, metadata={"allowed": lambda: ANCHORS})
    timezone: str = "UTC"
    #: The first day of a calendar week.
    week_starts: WeekDay = field(default="monday", metadata={"allowed": lambda: WEEK_DAYS})
    #: After how long without a charge a session ends, as "30 minutes"; an hour if it is ``None``.
    idle: str | None = None
    #: While the storage is down: ``open`` passes, ``closed`` denies, ``local`` enforces the host's
    #: share. ``None``: ``closed`` for dollars, else ``local``.
    on_failure: OnFailure | None = field(default=None, metadata={"allowed": lambda: ON_FAILURES})
    #: Another amount to try, as a limit string: evaluated beside the limit, in shadow.
    candidate: str | None = None
    #: Whether ``deduct_when`` refunds what was charged before the view, instead of charging after
    #: it.
    reserve: bool = False
    #: What a class of traffic may always use, the highest class first: all lower ones leave it. 0
    #: declares a class that keeps nothing.
    keep: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    #: The function that returns the class of a request, or in a policy the name of an identity.
    priority: Callable[[], Any] | str | None = None
    #: How long a request may wait for its turn instead of being refused, as "20 seconds".
    wait: str | None = None
    #: The function, or in a policy the name of an identity, that returns which member of a group
    #: has sent the request: the group's budget, or its calls in flight, are shared among its
    #: members.
    fair: Callable[[], Any] | str | None = None
    #: How much faster than time the group may spend before only members below their share may.
    pace: float | None = None
    #: The hours of a day in which the pace counts, as "8-18".
    hours: str | None = None
    #: How much is added to waits, so that not all callers come back at once: up to 10 %.
    spread: str | bool | None = None


class LimitKeywords(TypedDict, total=False):
    """The same for signatures: see :class:`LimitOptions`."""

    strategy: StrategyName | None
    burst: int | None
    unit: Unit | None
    name: str
    mode: Mode
    anchor: Anchor | None
    timezone: str
    week_starts: WeekDay
    idle: str | None
    on_failure: OnFailure | None
    candidate: str | None
    reserve: bool
    keep: Mapping[str, Any] | tuple[tuple[str, Any], ...]
    priority: Callable[[], Any] | str | None
    wait: str | None
    fair: Callable[[], Any] | str | None
    pace: float | None
    hours: str | None
    spread: str | bool | None


#: The names of the keywords.
OPTION_NAMES: Final = tuple(option.name for option in fields(LimitOptions))
NO_OPTIONS: Final = LimitOptions()


class Part(NamedTuple):
    """Who uses a limit: a class of traffic, or a member of a group that shares calls in flight."""

    #: How many classes are higher, which of them are kept a part, and how many units together.
    rank: int = 0
    kept_for: tuple[str, ...] = ()
    kept: int = 0
    member: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """An allowance of ``amount`` per ``period_us`` microseconds. An amount of 0 denies everything.

    ``burst`` is what a token bucket holds at most (default: the amount). ``anchor`` ties a fixed
    window to the calendar of ``timezone``. ``multiple`` is a second number that the form of some
    strategies states. A ``shadow`` limit is decided and counted, and never enforced.
    ``on_failure`` is what happens while the storage is down; ``None``: the default. Raises
    :class:`ConfigurationError` for values that cannot go together.
    """

    amount: int
    period_us: int
    strategy: str = DEFAULT_STRATEGY
    burst: int | None = None
    unit: str = "requests"
    name: str = ""
    mode: str = "enforce"
    anchor: str | None = None
    timezone: str = "UTC"
    week_starts: str = "monday"
    multiple: int | None = None
    on_failure: str | None = None
    #: The amount that is tried in shadow, beside this one.
    candidate: int | None = None
    reserve: bool = field(default=False, repr=False, compare=False)
    #: What each class of traffic is kept, in units, the highest class first.
    keep: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    #: The function that returns the class of a request.
    priority: Any = field(default=None, repr=False, compare=False)
    #: Whether the members of a group share it.
    fair: bool = field(default=False, repr=False)
    #: Of the line to which the group may spend: how steep it is, in thousandths, and its hours.
    pace: int = field(default=1000, repr=False)
    hours: str | None = field(default=None, repr=False)
    #: Whether it counts a member of such a group beside it: see :meth:`share`.
    is_share: bool = field(default=False, repr=False)
    #: How much is added to a wait at most, in percent.
    spread: int = field(default=0, repr=False, compare=False)
    #: Whether many callers have its identities in common.
    common: bool = field(default=False, repr=False, compare=False)
    #: How long a request may wait for its turn, in microseconds.
    wait: int | None = None
    #: For whom :meth:`of_class` or :meth:`of_member` has made it.
    part: Part = field(default=Part(), repr=False, compare=False)
    # Attributes instead of properties, as every request reads them several times.
    traits: Traits = field(init=False, repr=False, compare=False)
    #: Whether a cost is an estimate until the call is over, reserved under a lease.
    held: bool = field(init=False, repr=False, compare=False)
    #: What carries it out: the strategy, with reservations if its costs are held.
    algorithm: Traits = field(init=False, repr=False, compare=False)
    #: Whether what it would deny is counted.
    is_shadow: bool = field(init=False, repr=False, compare=False)
    #: Whether callers see it in headers and answers.
    visible: bool = field(init=False, repr=False, compare=False)
    #: The largest cost that can ever pass, in units.
    capacity: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        traits = traits_of(self.strategy)
        self._within("amount", self.amount, MOST_AMOUNT, least=1 if traits.guard else 0)
        self._within("period_us", self.period_us, LONGEST_PERIOD_US)
        self._one_of("mode", self.mode, (CANDIDATE,) if self.mode == CANDIDATE else MODES)
        self._one_of("unit", self.unit, UNITS if self.unit in UNITS else units())
        if self.on_failure is not None:
            self._one_of("on_failure", self.on_failure, ON_FAILURES)
        if self.unit not in traits.units:
            raise ConfigurationError(self._foreign_unit(traits))
        for word, most in (("burst", MOST_AMOUNT), ("multiple", MOST_MULTIPLE)):
            if getattr(self, word) is not None:
                self._within(word, getattr(self, word), most)
        if self.anchor is not None:
            self._one_of("anchor", self.anchor, ANCHORS)
            self._one_of("week_starts", self.week_starts, WEEK_DAYS)
        for word in ("burst", "multiple", "anchor", "wait"):
            if getattr(self, word) is not None and word not in traits.options:
                raise ConfigurationError(self._foreign_option(word))
        if self.multiple is None and "multiple" in traits.options:
            assert traits.form is not None
            raise ConfigurationError(
                f"{self}: the strategy {self.strategy!r} needs a multiple. "
                f"Write {traits.form.example!r}."
            )
        derive = object.__setattr__
        derive(self, "traits", traits)
        derive(self, "held", self.unit != "requests" and not traits.external)
        derive(self, "algorithm", self._algorithm(traits))
        derive(self, "is_shadow", self.mode != "enforce" and traits.can_shadow)
        derive(self, "visible", not traits.guard)
        capacity = (self.burst or self.amount) if self.amount else 0
        derive(self, "capacity", MOST_AMOUNT if traits.guard else capacity)
        self._check_keep()
        if self.wait is not None and self.unit == "usd":
            raise ConfigurationError(
                f"{self}: a budget takes no wait, because money does not come back soon. Remove it."
            )

    def words(self) -> tuple[tuple[str, Any], ...]:
        """Return what makes an equal one with :func:`limit_of`, without defaults. Calls in flight
        have their wait: a call that ends wakes those in line."""
        given = {word: getattr(self, word) for word in _DEFAULTS}
        words = [(name, value) for name, value in given.items() if value != _DEFAULTS[name]]
        if self.traits.ends_with_calls and self.wait is not None:
            words.append(("wait", self.wait))
        return tuple(words)

    def with_candidate(self) -> Limit | None:
        """Return the limit with its candidate as the amount, in shadow; ``None`` without one."""
        if (amount := self.candidate) is None:
            return None
        new: dict[str, Any] = {"mode": CANDIDATE, "name": self.label, "keep": self.kept_of(amount)}
        new["fair"] = False  # the amount alone is tried
        return replace(self, amount=amount, candidate=None, **new)

    def kept_of(self, amount: int) -> tuple[tuple[str, int], ...]:
        """Return what classes keep of another amount: the same shares, but one unit instead of a
        fraction while units are left. What a bucket holds stays as it is, if it is written."""
        if self.burst is not None:
            return self.keep
        kept, left = [], max(0, amount - 1)  # the lowest class has one
        for name, part in self.keep if self.amount else ():
            share = min(max(min(part, 1), part * amount // self.amount), left)
            kept.append((name, share))
            left -= share
        return tuple(kept)

    def of_class(self, name: str) -> Limit:
        """Return the same bucket as a class of traffic may use it: it leaves what all higher
        classes are kept. A class that is not listed comes last.

        >>> limit = Limit(100, 60_000_000, keep=(("interactive", 40), ("normal", 20)))
        >>> [limit.of_class(name).amount for name in ("interactive", "normal", "batch")]
        [100, 60, 40]
        """
        place = next((i for i, (kept, _) in enumerate(self.keep) if kept == name), len(self.keep))
        names = tuple([name for name, units in self.keep[:place] if units])
        units = sum([units for _, units in self.keep[:place]]) if self.amount else 0
        words: dict[str, Any] = {"keep": (), "priority": None, "part": Part(place, names, units)}
        if units:
            words["burst" if "burst" in self.traits.options else "amount"] = self.capacity - units
        return self._derived(**words)

    def of_member(self, name: str) -> Limit:
        """Return the same bucket for a call of this member of the group. Members are known by a
        number: two with the same one are taken for one."""
        part = self.part._replace(member=crc32(name.encode("utf-8", "surrogatepass")))
        return self._derived(part=part)

    def share(self) -> Limit:
        """Return the limit that counts one member of the group, beside this one."""
        words: dict[str, Any] = {"fair": False, "is_share": True, "keep": (), "priority": None}
        return self._derived(name=f"{self.label}-share", candidate=None, **words)

    def _derived(self, **words: Any) -> Limit:
        """Return the limit with these words, as the same object each time."""
        differs = self.part, self.common, self.reserve, self.spread, self.priority
        return _replaced(self, tuple(words.items()), *differs)

    @property
    def has_shares(self) -> bool:
        """Whether each member of a group has a share of it, which is counted beside it."""
        return self.fair and not self.traits.ends_with_calls

    @property
    def fair_text(self) -> str:
        """How members of a group share it, for a person; empty if they do not."""
        hours = "" if self.hours is None else f" in hours {self.hours}"
        pace = f", pace {self.pace / 1000:g}{hours}" if self.has_shares else ""
        return f"fair{pace}" if self.fair else ""

    @property
    def keep_text(self) -> str:
        kept = [(name, self.outside(units)) for name, units in self.keep if units]
        return ", ".join([f"{units} kept for {name}" for name, units in kept])

    def is_of(self, other: Limit) -> bool:
        """Return whether both are one limit, for the same class or for two."""
        words = {word: getattr(other, word) for word in ("amount", "burst", "wait")}
        wholes = {limit.capacity + limit.part.kept for limit in (self, other)}
        return self == other or (len(wholes) == 1 and replace(self, **words) == other)

    def never_admits(self, cost: Any) -> bool:
        """Return whether each call would be denied for this cost. An amount of 0 is meant to do
        that; a function, or an estimate in the place of the default, may return any cost."""
        if callable(cost) or (cost == 1 and self.held) or self.mode != "enforce":
            return False
        units = micro_dollars(cost) if self.unit == "usd" else cost
        return bool(units > self.capacity > 0)

    def check_amount(self, cost: Any) -> None:
        """Raise :class:`ConfigurationError` if the amount is below the cost of every call."""
        if self.never_admits(cost):
            raise ConfigurationError(
                f"found {self.outside(self.amount)} {self.unit}, but each call costs {cost}, so "
                f"none would pass. Allowed: at least {cost}, or 0 to deny every call."
            )

    @property
    def label(self) -> str:
        """What it is called in headers and metrics: its name, else its text.

        >>> Limit(30, 60_000_000).label, Limit(4, 1_000_000, "concurrency", unit="calls").label
        ('30-per-60s', '4-in-flight')
        """
        form = self.traits.form
        if self.name or form is None or form.has_rate:
            return self.name or f"{self.amount}-per-{self.period_us // 1_000_000}s"
        return form.text.format(amount=self.outside(self.amount)).replace(" ", "-")

    @property
    def is_budget(self) -> bool:
        """Whether it counts dollars, so that retrying soon does not help; a share grows."""
        return self.unit == "usd" and self.visible and not self.is_share

    def outside(self, units: int) -> int | Decimal:
        """Return an amount as it is shown: micro-dollars become dollars."""
        return Decimal(units) / MICRO if self.unit == "usd" else units

    def with_burst(self, text: str) -> str:
        """Return the text of the limit with its burst, which is what X-RateLimit-Limit shows."""
        if self.burst in (None, self.amount):
            return text
        return f"{text}, {self.outside(self.burst):,}{' usd' if self.unit == 'usd' else ''} at once"

    def _within(self, word: str, value: object, most: int, least: int = 1) -> None:
        if type(value) is not int or not least <= value <= most:
            raise ConfigurationError(
                f"limit {self.name or self.strategy!r}: {word} is {value!r}; "
                f"a whole number from {least} to {most} is allowed."
            )

    def _one_of(self, word: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ConfigurationError(
                f"{self}: {word} is {value!r}; allowed: {_listed(allowed)}."
                f"{did_you_mean(str(value), allowed)}"
            )

    def _foreign_unit(self, traits: Traits) -> str:
        hint = "Leave it out, or write an amount per period."
        for form in [row.form for row in TABLE.values() if row.form is not None]:
            if form.unit not in UNITS and form.unit in (self.unit, *traits.units):
                hint = f"Write {form.example!r}."
        return (
            f"{self}: unit is {self.unit!r}; the strategy {self.strategy!r} counts "
            f"{_listed(traits.units)}. {hint}"
        )

    def _foreign_option(self, word: str) -> str:
        article = "an" if word[0] in "aeiou" else "a"
        option = f"{word}={getattr(self, word)!r}" if word != "wait" else "wait"
        able = strategies_with(word)
        return (
            f"{self}: {option} is not an option of the strategy {self.strategy!r}; only "
            f"{_listed(able)} {'has' if len(able) == 1 else 'have'} {article} {word}. "
            "Remove it or change the strategy."
        )

    def _algorithm(self, traits: Traits) -> Traits:
        is_fair = self.fair or self.is_share
        if is_fair and not traits.fair:
            able = [name for name, row in TABLE.items() if row.fair]
            raise ConfigurationError(
                f"{self}: fair needs windows that begin and end, or calls in flight, as those of "
                f"{_listed(tuple(able))}; found the strategy {self.strategy!r}. Change the "
                "strategy, or remove fair."
            )
        chosen = traits.fair[self.is_share] if is_fair else traits
        chosen = chosen.holding if self.held else chosen
        return chosen if self.wait is None else chosen.line

    def _check_keep(self) -> None:
        if not self.keep or not self.amount:
            return
        if self.traits.guard:
            raise ConfigurationError(
                f"{self}: a guard takes no keep, because it shares out nothing. Remove it."
            )
        kept = sum(units for _, units in self.keep)
        if kept >= self.capacity:
            raise ConfigurationError(
                f"{self}: keep reserves {self.outside(kept)} of {self.outside(self.capacity)}, "
                "so lower classes would never pass. Reserve less."
            )

    def __str__(self) -> str:
        seconds, rest = divmod(self.period_us, 1_000_000)
        period = str(seconds) if not rest else f"{self.period_us / 1_000_000:g}"
        label = f"{self.name}: " if self.name else ""
        amount = f"{shown_dollars(self.amount)} usd" if self.unit == "usd" else str(self.amount)
        rate = f"{amount} per {period} s"
        form = traits_of(self.strategy).form  # errors name the limit before it has its traits
        if form is None or (self.multiple is None and "{multiple}" in form.text):
            return label + rate
        return label + form.text.format(rate=rate, amount=amount, multiple=self.multiple)


#: Without what only an admission asks for: journals are read by other versions, too.
_DEFAULTS: Final = {
    option.name: option.default
    for option in fields(Limit)
    if option.init and option.name not in ("wait", "part")
}


@lru_cache(maxsize=1024)
def limit_of(words: tuple[tuple[str, Any], ...]) -> Limit:
    """Return the limit of these words: the same object each time, which engines prepare once."""
    return Limit(**dict(words))


@lru_cache(maxsize=4096)
def _replaced(limit: Limit, words: tuple[tuple[str, Any], ...], *_differs: object) -> Limit:
    return replace(limit, **dict(words))


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(map(repr, words))
