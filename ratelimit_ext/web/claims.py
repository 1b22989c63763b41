"""A claim: one limit prepared for an endpoint and method, ready to become a charge.

Everything that does not depend on the single request is computed here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from flask_limiter import Limit as Definition
from flask_limiter._limits import RuntimeLimit

from ratelimit_ext.core.charge import Charge, Guess, checked_cost
from ratelimit_ext.core.key import bucket_key, bucket_prefix
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.money import micro_dollars
from ratelimit_ext.web.limits_adapter import limit_of, rank

#: What a call is estimated to cost, by unit and the name of the limit ("": any other).
Estimators: TypeAlias = Mapping[tuple[str, str], Callable[[], Any]]


@dataclass(frozen=True, slots=True)
class Naming:
    """How an extension names its buckets: the storage's prefix, its own, its default strategy."""

    storage_prefix: str
    key_prefix: str
    strategy: str

    def prefix(self, limit: Limit, scope: str) -> str:
        """The name of a bucket as far as every identity shares it."""
        code = limit.traits.code
        label = f"{self.key_prefix}/{scope}" if self.key_prefix else scope
        return bucket_prefix(self.storage_prefix, code, limit, label)


@dataclass(frozen=True, slots=True)
class Claim:
    """A limit that a request may have to be charged to.

    ``shared_key`` is the bucket's name up to the identity; ``scope`` is Flask-Limiter's, for its
    callbacks. ``header`` is the limit's name in headers, ``policy`` its item there; ``order`` sorts
    a route's own limits before shared ones, and short periods before long ones. ``metas`` are
    claims on denials of this one. ``estimate`` is what the application registered for the unit,
    where the limit states no cost. An ``edge`` claim stays, whatever becomes of the call.
    """

    runtime: RuntimeLimit
    limit: Limit
    scope: str
    shared_key: str
    header: str
    policy: str
    order: tuple[bool, tuple[int, int]]
    metas: tuple[Claim, ...] = ()
    estimate: Callable[[], Any] | None = None
    edge: bool = False

    @property
    def name(self) -> str:
        """The limit's name in headers, without the quotes."""
        return self.header[1:-1]

    @property
    def unestimated(self) -> bool:
        """Whether it counts tokens or money, and nobody has said how many a call takes."""
        limit = self.limit
        return (
            limit.held
            and not limit.traits.one_per_call
            and self.estimate is None
            and self.runtime.cost == 1
        )

    def charge(self, identity: str, costs: dict[tuple[int, bool], int | Guess]) -> Charge:
        """The charge of the present request. Raises ``ValueError`` for an invalid cost.

        ``costs`` are the estimates that were asked already, by the function's identity and by
        whether its answer was in dollars.
        """
        if self.estimate is None:
            cost = self._cost(self.runtime.cost)
        else:
            question = id(self.estimate), self.limit.unit == "usd"
            known = costs.get(question)
            if known is None:
                known = costs[question] = self._cost(self.estimate)
            cost = known
        if isinstance(cost, Guess):
            cost = self._guessed(cost)
        return Charge(self.limit, bucket_key(self.shared_key, identity), cost)

    def _guessed(self, guess: Guess) -> int:
        """What a guess charges: what the limit can hold at most, unless the least is above that."""
        charged: int = max(guess.least, min(guess.cost, self.limit.capacity))
        return charged

    def _cost(self, stated: Any) -> int | Guess:
        cost = stated() if callable(stated) else stated
        if isinstance(cost, Guess):
            return Guess(self._in_units(cost.cost), self._in_units(cost.least))
        return self._in_units(cost)

    def _in_units(self, cost: Any) -> int:
        if self.limit.unit == "usd":
            cost = _micro_dollars(cost, self.runtime.limit)
        if cost.__class__ is not int or cost < 0:
            return checked_cost(cost, self.runtime.limit)
        units: int = cost
        return units


class ClaimMaker:
    """Makes claims for one endpoint and method out of runtime limits."""

    def __init__(
        self,
        naming: Naming,
        endpoint: str,
        method: str,
        estimators: Estimators = MappingProxyType({}),
    ) -> None:
        self._naming = naming
        self._estimators = estimators
        self._endpoint = endpoint
        self._method = method

    def claims(self, runtimes: Iterable[RuntimeLimit], *, edge: bool = False) -> tuple[Claim, ...]:
        """A claim for each of the limits; ``edge``: they are the application's."""
        return tuple([self.claim(runtime, edge=edge) for runtime in runtimes])

    def concerned(self, claims: Iterable[Claim]) -> tuple[Claim, ...]:
        """Those of the claims whose limit applies to the method."""
        return tuple([claim for claim in claims if concerns(claim.runtime, self._method)])

    def claim(self, runtime: RuntimeLimit, *, edge: bool = False) -> Claim:
        """The claim for one limit. A scope that is a callable is asked at the request."""
        limit = limit_of(runtime.limit, self._naming.strategy)
        asked = callable(runtime.scope)
        scope = "" if asked else runtime.scope_for(self._endpoint, self._method)
        return Claim(
            runtime=runtime,
            limit=limit,
            scope=scope,
            shared_key="" if asked else self._naming.prefix(limit, scope),
            header=f'"{header_name(limit)}"',
            policy=policy_item(limit),
            order=(runtime.shared, rank(runtime.limit)),
            metas=tuple(self.claim(meta) for meta in runtime.meta_limits or ()),
            estimate=self._estimate(limit) if runtime.cost == 1 else None,
            edge=edge,
        )

    def _estimate(self, limit: Limit) -> Callable[[], Any] | None:
        if limit.traits.one_per_call:
            return None
        own = self._estimators.get((limit.unit, limit.name))
        return own or self._estimators.get((limit.unit, ""))

    def in_present_scope(self, claim: Claim) -> Claim:
        """The claim with its scope asked for the present request, where it is a callable."""
        if not callable(claim.runtime.scope):
            return claim
        scope = claim.runtime.scope_for(self._endpoint, self._method)
        return replace(claim, scope=scope, shared_key=self._naming.prefix(claim.limit, scope))


def _micro_dollars(cost: Any, label: object) -> int:
    """A cost in dollars as micro-dollars, or a ``ValueError`` that names the limit."""
    try:
        return micro_dollars(cost)
    except ValueError as error:
        raise ValueError(f"the cost of the limit {str(label)!r}: {error}") from None


def concerns(limit: RuntimeLimit | Definition, method: str) -> bool:
    """Whether the limit applies to the method; OPTIONS is free where it is not named."""
    if limit.methods is None:
        return method != "OPTIONS"
    return method.lower() in limit.methods


def policy_item(limit: Limit) -> str:
    """The limit's item of a ``RateLimit-Policy`` header, without quotes around the name.

    A token bucket is announced as its burst over the time in which that refills: the same rate,
    and a quota that ``r`` can reach.
    """
    quota = limit.capacity
    window = -(-quota * limit.period_us // (limit.amount * 1_000_000))
    counted = {"usd": "micro-usd", "calls": "concurrent-requests"}.get(limit.unit, limit.unit)
    unit = "" if limit.unit == "requests" else f';qu="{counted}"'
    return f'"{header_name(limit)}";q={quota};w={window}{unit}'


def header_name(limit: Limit) -> str:
    """What the limit is called in headers: its name, else what it says."""
    name = limit.name or f"{limit.amount}-per-{limit.period_us // 1_000_000}s"
    return "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)
