"""A charge: one limit, one identity, one cost."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ratelimit_ext.core.limit import Limit

#: An id is not secret, and the system's random numbers cost a system call each.
_chance: Final = random.Random()  # noqa: S311
if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_chance.seed)


class Claim(NamedTuple):
    """What a call claims of a budget that it shares with others in flight, in micro-dollars.

    Beside others it may spend what it gets: an equal part of what is left, but at least ``beside``,
    which it needs, and at most ``usual``, or a 64th of what is left if that is more, up to
    ``most``. The only call may spend all that is left. It holds its expected cost, or more up to
    ``alone``, but no more than half of what is left. Once it is admitted, ``alone`` is its expected
    cost.
    """

    alone: int
    beside: int
    usual: int
    most: int


#: The ``on_denial`` of a limit on denials that no denial triggers.
NEVER: Final = (999,)


class Charge(NamedTuple):
    """What one request claims of one bucket.

    ``key`` names the bucket (limit and identity together, see :mod:`ratelimit_ext.core.key`);
    ``cost`` is in the limit's unit, and 0 looks without taking. A ``meta`` charge is one that is
    taken when a request is denied: ``on_denial`` holds the positions of the charges whose denial
    triggers it, empty for any. With ``at_once``, only so many units are taken: the whole cost has
    to fit, and denies if it does not, also a cost of 0 on an overdrawn bucket. With a ``claim``,
    what is taken depends on the calls in flight.
    """

    limit: Limit
    key: str
    cost: int = 1
    meta: bool = False
    on_denial: tuple[int, ...] = ()
    at_once: int | None = None
    claim: Claim | None = None

    @property
    def expected(self) -> int:
        """What the call of an admitted charge is expected to cost."""
        return self.cost if self.claim is None else self.claim.alone

    @property
    def taken(self) -> int:
        return self.cost if self.at_once is None else self.at_once


class PreparedCharges(tuple[Charge, ...]):  # noqa: SLOT001 - a tuple allows none
    """The charges of one request. ``prepared`` is what an engine has made of them. Those that are
    ``kept`` for a caller are the same without the costs and claims of ``unpriced`` places."""

    prepared: Any = None
    kept: PreparedCharges | None = None
    unpriced: tuple[int, ...] = ()


#: How long a call may go without renewal before its reservation expires.
DEFAULT_LEASE_S: Final = 120.0
#: A dead worker's calls keep their slots and amounts for a lease.
LONGEST_LEASE_S: Final = 86_400
#: How long a hold is remembered after its lease (GRACE in reservations.lua), and its settlement is
#: sent again, in seconds.
KEPT_AFTER_LEASE_S: Final = 600.0


class Hold(NamedTuple):
    """The id under which a call reserves its estimates, and its lease in microseconds.

    An id has 48 random bits. What a call did not spend goes back if its lease ends unsettled.
    ``waited_us`` is for how long a request has waited that may wait for its turn; its id is also
    that of its place in line. With ``keeps``, its estimate counts as spent until a renewal knows
    better. ``price`` is what the call reserves (:func:`price_of`): members who share calls in
    flight have their turns by it.
    """

    id: int
    lease_us: int
    waited_us: int | None = None
    keeps: int = 0
    price: int = 0


def new_hold(lease_us: int, *, keeps: bool = False) -> Hold:
    """Return a hold with an id that no other call of any worker has."""
    return Hold(_chance.getrandbits(48) or 1, lease_us, keeps=int(keeps))


def price_of(charges: Iterable[Charge]) -> int:
    """Return what a call reserves by its charges: in micro-dollars; without a limit in dollars, in
    tokens; 0 if neither is known."""
    costs = [(limit.unit, cost) for limit, _, cost, is_meta, *_ in charges if not is_meta]
    dollars = [cost for unit, cost in costs if unit == "usd"]
    return max(dollars or [cost for unit, cost in costs if unit == "tokens"], default=0)


#: For charges that are final.
NO_HOLD = Hold(0, 0)


@dataclass(frozen=True, slots=True)
class Guess:
    """A rough estimate: what a request is expected to cost, and what it costs at the least.

    An estimator or a cost function returns it in place of a plain number, in the same unit
    (``usd`` in dollars). A limit that can never hold ``cost`` is charged its capacity; only a
    ``least`` above the capacity makes the request too large. Budgets charge what a ``claim`` gets.

    >>> Guess(5000, least=100)
    Guess(cost=5000, least=100, claim=None)
    """

    cost: Any
    least: Any = 0
    claim: Claim | None = None


def checked_cost(cost: object, label: object) -> int:
    """``cost`` as a whole number of units, or a :class:`ValueError` that names the limit.

    >>> checked_cost(3, "5/minute")
    3
    >>> checked_cost(-1, "5/minute")
    Traceback (most recent call last):
    ...
    ValueError: the cost of the limit '5/minute' is -1; a whole number from 0 up is allowed
    """
    if type(cost) is int and cost >= 0:
        return cost
    if isinstance(cost, float) and cost.is_integer() and cost >= 0:
        return int(cost)
    raise ValueError(
        f"the cost of the limit {str(label)!r} is {cost!r}; a whole number from 0 up is allowed"
    )
