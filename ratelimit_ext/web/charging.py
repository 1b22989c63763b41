"""Charges that a program makes outside of a request, such as a task or a scheduled job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from warnings import warn

import flask

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import ConfigurationError, unknown_name
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.web.bound_limit import BoundCharge, BoundLimit
from ratelimit_ext.web.components import Components
from ratelimit_ext.web.inventory import Row
from ratelimit_ext.web.request.reservation import Reservation

#: What a limit counts once for each call, whatever its cost.
_COUNTED = ("requests", "calls")


class PendingCharge(AbstractContextManager[Reservation]):
    """A charge that the ``with`` statement makes; without one, nothing is charged."""

    def __init__(self, charge: Callable[[], Reservation]) -> None:
        self._pending = [charge]

    def __enter__(self) -> Reservation:
        self._reservation = self._pending.pop()()  # a second `with` fails
        return self._reservation

    def __exit__(self, *_: object) -> None:
        self._reservation.close()

    def __del__(self) -> None:
        if self._pending:
            text = "limiter.charge(…) has charged nothing; write: with limiter.charge(…) as call"
            warn(text, RuntimeWarning, stacklevel=2)


def charged(
    components: Components,
    app: flask.Flask,
    names: Collection[str],
    identity: str,
    *,
    costs: dict[str, int],
    priority: str,
    member: str,
) -> Reservation:
    """Charge the limits of these names together, or none of them."""
    if not names:
        raise ConfigurationError("charge: found no name of a limit; give at least one.")
    bounds = (_limit(components, app, name, identity) for name in dict.fromkeys(names))
    limits = [bound for bound in bounds if bound is not None]
    counted = {bound.limit.unit for bound in limits}
    if limits and costs and counted.isdisjoint(costs):
        raise ConfigurationError(
            f"charge: found {' and '.join(costs)}, but {' and '.join(map(repr, names))} count "
            f"{' and '.join(sorted(counted))}."
        )
    if limits and member and not any(bound.limit.fair for bound in limits):
        raise ConfigurationError(
            f"charge: found the member {member!r}, but {' and '.join(map(repr, names))} are shared "
            "by no members. Leave it out, or add fair to a limit."
        )
    resolver = components.resolver
    charges: list[BoundCharge] = []
    for limit in limits:
        whole = resolver.adjusted(limit, identity)
        if whole is None:
            continue
        bound = resolver.of_class(whole, priority) if whole.limit.keep else whole
        unit = bound.limit.unit
        if unit not in costs and unit not in _COUNTED:
            raise ConfigurationError(
                f"charge: the limit {bound.limit.name!r} counts {unit}; give an estimate, such as "
                f"{unit}={'0.01' if unit == 'usd' else 1000}. settle() corrects it."
            )
        key = bucket_key(bound.bucket_prefix, identity)
        charge = bound, identity, Charge(bound.limit, key, costs.get(unit, 1))
        who = member, bucket_key("", member)
        charges += resolver.shared(whole, charge, who) if member and whole.member else [charge]
    return components.reserve(list(components.admission.admit_outside(charges)))


def _limit(components: Components, app: flask.Flask, name: str, identity: str) -> BoundLimit | None:
    """Return the limit of that name for the identity; ``None`` if it is of other plans."""
    inventory, callbacks = components.inventory, components.callbacks
    callers = callbacks.callers
    rows = inventory.named(app, name)
    if not rows:
        names = dict.fromkeys(row.limit.name for row in inventory.all_rows(app) if row.limit.name)
        hint = "" if names else f" Give a limit this name, with name={name!r}."
        raise ConfigurationError(f"charge: {unknown_name('limit', name, sorted(names))}{hint}")
    owner = callbacks.owner(rows[0].kinds, identity)
    row = _of_plan(rows, callers.plan(owner) if any(row.plan for row in rows) else None)
    if row is None:
        return None
    return components.resolver.outside(
        app,
        row.runtime,
        row.scope,
        row.prefix,
        plan=row.plan,
        optional=row.is_optional,
        amount=callers.amounts(owner).get(name),
    )


def _of_plan(rows: Sequence[Row], plan: str | None) -> Row | None:
    """Return the row of the plan, if it has one. Raises ``ConfigurationError`` if several could be
    meant."""
    left = [row for row in rows if plan is None or row.plan in ("", plan)]
    if len(left) > 1:
        meant = ", ".join(f"{row.runtime.limit} of {row.plan or row.scope}" for row in left)
        raise ConfigurationError(
            f"charge: {left[0].limit.name!r} is the name of several limits ({meant}). Give each a "
            "name of its own, or let limiter.operators.callers return the plan of the identity."
        )
    return left[0] if left else None
