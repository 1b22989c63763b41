"""The replay of traffic against the rules of a policy, in virtual time.

A call is decided as by an engine: all limits together, and it costs nothing in any if one denies.
What differs from a real server: the cost of a call is known at its start, so nothing is estimated
and settled; a call that waits for its turn is charged to its other limits before; a denied caller
does not retry, unless the traffic has the retry; and guards that follow something outside (blocks,
providers' quotas) are not simulated.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.key import joined
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.simulate.traffic import TrafficCall
from ratelimit_ext.strategies import strategy_named
from ratelimit_ext.strategies.strategy import Strategy

#: The key of a limit that counts all callers together.
EVERYONE: Final = "global"
#: How many calls pass between two looks for states that no longer matter.
SWEEP_EVERY: Final = 200_000
MINUTE_US: Final = 60_000_000


class Rule(NamedTuple):
    """A limit as it is simulated. ``key`` is the name of the identity that it counts, or the names
    of several with commas; ``bucket`` is the same for limits that share their buckets; ``cost`` is
    ``None`` if each call has its own. ``priority`` is the name of what says a call's class, for a
    limit that keeps a part for some, and ``member`` that of what says who of a group has made it,
    for a limit that is shared fairly."""

    name: str
    limit: Limit
    key: str
    bucket: str
    cost: int | None = 1
    optional: bool = False
    priority: str = ""
    #: Whether it applies to a call with these identities, by keywords of the application's.
    covers: Callable[[Mapping[str, str]], bool] | None = None
    member: str = ""

    def for_call(self, call: TrafficCall) -> Rule:
        """Return the rule as the class of the call may use it."""
        name = call.who.get(self.priority) if self.limit.keep else None
        return self if name is None else self._replace(limit=self.limit.of_class(name))

    def identity(self, call: TrafficCall) -> str | None:
        """Return the identity that the limit counts; ``None`` if the traffic does not say it."""
        if (known := call.who.get(self.key)) or "," not in self.key:
            own = EVERYONE if self.key == EVERYONE else known
        else:
            parts = [call.who.get(kind, "") for kind in self.key.split(",")]
            own = joined(parts) if all(parts) else None
        if self.limit.is_share and own is not None:
            member = call.who.get(self.member)
            return None if member is None else f"{own} {member}"
        return own

    def share(self) -> Rule:
        """Return the rule that counts the members of a group."""
        name, bucket = f"{self.name}-share", f"{self.bucket}-share"
        return self._replace(name=name, bucket=bucket, limit=self.limit.share())

    def cost_of(self, call: TrafficCall) -> int:
        """Return what the call costs, in the limit's unit."""
        if self.cost is not None:
            return self.cost
        return call.costs.get(self.limit.unit, 0)

    def applies(self, call: TrafficCall) -> bool:
        return (
            not self.optional
            and self.name not in call.exempt
            and (self.covers is None or self.covers(call.who))
            and self.identity(call) is not None
        )


Rules: TypeAlias = Callable[[str, str], Sequence[Rule]]


@dataclass
class Tally:
    admitted: int = 0
    denied: int = 0
    #: Micro-dollars.
    spent: int = 0
    saved: int = 0

    def count(self, micro: int, *, admitted: bool) -> None:
        if admitted:
            self.admitted += 1
            self.spent += micro
        else:
            self.denied += 1
            self.saved += micro


@dataclass
class ReplayOutcome:
    """The result of a replay. ``denials``, ``would_deny`` (admitted calls, by shadows) and
    ``false_positives`` are by the name of a limit, ``wronged`` are false positives by caller.
    ``unknown`` counts calls by the key of a limit that they lack, ``unlimited`` by an endpoint
    without limits, ``classless`` by the priority of a limit that they lack."""

    total: Tally = field(default_factory=Tally)
    callers: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    minutes: dict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))
    denials: Counter[str] = field(default_factory=Counter)
    would_deny: Counter[str] = field(default_factory=Counter)
    false_positives: Counter[str] = field(default_factory=Counter)
    wronged: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    unlimited: Counter[str] = field(default_factory=Counter)
    classless: Counter[str] = field(default_factory=Counter)
    #: How long admitted calls have waited for their turn, in microseconds, of those that have.
    waits: list[int] = field(default_factory=list)


class _Prepared(NamedTuple):
    """A rule, and what a decision needs of it."""

    rule: Rule
    strategy: Strategy
    parameters: Callable[[int], tuple[int, ...]]
    in_flight: bool
    #: What counts the members of the group, if it is shared fairly.
    shares: tuple[_Prepared, ...]


#: A rule that a call fits, its bucket, the bucket's state now, and the cost.
_Fitting: TypeAlias = tuple[_Prepared, tuple[str, str], Any, int]


