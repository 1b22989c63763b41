"""What callers asked for, admitted or not: who was denied wrongly, and which amounts would do."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.limit import MOST_AMOUNT, Limit
from ratelimit_ext.engine.memory import Buckets, MemoryEngine
from ratelimit_ext.simulate.replay import Rule, Rules
from ratelimit_ext.simulate.traffic import TrafficCall

FALSE_POSITIVE: Final = (
    "A false positive is a denied call that the traffic does not mark as abusive, whose caller had "
    "asked for no more than a fair share within the limit's period: the amount, divided by the "
    "callers who shared the bucket."
)


class _Bucket:
    """The demand on a bucket within a period, by caller."""

    __slots__ = ("by_caller", "calls", "total")

    def __init__(self) -> None:
        self.calls: deque[tuple[int, str, int]] = deque()
        self.by_caller: dict[str, int] = {}
        self.total = 0

    def add(self, at_us: int, period_us: int, caller: str, cost: int) -> None:
        """One more call; those of a period ago leave."""
        calls, by_caller = self.calls, self.by_caller
        while calls and calls[0][0] <= at_us - period_us:
            _, other, past = calls.popleft()
            self.total -= past
            left = by_caller[other] - past
            if left:
                by_caller[other] = left
            else:
                del by_caller[other]
        if cost:
            calls.append((at_us, caller, cost))
            by_caller[caller] = by_caller.get(caller, 0) + cost
            self.total += cost


def false_positives(
    traffic: Iterable[TrafficCall], rules: Rules, denied: Mapping[int, Sequence[Rule]]
) -> tuple[Counter[str], Counter[str]]:
    """Denied calls that should have passed, by the name of the limit and by caller.

    ``denied`` has the rules that denied a call, by its position in the traffic. The rule is
    :data:`FALSE_POSITIVE`; what was denied counts as asked for. Limits of calls in flight are not
    judged.
    """
    judged = {rule for denying in denied.values() for rule in denying if rule.limit.unit != "calls"}
    by_rule: Counter[str] = Counter()
    by_caller: Counter[str] = Counter()
    buckets: dict[tuple[str, str], _Bucket] = {}
    if not judged:
        return by_rule, by_caller
    for position, call in enumerate(traffic):
        caller, denying, is_wrong = call.caller, denied.get(position, ()), False
        for rule in rules(call.endpoint, call.plan):
            if rule not in judged or not rule.applies(call):
                continue
            place = rule.bucket, rule.identity(call) or ""
            bucket = buckets.get(place)
            if bucket is None:
                bucket = buckets[place] = _Bucket()
            bucket.add(call.at_us, rule.limit.period_us, caller, rule.cost_of(call))
            if rule in denying and call.abusive is not True:
                share = rule.limit.amount / max(1, len(bucket.by_caller))
                if bucket.by_caller.get(caller, 0) <= share:
                    by_rule[rule.name] += 1
                    is_wrong = True
        by_caller[caller] += is_wrong
    return by_rule, +by_caller


class Peak(NamedTuple):
    """The most that an identity has used, if nothing is denied."""

    identity: str
    amount: int


@dataclass(frozen=True)
class Suggestion:
    """An amount for a limit: the smallest that denies nothing to ``share`` of the identities, by
    the limit's own strategy. For a token bucket it is the most of any period, and ``burst`` denies
    nothing with it; for a surge it is the most of any period. ``denied`` is how many of the
    ``identities`` ask for more than the present amount; ``peaks`` are the largest."""

    rule: Rule
    identities: int
    denied: int
    amount: int
    burst: int | None
    peaks: tuple[Peak, ...]


def suggestions(
    traffic: Iterable[TrafficCall], rules: Rules, *, share: float = 0.99
) -> list[Suggestion]:
    """Amounts for all limits that the traffic touches. Reads the traffic twice, for the bursts."""
    peaks: dict[Rule, dict[str, int]] = {}
    usages = _Usages()
    for call in traffic:
        for rule in rules(call.endpoint, call.plan):
            if rule.limit.unit == "calls" or not rule.applies(call):
                continue
            identity = rule.identity(call) or ""
            used = usages.after(rule, identity, call)
            by_identity = peaks.setdefault(rule, {})
            if used > by_identity.get(identity, -1):
                by_identity[identity] = used
    amounts = {rule: _quantile(by_identity.values(), share) for rule, by_identity in peaks.items()}
    bursts = _bursts(traffic, rules, amounts, share)
    return [
        Suggestion(
            rule,
            len(by_identity),
            sum(peak > rule.limit.amount for peak in by_identity.values()),
            amounts[rule],
            bursts.get(rule),
            tuple(Peak(*item) for item in Counter(by_identity).most_common(3)),
        )
        for rule, by_identity in peaks.items()
        if amounts[rule]
    ]


class _Usages:
    """What identities use of limits that deny nothing, by bucket."""

    def __init__(self) -> None:
        self._measures: dict[Limit, Limit | None] = {}
        windows = Buckets(most=math.inf)
        self._engine = MemoryEngine(lambda: windows)
        self._others: dict[tuple[str, str], _Bucket] = {}

    def after(self, rule: Rule, identity: str, call: TrafficCall) -> int:
        place, cost, limit = (rule.bucket, identity), rule.cost_of(call), rule.limit
        if limit not in self._measures:
            self._measures[limit] = _measure(limit)
        unlimited = self._measures[limit]
        if unlimited is None:
            bucket = self._others.setdefault(place, _Bucket())
            bucket.add(call.at_us, limit.period_us, "", cost)
            return int(bucket.total)
        charge = Charge(unlimited, bucket_key(f"{rule.bucket}:", identity), cost)
        return self._engine.admit([charge], now_us=call.at_us).used(0) + cost


def _measure(limit: Limit) -> Limit | None:
    """Return the limit of a window without its amount; ``None`` for others, of which the usage
    depends on the amount."""
    if limit.traits.guard or "burst" in limit.traits.options:
        return None
    return replace(limit, amount=MOST_AMOUNT, fair=False)


def _bursts(
    traffic: Iterable[TrafficCall], rules: Rules, amounts: Mapping[Rule, int], share: float
) -> dict[Rule, int]:
    """The fill that buckets reach which leak at the suggested amounts."""
    levels: dict[tuple[Rule, str], tuple[int, float]] = {}
    highest: dict[Rule, dict[str, float]] = {}
    wanted = {r for r, amount in amounts.items() if r.limit.strategy == "token-bucket" and amount}
    for call in traffic if wanted else ():
        for rule in rules(call.endpoint, call.plan):
            if rule not in wanted or not rule.applies(call):
                continue
            identity = rule.identity(call) or ""
            since, level = levels.get((rule, identity), (call.at_us, 0.0))
            leaked = (call.at_us - since) * amounts[rule] / rule.limit.period_us
            level = max(0.0, level - leaked) + rule.cost_of(call)
            levels[rule, identity] = call.at_us, level
            by_identity = highest.setdefault(rule, {})
            by_identity[identity] = max(level, by_identity.get(identity, 0.0))
    return {rule: _quantile(by_identity.values(), share) for rule, by_identity in highest.items()}


def _quantile(values: Iterable[float], share: float) -> int:
    """Return the smallest of the values that is not below ``share`` of them, as a whole number."""
    ordered = sorted(values)
    return math.ceil(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)])
