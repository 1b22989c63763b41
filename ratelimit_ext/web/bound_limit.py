"""A limit bound to a route: everything about it that is the same for each request of the route; and
the records of its charges in one request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final, NamedTuple, Self, TypeAlias

from flask_limiter import Limit as Definition
from flask_limiter._limits import RuntimeLimit

from ratelimit_ext.core.charge import (
    NO_HOLD,
    Charge,
    Claim,
    Guess,
    Hold,
    PreparedCharges,
    checked_cost,
)
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import NO_OPTIONS, Limit, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit
from ratelimit_ext.core.money import micro_dollars
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.scratch import scratch
from ratelimit_ext.policy.functions import Condition
from ratelimit_ext.strategies import strategy_of


@dataclass(frozen=True, slots=True, eq=False)
class BoundLimit:
    """A limit as it applies to a route: the limit, its identity and cost functions, its names.

    ``scope`` is Flask-Limiter's; ``bucket_prefix`` the bucket's name up to the identity. ``header``
    is the limit's quoted name in headers, ``policy`` its item there. ``rank`` sorts short periods
    first. ``metas`` are limits on denials by this one. ``estimate`` is the estimator, for a limit
    that states no cost; ``fixed_cost`` a cost that needs no function, in units. ``is_edge``: it is
    one of the application's limits, which are not refunded when a call is cancelled.
    ``plan_sentence`` says what the caller's plan allows, ``amount_sentence`` makes that of the
    account's amount. An ``optional`` limit applies only to accounts with such an amount.
    ``override`` is the amount that an operator has set instead. ``is_candidate``: it is another
    amount of the limit before it, tried in shadow. ``is_conditional``: the response decides by its
    ``deduct_when`` whether it is charged; ``is_late``: then alone, and before the view it only has
    to fit. ``varies``: each request decides whether it applies, or with which amount. ``member``
    returns who of a group has sent the request, if the group's budget is shared fairly.
    """

    runtime: RuntimeLimit
    limit: Limit
    scope: str
    bucket_prefix: str
    header: str
    policy: str
    rank: tuple[int, int]
    metas: tuple[BoundLimit, ...] = ()
    estimate: Callable[[], Any] | None = None
    fixed_cost: int | None = None
    is_edge: bool = False
    is_meta: bool = False
    optional: bool = False
    plan_sentence: str = ""
    amount_sentence: Callable[[ParsedLimit], str] | None = None
    override: str = ""
    is_candidate: bool = False
    is_conditional: bool = False
    is_late: bool = False
    varies: bool = False
    #: The application's own, with their values.
    keywords: tuple[tuple[str, Any], ...] = ()
    member: Callable[[], Any] | None = None
    #: Whether callers see it: neither guards nor shadows.
    is_shown: bool = field(init=False)

    def __post_init__(self) -> None:
        is_shown = self.limit.visible and self.limit.mode == "enforce"
        object.__setattr__(self, "is_shown", is_shown)

    @property
    def name(self) -> str:
        """The limit's name in headers, without the quotes."""
        return self.header[1:-1]

    @property
    def condition(self) -> Condition | None:
        """What says to which calls it applies; ``None``: to all, or ``exempt_when`` alone."""
        condition = self.runtime.exempt_when
        return condition if isinstance(condition, Condition) else None

    @property
    def written(self) -> str:
        return str(self.runtime.limit)

    @property
    def tried(self) -> str:
        """The amount of a candidate, as it is written; empty for other limits."""
        options: LimitOptions = getattr(self.runtime.limit, "options", NO_OPTIONS)
        return str(options.candidate) if self.is_candidate else ""

    def priced(self, costs: Costs) -> tuple[int, Claim | None]:
        """Return the cost of the current request, with what its estimate claims of a budget.
        Raises ``ValueError`` for an invalid cost."""
        if self.fixed_cost is not None:
            return self.fixed_cost, None
        limit, estimate = self.limit, self.estimate
        if estimate is None:
            cost = cost_in_units(self.runtime.cost, limit, self.runtime)
        elif (cached := costs.get(question := (id(estimate), limit.unit == "usd"))) is None:
            cost = costs[question] = cost_in_units(estimate, limit, self.runtime)
        else:
            cost = cached
        if not isinstance(cost, Guess):
            return cost, None
        has_claim = estimate and limit.unit == "usd" and limit.held and not self.is_late
        charged: int = max(cost.least, min(cost.cost, limit.capacity or cost.cost))
        return charged, cost.claim if has_claim else None


