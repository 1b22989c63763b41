"""The replay of traffic against the rules of a policy, in virtual time.

A call is decided as by an engine: all limits together, and it costs nothing in any if one denies.
One that may wait is decided again when it is its turn. What differs from a real server: the cost of
a call is known at its start, so nothing is estimated and settled; any number of calls may wait; a
denied caller does not retry, unless the traffic has the retry; and guards that follow something
outside (blocks, providers' quotas) are not simulated.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.key import joined
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.simulate.traffic import TrafficCall
from ratelimit_ext.strategies import strategy_named
from ratelimit_ext.strategies.line import LOOK_US, Line
from ratelimit_ext.strategies.strategy import Strategy

#: The key of a limit that counts all callers together.
EVERYONE: Final = "global"
#: How many calls pass between two looks for states that no longer matter.
SWEEP_EVERY: Final = 200_000
MINUTE_US: Final = 60_000_000
#: No call lasts longer.
LASTS_US: Final = 366 * 86_400_000_000


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
        """Return the rule as the class of the call may use it, and for its member's turns."""
        limit = self.limit
        if limit.keep and (name := call.who.get(self.priority)) is not None:
            limit = limit.of_class(name)
        if limit.fair and not limit.has_shares:
            limit = limit.of_member(call.who.get(self.member, ""))
        return self if limit is self.limit else self._replace(limit=limit)

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
    #: What counts the members of the group, if it is shared fairly.
    shares: tuple[_Prepared, ...]

    def with_hold(self, now: int, hold: Hold) -> Any:
        """Return the parameters, with the hold for those that reserve or let calls wait."""
        limit, own = self.rule.limit, self.parameters(now)
        return (own, hold) if limit.traits.ends_with_calls or limit.wait is not None else own


#: The name of a limit's buckets, and an identity.
_Place: TypeAlias = tuple[str, str]
#: A rule, a bucket of it, the bucket's state now, and the cost.
_Checked: TypeAlias = tuple[_Prepared, _Place, Any, int]


class _Asked(NamedTuple):
    """A call by its number, and where it waits."""

    number: int
    call: TrafficCall
    lines: dict[_Place, _Prepared]

    def hold(self, now: int | None = None) -> Hold:
        return Hold(self.number, LASTS_US, None if now is None else now - self.call.at_us)


