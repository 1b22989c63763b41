"""The replay of traffic against the rules of a policy, in virtual time.

A call is decided as by an engine: all limits together, and it costs nothing in any if one denies.
One that may wait is decided again when it is its turn. What differs from a real server: the cost of
a call is known at its start, so nothing is estimated and settled; any number of calls may wait; a
denied caller does not retry, unless the traffic has the retry; and guards that follow something
outside (blocks, providers' quotas) are not simulated.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final, NamedTuple, TypeAlias

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold, price_of
from ratelimit_ext.core.key import bucket_key, joined
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import Buckets, MemoryEngine
from ratelimit_ext.simulate.traffic import TrafficCall
from ratelimit_ext.strategies.line import pause_us

#: The key of a limit that counts all callers together.
EVERYONE: Final = "global"
#: How many calls pass between two looks for states that no longer matter.
SWEEP_EVERY: Final = 200_000
MINUTE_US: Final = 60_000_000
#: The lease of a call, longer than any call.
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
        if (value := call.who.get(self.key)) or "," not in self.key:
            identity = EVERYONE if self.key == EVERYONE else value
        else:
            parts = [call.who.get(kind, "") for kind in self.key.split(",")]
            identity = joined(parts) if all(parts) else None
        if self.limit.is_share and identity is not None:
            member = call.who.get(self.member)
            return None if member is None else f"{identity} {member}"
        return identity

    def share(self) -> Rule:
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
    #: The same by class of traffic, of limits that keep a part for some.
    class_waits: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


class _Asked(NamedTuple):
    """A call by its number, with the rules that apply to it and a charge for each of them."""

    number: int
    call: TrafficCall
    rules: Sequence[Rule]
    charges: list[Charge]

    def hold(self, now: int) -> Hold:
        """Return the hold of a call that takes a slot or may wait."""
        limits = [charge.limit for charge in self.charges]
        waits = any(limit.wait is not None for limit in limits)
        if not waits and not any(limit.traits.ends_with_calls for limit in limits):
            return NO_HOLD
        if not waits:
            return Hold(self.number, LASTS_US)
        pairs = zip(self.charges, self.rules, strict=True)
        price = price_of([charge._replace(limit=rule.limit) for charge, rule in pairs])
        return Hold(self.number, LASTS_US, now - self.call.at_us, price=price)


class Replay:
    """The buckets of one policy, and what became of the calls so far."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._finals: dict[int, tuple[Limit, Limit]] = {}
        self._woken = deque[int]()
        self._buckets = Buckets(most=math.inf, sweep_every=SWEEP_EVERY, ring=self._woken.append)
        self._engine = MemoryEngine(lambda: self._buckets)
        #: When, a number, a call, and whether it ends then; if not, it is decided again.
        self._events: list[tuple[int, int, _Asked, bool]] = []
        self._waiting: dict[int, _Asked] = {}
        self._numbers = count()
        self.outcome = ReplayOutcome()
        #: The rules that denied calls, by their numbers from 0.
        self.denied: dict[int, list[Rule]] = {}
        self._calls = 0

    def decide(self, call: TrafficCall) -> list[Rule]:
        """Decide one call, not earlier than the one before; returns the rules that denied it at
        once. One that waits is decided later."""
        self._pass_time(call.at_us)
        self._calls += 1
        asked = self._asked(self._calls, call)
        self._look(asked, call.at_us)
        self._wake(call.at_us)
        return self.denied.get(asked.number - 1, [])

    def finish(self) -> None:
        """Decide all calls that wait."""
        while self._waiting:
            self._pass_time(self._events[0][0])

    def _pass_time(self, until: int) -> None:
        while self._events and self._events[0][0] <= until:
            now, _, asked, is_over = heapq.heappop(self._events)
            if is_over:
                slots = [charge for charge in asked.charges if charge.limit.traits.ends_with_calls]
                hold, numbers = asked.hold(now), (asked.number, 0)
                changes = [Change(charge, hold, "settle", numbers) for charge in slots]
                self._engine.settle(changes, now_us=now)
            elif asked.number in self._waiting:
                self._look(asked, now)
            self._wake(now)

    def _wake(self, now: int) -> None:
        while self._woken:
            asked = self._waiting.get(self._woken.popleft())
            if asked is not None:
                self._look(asked, now)

    def _look(self, asked: _Asked, now: int) -> None:
        decision = self._engine.admit(asked.charges, hold=asked.hold(now), now_us=now)
        places, waited_us = decision.unfit(enforced=True), now - asked.call.at_us
        may_wait = places and all(asked.charges[at].limit.wait is not None for at in places)
        if may_wait and (pause := pause_us(decision.denials, waited_us)) is not None:
            self._waiting[asked.number] = asked
            looks_at = now + max(1, pause)
            heapq.heappush(self._events, (looks_at, next(self._numbers), asked, False))
            return
        waited = self._waiting.pop(asked.number, None) is not None
        denied = [asked.rules[place] for place in places]
        if denied:
            self.denied[asked.number - 1] = denied
            lines = [charge for charge in asked.charges if charge.limit.wait is not None and waited]
            changes = [Change.leave(charge, asked.hold(now)) for charge in lines]
            self._engine.settle(changes, now_us=now)
        else:
            tried = decision.unfit(enforced=False)
            self.outcome.would_deny.update(asked.rules[place].name for place in tried)
            if waited:
                self.outcome.waits.append(waited_us)
                for name in {asked.call.who.get(rule.priority) for rule in asked.rules} - {None}:
                    self.outcome.class_waits[str(name)].append(waited_us)
            if any(charge.limit.traits.ends_with_calls for charge in asked.charges):
                ends_at = now + int(asked.call.seconds * 1_000_000)
                heapq.heappush(self._events, (ends_at, next(self._numbers), asked, True))
        self._count(asked.call, denied)

    def _asked(self, number: int, call: TrafficCall) -> _Asked:
        rules, charges, unknown = [], [], set()
        for rule in self._parts(call):
            identity = rule.identity(call)
            if identity is None:
                is_member = rule.limit.is_share and rule.key not in unknown
                unknown.add(rule.member if is_member else rule.key)
            elif cost := rule.cost_of(call):
                rules.append(rule)
                key = bucket_key(f"{rule.bucket}:", identity)
                charges.append(Charge(self._final(rule.limit), key, cost))
        self.outcome.unknown.update(sorted(unknown))  # in one order in every process
        return _Asked(number, call, rules, charges)

    def _final(self, limit: Limit) -> Limit:
        """Return the limit with costs that are final, as the same object each time."""
        if not limit.held or limit.traits.ends_with_calls:
            return limit
        cached = self._finals.get(id(limit))
        if cached is None:
            final = replace(limit, unit="requests")
            cached = self._finals[id(limit)] = limit, final
        return cached[1]

    def _parts(self, call: TrafficCall) -> Iterator[Rule]:
        """Yield the rules as the class of the call may use them, each with that of its member."""
        for applying in self._applying(call):
            rule = applying.for_call(call)
            if rule.covers is not None and not rule.covers(call.who):
                continue
            if rule.limit.keep:
                self.outcome.classless[rule.priority] += 1  # it is decided as without classes
            yield rule
            if applying.limit.has_shares and applying.member:
                yield applying.share()

    def _applying(self, call: TrafficCall) -> list[Rule]:
        stated = self._rules(call.endpoint, call.plan)
        rules = [rule for rule in stated if not (rule.optional or rule.name in call.exempt)]
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