#: The estimates of a request, by the id of the function and whether the unit is dollars: each
#: estimator is called once.
Costs: TypeAlias = dict[tuple[int, bool], int | Guess]
#: A bound limit, the identity that is charged, and the charge.
BoundCharge: TypeAlias = tuple[BoundLimit, str, Charge]
#: Makes a named tuple of its items, in a third of the time that its own constructor takes.
new: Final = tuple.__new__


class BoundCharges(tuple[BoundCharge, ...]):  # noqa: SLOT001 - a tuple allows none
    """The charges of a request. Engines decide them as ``prepared``. ``is_conditional``: the
    response decides about one of them."""

    prepared: PreparedCharges
    is_conditional: bool

    def __new__(cls, charges: Iterable[BoundCharge], kept: BoundCharges | None = None) -> Self:
        """``kept`` are the same but for costs and claims."""
        made = super().__new__(cls, charges)
        made.prepared = PreparedCharges([charge for _, _, charge in made])
        made.prepared.kept = None if kept is None else kept.prepared
        made.is_conditional = (
            True in [bound.is_conditional for bound, _, _ in made]
            if kept is None
            else kept.is_conditional
        )
        return made


class ChargeRecord(NamedTuple):
    """A bound limit, the identity that was charged, and the verdict.

    ``cost`` is this limit's own: limits of one bucket share a verdict, whose charge has the sum.
    ``engine`` and ``hold`` are those of the admission; each admission has a hold of its own, so
    that a limit that is charged twice is settled twice. ``decided_at`` is of the monotonic clock.
    """

    bound: BoundLimit
    identity: str
    cost: int
    verdict: Verdict
    now_us: int
    engine: Engine
    hold: Hold
    decided_at: float

    def charged(self, cost: int) -> ChargeRecord:
        """Return the record as it reads after so many units more are taken now."""
        now_s, verdict = time.monotonic(), self.verdict
        elapsed_us = int((now_s - self.decided_at) * 1_000_000)
        limit, now_us = verdict.charge.limit, self.now_us + elapsed_us
        remaining, reset_us, _ = strategy_of(self.bound.limit).later(verdict, elapsed_us)
        used = limit.capacity - remaining
        state = scratch.filled(limit, used, now_us, reset_us) if used else None
        snapshot = scratch.snapshot(limit, state, now_us)
        left = strategy_of(limit).left(limit, snapshot, now_us, cost)
        if verdict.share is not None:  # which only both buckets know
            left = max(0, remaining - cost), *left[1:]
        verdict = verdict._replace(remaining=left[0], reset_after_us=left[1], more_after_us=left[2])
        return self._replace(verdict=verdict, now_us=now_us, decided_at=now_s)


#: What headers show of a limit: the limit, what remains, the time until more is available (or until
#: the request would pass, if it denied), and the instant of its reset by the deciding clock.
LimitStatus: TypeAlias = tuple[BoundLimit, int, int, int]


