"""Further attempts of an admitted request, such as a retry or a call of another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flask

from ratelimit_ext.web.bound_limit import BoundCharge, BoundLimit, ChargeRecord
from ratelimit_ext.web.request.admission import Admission
from ratelimit_ext.web.request.request_state import RequestState


def admit_again(
    admission: Admission,
    state: RequestState,
    names: tuple[str, ...],
    conditional: Sequence[BoundLimit],
    check_name: Callable[[str, str], None],
) -> float | None:
    """See :meth:`LimitedRequest.admit_again`. The ``conditional`` limits of the view may apply
    although they did not before: the attempt may call another model."""
    for name in set(names).difference(record.bound.limit.name for record in state.taken):
        check_name(name, "admit_again")
    charges, replaced, superseded = _charges(admission, state, names)
    if conditional:
        # Of what was held, only what is taken: the rest was given back.
        others = (r for r in state.decided if not (r.bound.limit.held and r.verdict.allowed))
        known = {record.bound.bucket_prefix for record in (*others, *state.taken)}
        new = [each for each in conditional if each.bucket_prefix not in known]
        charges += admission.charges.of(new)
    endpoint = flask.request.endpoint or ""
    if charges and (decided := admission.decide_again(endpoint, charges)) is not None:
        decision, records = decided
        if not decision.admitted:
            wait_ms = decision.retry_after_ms
            return math.inf if wait_ms is None else wait_ms / 1000
        # What the failed attempt took stays charged: it was made.
        gone = set(map(id, replaced))
        state.taken[:] = [record for record in state.taken if id(record) not in gone]
        state.taken.extend(record for record in records if record.verdict.allowed)
    if superseded:  # held of what the call no longer uses
        state.reserved().give_back(superseded)
    return None


def _charges(
    admission: Admission, state: RequestState, names: tuple[str, ...]
) -> tuple[list[BoundCharge], list[ChargeRecord], list[ChargeRecord]]:
    """Return what an attempt is charged: by the limits of these names, and by all that hold an
    estimate. With the records that it replaces, and those whose hold is not used any more."""
    again = [
        record
        for record in state.taken
        if record.bound.limit.name in names or record.bound.limit.held
    ]
    # Each of a group's budgets has the charge of the member's share beside it.
    limits = dict.fromkeys([each.bound for each in again if not each.bound.limit.is_share])
    charges: list[BoundCharge] = []
    superseded: list[ChargeRecord] = []
    for bound, identity, charge in admission.charges.of(limits, as_bound=True):
        cost = charge.cost
        if bound.limit.held:
            own = [record for record in again if record.bound is bound]
            held = [record for record in own if record.verdict.charge.key == charge.key]
            superseded += [r for r in own if r.verdict.charge.key != charge.key]
            cost -= sum(record.cost for record in held)
            if held and cost <= 0 and not bound.limit.has_shares:  # decided by their group
                continue
        charges.append((bound, identity, charge._replace(cost=max(0, cost))))
    superseded += [
        record
        for record in again
        if record.bound.limit.held
        and (condition := record.bound.condition) is not None
        and condition()
    ]
    replaced = [record for record in again if not record.bound.limit.held]
    return charges, replaced, superseded