class Replay:
    """The states of one policy's buckets, and what became of the calls so far."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[str, str, frozenset[str]], list[_Prepared]] = {}
        self._prepared: dict[Rule, _Prepared] = {}
        self._states: dict[tuple[str, str], Any] = {}
        self._lifetimes: dict[str, _Prepared] = {}
        self._running: list[tuple[int, tuple[str, str]]] = []
        self._until_sweep = SWEEP_EVERY
        self.outcome = ReplayOutcome()

    def decide(self, call: TrafficCall) -> list[Rule]:
        """Decide one call, not earlier than the one before; returns the rules that denied it."""
        now = call.at_us
        while self._running and self._running[0][0] <= now:
            self._release(heapq.heappop(self._running)[1])
        denied, tried, fitting, wait_us = self._check(call, now)
        if denied:
            tried, fitting, wait_us = [], [], 0
        if wait_us:
            self.outcome.waits.append(wait_us)
        self.outcome.would_deny.update(rule.name for rule in tried)
        for prepared, place, state, cost in fitting:
            parameters = prepared.parameters(now)
            self._states[place] = prepared.strategy.take(state, now, cost, parameters)
            if prepared.in_flight:
                ends = now + wait_us + int(call.seconds * 1_000_000)
                heapq.heappush(self._running, (ends, place))
        self._count(call, denied)
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep(now)
        return denied

    def _check(
        self, call: TrafficCall, now: int
    ) -> tuple[list[Rule], list[Rule], list[_Fitting], int]:
        """Return the enforced rules that deny the call, the shadows that would, what it would be
        charged, and how long it waits for its turn."""
        denied, tried, fitting, unknown, wait_us = [], [], [], set(), 0
        for prepared in self._parts(call):
            rule = prepared.rule
            identity = rule.identity(call)
            if identity is None:
                is_member = rule.limit.is_share and rule.key not in unknown
                unknown.add(rule.member if is_member else rule.key)
                continue
            cost = min(rule.cost_of(call), rule.limit.capacity + 1)
            if not cost:
                continue
            place = rule.bucket, identity
            known = self._states.get(place)
            fits, _, state = prepared.strategy.check(known, now, cost, prepared.parameters(now))
            if not fits and rule.limit.wait is not None and cost <= rule.limit.capacity:
                ahead = rule.limit.in_line()
                prepared = self._prepared_of(rule._replace(limit=ahead))  # noqa: PLW2901
                strategy, parameters = prepared.strategy, prepared.parameters(now)
                fits, snapshot, state = strategy.check(known, now, cost, parameters)
                charge = Charge(ahead, "", cost)
                turn = strategy.verdict(charge, snapshot, now, allowed=fits, taken=fits)
                turn_us = self._slot_us(place, rule.limit, now) if prepared.in_flight else 0
                wait_us = max(wait_us, turn_us, turn.retry_after_us or 0)
                fits = fits and turn_us <= rule.limit.wait
            if fits:
                fitting.append((prepared, place, state, cost))
            elif rule.limit.is_shadow:
                tried.append(rule)
            else:
                denied.append(rule)
        self.outcome.unknown.update(sorted(unknown))  # in one order in every process
        return denied, tried, fitting, wait_us

    def _parts(self, call: TrafficCall) -> Iterator[_Prepared]:
        """Yield the rules as the class of the call may use them, each with that of its member."""
        for prepared in self._applying(call):
            rule = prepared.rule.for_call(call)
            if rule.covers is not None and not rule.covers(call.who):
                continue
            if rule.limit.keep:
                self.outcome.classless[rule.priority] += 1  # it is decided as without classes
            yield prepared if rule is prepared.rule else self._prepared_of(rule)
            yield from prepared.shares

    def _slot_us(self, place: tuple[str, str], limit: Limit, now: int) -> int:
        """Return how long a call waits until so few are left that came before it."""
        ends = sorted(end for end, each in self._running if each == place)
        return ends[len(ends) - limit.amount] - now

    def _applying(self, call: TrafficCall) -> list[_Prepared]:
        question = call.endpoint, call.plan, call.exempt
        rules = self._known.get(question)
        if rules is None:
            rules = self._known[question] = self._prepare(*question)
        if not rules:
            self.outcome.unlimited[call.endpoint] += 1
        return rules

    def _count(self, call: TrafficCall, denied: Sequence[Rule]) -> None:
        outcome, micro, admitted = self.outcome, call.costs.get("usd", 0), not denied
        outcome.total.count(micro, admitted=admitted)
        outcome.minutes[call.at_us // MINUTE_US].count(micro, admitted=admitted)
        outcome.callers[call.caller].count(micro, admitted=admitted)
        for rule in denied:
            outcome.denials[rule.name] += 1

    def _prepare(self, endpoint: str, plan: str, exempt: frozenset[str]) -> list[_Prepared]:
        rules = self._rules(endpoint, plan)
        applying = [rule for rule in rules if not (rule.optional or rule.name in exempt)]
        return list(map(self._prepared_of, applying))

    def _prepared_of(self, rule: Rule) -> _Prepared:
        prepared = self._prepared.get(rule)
        if prepared is None:
            limit = rule.limit
            prepared = self._prepared[rule] = _Prepared(
                rule,
                _strategy(limit),
                _parameters(limit),
                limit.unit == "calls",
                (self._prepared_of(rule.share()),) if limit.has_shares and rule.member else (),
            )
            self._lifetimes[rule.bucket] = prepared
        return prepared

    def _release(self, place: tuple[str, str]) -> None:
        left = self._states[place] - 1
        if left:
            self._states[place] = left
        else:
            del self._states[place]

    def _sweep(self, now: int) -> None:
        """Drop what no longer matters, so that a million callers need no memory for ever."""
        self._until_sweep = SWEEP_EVERY
        over = []
        for place, state in self._states.items():
            _, strategy, parameters, in_flight, _ = self._lifetimes[place[0]]
            if not in_flight and strategy.lifetime(state, now, parameters(now)) <= 0:
                over.append(place)
        for place in over:
            del self._states[place]


def _strategy(limit: Limit) -> Strategy:
    """Return what decides it, without reservations."""
    plain = strategy_named(limit.strategy)
    if not (limit.has_shares or limit.is_share):
        return plain
    return cast(Strategy, plain.fair[limit.is_share])


def _parameters(limit: Limit) -> Callable[[int], tuple[int, ...]]:
    strategy = _strategy(limit)
    if limit.anchor is not None:
        return partial(strategy.parameters, limit)
    fixed = strategy.parameters(limit, 0)
    return lambda _: fixed