class Records(Sequence[ChargeRecord]):
    """The records of one decision, made when one of them is read: most answers only show the
    :meth:`statuses`. A denial that is repeated from memory has records of what is known."""

    __slots__ = ("_made", "charges", "decided_at", "decision", "engine", "hold", "may_change")

    def __init__(
        self, charges: BoundCharges, decision: Decision, engine: Engine, hold: Hold
    ) -> None:
        self.charges = charges
        self.decision = decision
        self.engine = engine
        self.hold = hold
        self.decided_at = time.monotonic()
        #: Whether something of it is corrected later, by the response or by a settlement.
        self.may_change = hold is not NO_HOLD or charges.is_conditional
        self._made: list[ChargeRecord] | None = None

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, at: Any) -> Any:
        return self._all()[at]

    def __iter__(self) -> Iterator[ChargeRecord]:
        return iter(self._all())

    def without_metas(self) -> Records:
        """Return the records of what the caller was charged; limits on denials come last."""
        if not (self.charges and self.charges[-1][0].is_meta):
            return self
        charges = [charge for charge in self.charges if not charge[0].is_meta]
        return Records(BoundCharges(charges), self.decision, self.engine, self.hold)

    def statuses(self) -> list[LimitStatus]:
        """Return what headers show: enforced limits without guards, in the order of decision."""
        decision, charges = self.decision, self.charges
        left = decision.left() if decision.admitted else ()
        if len(left) != len(charges):
            return statuses_of([record for record in self._all() if record.bound.is_shown])
        now_us = decision.now_us
        return [
            (bound, remaining, more_us, now_us + reset_us)
            for (bound, _, _), (remaining, reset_us, more_us) in zip(charges, left, strict=True)
            if bound.is_shown
        ]

    def _all(self) -> list[ChargeRecord]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> list[ChargeRecord]:
        charges: Sequence[BoundCharge] = self.charges
        verdicts = self.decision.verdicts
        if len(verdicts) != len(charges):  # charges of one bucket share a verdict
            by_key = {verdict.charge.key: verdict for verdict in verdicts}
            charges = [charge for charge in charges if charge[2].key in by_key]
            verdicts = tuple([by_key[charge.key] for _, _, charge in charges])
        if not charges:
            return []
        bounds, identities, charged = zip(*charges, strict=True)
        costs = [
            charge.cost if charge.claim is None else verdict.charge.cost
            for charge, verdict in zip(charged, verdicts, strict=True)
        ]
        shared = map(repeat, (self.decision.now_us, self.engine, self.hold, self.decided_at))
        records = zip(bounds, identities, costs, verdicts, *shared, strict=False)
        return list(map(new, repeat(ChargeRecord), records))


def statuses_of(records: Iterable[ChargeRecord], at_s: float | None = None) -> list[LimitStatus]:
    """Return what headers show at an instant of the monotonic clock; ``None``: when decided."""
    statuses, left, elapsed_us = [], None, 0
    for bound, _, _, verdict, now_us, _, _, decided_at in records:
        if at_s is not None:
            elapsed_us = int((at_s - decided_at) * 1_000_000)
            left = strategy_of(bound.limit).later(verdict, elapsed_us)
        remaining, reset_us, shown_us = left or verdict.left
        if not verdict.allowed and verdict.retry_after_us is not None:
            shown_us = min(reset_us, verdict.retry_after_us)
        statuses.append((bound, remaining, shown_us, now_us + elapsed_us + reset_us))
    return statuses


def cost_in_units(stated: Any, limit: Limit, runtime: RuntimeLimit) -> int | Guess:
    """Return a cost, or what its function returns, in whole units. Raises ``ValueError``."""
    cost = stated() if callable(stated) else stated
    is_guess = isinstance(cost, Guess)
    parts: list[Any] = [cost.cost, cost.least] if is_guess else [cost]
    if limit.unit == "usd":
        try:
            parts = list(map(micro_dollars, parts))
        except ValueError as error:
            raise ValueError(f"the cost of the limit {str(runtime.limit)!r}: {error}") from None
    claim = cost.claim if is_guess else None
    parts += claim or ()
    for place, part in enumerate(parts):
        if part.__class__ is not int or part < 0:
            parts[place] = checked_cost(part, runtime.limit)
    if not is_guess:
        return int(parts[0])
    return Guess(parts[0], parts[1], claim and Claim(*parts[2:]))


def applies_to(limit: RuntimeLimit | Definition, method: str) -> bool:
    """Return whether the limit applies to the method; to OPTIONS only if its methods name it."""
    if limit.methods is None:
        return method != "OPTIONS"
    return method.lower() in limit.methods


def policy_item(limit: Limit) -> str:
    """Return the limit's item of the ``RateLimit-Policy`` header.

    A token bucket is announced as its burst over the time in which it refills: the same rate, and
    a quota that ``r`` can reach. Calls in flight and sessions have no window.
    """
    quota = limit.capacity
    item = f'"{header_name(limit)}";q={quota}'
    if limit.unit == "calls":
        return f'{item};qu="concurrent-requests"'
    unit = {"requests": "", "usd": ';qu="micro-usd"'}.get(limit.unit, f';qu="{limit.unit}"')
    if limit.traits.form is not None and not limit.traits.form.has_rate:
        return f"{item}{unit}"
    refill_us = -(-quota * limit.period_us // limit.amount) if quota else limit.period_us
    return f"{item};w={-(-refill_us // 1_000_000)}{unit}"


def header_name(limit: Limit) -> str:
    """Return the limit's label, as a header may have it."""
    name = limit.label
    return "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)