class Replay:
    """The states of one policy's buckets, and what became of the calls so far."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[str, str, frozenset[str]], list[_Prepared]] = {}
        self._prepared: dict[tuple[Rule, int], _Prepared] = {}
        self._states: dict[_Place, Any] = {}
        self._lifetimes: dict[str, _Prepared] = {}
        #: What comes: when, a number, and the end of a call, or one that looks whether it starts.
        self._events: list[tuple[int, int, _Prepared | None, Any]] = []
        self._waiting: dict[int, _Asked] = {}
        self._numbers = count()
        self._until_sweep = SWEEP_EVERY
        self.outcome = ReplayOutcome()
        #: The rules that denied calls, by their numbers from 0.
        self.denied: dict[int, list[Rule]] = {}
        self._calls = 0

    def decide(self, call: TrafficCall) -> list[Rule]:
        """Decide one call, not earlier than the one before; returns the rules that denied it at
        once. One that waits is decided later."""
        self._pass_time(call.at_us)
        self._calls += 1
        asked = _Asked(self._calls, call, {})
        self._look(asked, call.at_us)
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep(call.at_us)
        return self.denied.get(asked.number - 1, [])

    def finish(self) -> None:
        """Decide all calls that wait."""
        while self._waiting:
            self._pass_time(self._events[0][0])

    def _pass_time(self, until: int) -> None:
        while self._events and self._events[0][0] <= until:
            now, _, prepared, what = heapq.heappop(self._events)
            if prepared is not None:
                self._release(prepared, what, now)
            elif (asked := self._waiting.get(what)) is not None:
                self._look(asked, now)

    def _look(self, asked: _Asked, now: int) -> bool:
        """Decide a call; returns whether it starts."""
        denied, tried, fitting, due = self._check(asked, now)
        if denied and due is not None:
            self._wait(asked, now, due)
            return False
        waited = self._waiting.pop(asked.number, None) is not None
        if denied:
            self.denied[asked.number - 1] = denied
            for place, prepared in asked.lines.items():
                charge = Charge(prepared.rule.limit, "", 0)
                self._change(prepared, place, Change.leave(charge, asked.hold()), now)
        else:
            self.outcome.would_deny.update(rule.name for rule in tried)
            self._take(asked, now, fitting)
            if waited:
                self.outcome.waits.append(now - asked.call.at_us)
        self._count(asked.call, denied)
        return not denied

    def _wait(self, asked: _Asked, now: int, due: Sequence[_Checked]) -> None:
        """Leave tickets, and look again when it is their turn."""
        looks_at = max(now + 1, *[state.due for _, _, state, _ in due])
        ends = [now + LOOK_US]
        for prepared, place, state, _ in due:
            line, limit = cast(Line, prepared.strategy), prepared.rule.limit
            placed = line.place(state, now, (prepared.parameters(now), asked.hold(now)))
            self._states[place] = line.placed(placed)
            asked.lines[place] = prepared
            ends.append(asked.call.at_us + (limit.wait or 0))
        if any(prepared.rule.limit.traits.ends_with_calls for prepared, *_ in due):
            looks_at = max(now + 1, min(ends))
        self._waiting[asked.number] = asked
        heapq.heappush(self._events, (looks_at, next(self._numbers), None, asked.number))

    def _take(self, asked: _Asked, now: int, fitting: Sequence[_Checked]) -> None:
        for prepared, place, state, cost in fitting:
            parameters = prepared.with_hold(now, asked.hold())
            self._states[place] = prepared.strategy.take(state, now, cost, parameters)
            if prepared.rule.limit.traits.ends_with_calls:
                ends_at = now + int(asked.call.seconds * 1_000_000)
                event = ends_at, next(self._numbers), prepared, (place, asked)
                heapq.heappush(self._events, event)

    def _release(self, prepared: _Prepared, what: tuple[_Place, _Asked], now: int) -> None:
        place, asked = what
        settled = Change(
            Charge(prepared.rule.limit, "", 1), asked.hold(), "settle", (asked.number, 0)
        )
        self._change(prepared, place, settled, now)

    def _change(self, prepared: _Prepared, place: _Place, change: Change, now: int) -> None:
        """Change a bucket, and let those begin in their order whose turn it is."""
        strategy, parameters = prepared.strategy, (prepared.parameters(now), change.hold)
        after = strategy.apply(change, self._states.get(place), now, parameters)
        if after is not None:
            self._states[place] = after
        while prepared.rule.limit.wait is not None:
            _, _, looked = strategy.check(self._states[place], now, 0, parameters)
            first = self._waiting.get(looked.tickets[0].id) if looked.tickets else None
            if first is None or not self._look(first, now):
                return

    def _check(
        self, asked: _Asked, now: int
    ) -> tuple[list[Rule], list[Rule], list[_Checked], list[_Checked] | None]:
        """Return the enforced rules that deny the call, the shadows that would, what it would be
        charged, and where it may wait; ``None`` if it may not."""
        denied, tried, fitting, due, unknown = [], [], [], list[_Checked](), set()
        is_first = asked.number not in self._waiting
        for prepared in self._parts(asked.call, is_first=is_first):
            rule = prepared.rule
            identity = rule.identity(asked.call)
            if identity is None:
                is_member = rule.limit.is_share and rule.key not in unknown
                unknown.add(rule.member if is_member else rule.key)
                continue
            cost = min(rule.cost_of(asked.call), rule.limit.capacity + 1)
            if not cost:
                continue
            place, parameters = (rule.bucket, identity), prepared.with_hold(now, asked.hold(now))
            known = self._states.get(place)
            fits, _, state = prepared.strategy.check(known, now, cost, parameters)
            if fits:
                fitting.append((prepared, place, state, cost))
            elif rule.limit.is_shadow:
                tried.append(rule)
            else:
                denied.append(rule)
                if rule.limit.wait is not None and state.due is not None:
                    due.append((prepared, place, state, cost))
        if is_first:
            self.outcome.unknown.update(sorted(unknown))  # in one order in every process
        return denied, tried, fitting, due if len(due) == len(denied) else None

    def _parts(self, call: TrafficCall, *, is_first: bool) -> Iterator[_Prepared]:
        """Yield the rules as the class of the call may use them, each with that of its member."""
        for prepared in self._applying(call):
            rule = prepared.rule.for_call(call)
            if rule.covers is not None and not rule.covers(call.who):
                continue
            if rule.limit.keep and is_first:
                self.outcome.classless[rule.priority] += 1  # it is decided as without classes
            yield prepared if rule is prepared.rule else self._prepared_of(rule)
            yield from prepared.shares

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
        limit = rule.limit
        prepared = self._prepared.get((rule, limit.member))
        if prepared is None:
            prepared = self._prepared[rule, limit.member] = _Prepared(
                rule,
                _strategy(limit),
                _parameters(limit),
                (self._prepared_of(rule.share()),) if limit.has_shares and rule.member else (),
            )
            self._lifetimes[rule.bucket] = prepared
        return prepared

    def _sweep(self, now: int) -> None:
        """Drop what no longer matters, so that a million callers need no memory for ever."""
        self._until_sweep = SWEEP_EVERY
        over = []
        for place, state in self._states.items():
            prepared = self._lifetimes[place[0]]
            parameters = prepared.with_hold(now, NO_HOLD)
            if prepared.strategy.lifetime(state, now, parameters) <= 0:
                over.append(place)
        for place in over:
            del self._states[place]


def _strategy(limit: Limit) -> Strategy:
    """Return what decides it, without reservations, but for calls in flight."""
    if limit.traits.ends_with_calls:
        return cast(Strategy, limit.algorithm)
    plain: Any = strategy_named(limit.strategy)
    if limit.has_shares or limit.is_share:
        return cast(Strategy, plain.fair[limit.is_share])
    return cast(Strategy, plain if limit.wait is None else plain.line)


def _parameters(limit: Limit) -> Callable[[int], tuple[int, ...]]:
    strategy = _strategy(limit)
    if limit.anchor is not None:
        return partial(strategy.parameters, limit)
    fixed = strategy.parameters(limit, 0)
    return lambda _: fixed
