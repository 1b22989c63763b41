"""``limiter.current``: what the limits say of the current request, and do for it."""

from __future__ import annotations

import math
from decimal import Decimal
from operator import attrgetter
from typing import Any

from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.web.bound_limit import BoundCharge, ChargeRecord
from ratelimit_ext.web.hooks import RequestHooks
from ratelimit_ext.web.request.admission import Admission
from ratelimit_ext.web.request.request_state import RequestLimit, RequestState
from ratelimit_ext.web.request.reservation import Reservation, one_per_verdict
from ratelimit_ext.web.request.waiting_room import Places


class LimitedRequest:
    """The current request. Nothing here asks the storage but ``admit_edge``, ``admit_again`` and
    ``peek``.

    Take it once and keep it in a request that needs several of these.
    """

    __slots__ = ("_context", "_hooks", "_state")

    def __init__(self, hooks: RequestHooks, context: Any) -> None:
        self._hooks = hooks
        self._context = context
        self._state = hooks.state_in(context)

    @property
    def plan(self) -> str:
        """The name of the caller's plan; the plan loader is called once a request. A plan that the
        policy does not have is the default one, and is logged once."""
        plan_name = self._state.plan_name
        return self._hooks.plan_of(self._state) if plan_name is None else plan_name

    @property
    def limits(self) -> list[RequestLimit]:
        """All enforced limits that were decided, the shortest period first."""
        return list(map(self._hooks.components.shown, self._records()))

    @property
    def limit(self) -> RequestLimit | None:
        """The limit nearest to exhaustion; in a denied request, the one with the longest wait."""
        record = self._state.nearest()
        return None if record is None else self._hooks.components.shown(record)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts of `limits`, in the same order; a tenth of the work."""
        return [record.verdict for record in self._records()]

    def _records(self) -> list[ChargeRecord]:
        records = sorted(self._state.records, key=attrgetter("bound.rank"))
        allowed = [record.verdict.allowed for record in records]
        if self._hooks.components.fail_on_first_breach and False in allowed:
            return records[: allowed.index(False) + 1]
        return records

    def verdict(self, name: str) -> Verdict | None:
        """Return the verdict of the limit of that name; ``None`` without one. Shadow limits and
        guards have verdicts, too."""
        for record in self._state.decided[::-1]:
            if record.bound.limit.name == name:
                return record.verdict
        return None

    @property
    def reservation(self) -> Reservation:
        """The charges of the request, for their settlement.

        Take it before a stream begins: it works after the request's context is gone.
        """
        return self._state.reservation or self._hooks.reservation_in(self._context)

    @property
    def places(self) -> Places:
        """The places of requests of this process that wait: take one to let its thread wait."""
        return self._hooks.components.admission.waiting_room.places

    def cancel(self) -> None:
        """Note that the call of the request failed without a cost: everything but the application's
        own limits is refunded when the response is closed."""
        self.reservation.cancel()

    @property
    def remaining_budget(self) -> Decimal | None:
        """What the request may cost in dollars: the least of its enforced limits in ``usd``. The
        only call in flight may use all that a limit has left, with what it holds of it. Beside
        others, it may use what it holds, if its estimate states a ``claim``.

        As of the latest admission. ``None`` without such a limit. Guards are not budgets.
        """
        budgets: dict[tuple[Engine, str], tuple[int, int, bool]] = {}
        dollars = [r for r in self._state.taken if r.verdict.charge.limit.unit == "usd"]
        for record in one_per_verdict(dollars):  # in the order of admission
            verdict = record.verdict
            limit, bucket = verdict.charge.limit, (record.engine, verdict.charge.key)
            if limit.visible and limit.mode == "enforce":
                held, _, is_shared = budgets.get(bucket, (0, 0, False))
                is_shared = is_shared or bool(verdict.others)
                budgets[bucket] = held + verdict.charge.cost, verdict.remaining, is_shared
        left = [held + (0 if shared else rest) for held, rest, shared in budgets.values()]
        return Decimal(min(left)).scaleb(-6) if left else None

    @property
    def is_alone(self) -> bool:
        """Whether no budget of the request had other calls in flight when it was admitted: then it
        may cost more than they hold for it."""
        return {record.verdict.others for record in self._state.taken} <= {0, None}

    def admit_edge(self) -> None:
        """Decide the application's own limits now, before a request that is expensive to read is
        read. The view's other limits are decided before the view, in a second round trip."""
        self._hooks.admit_edge(self._context, self._state)

    def admit_again(self, *names: str) -> float | None:
        """Charge the request's limits of these names once more, for another attempt.

        For a request that was admitted and whose call is made again. Identities and costs are asked
        again, so it may use another model. What is held until the call is over (tokens, money,
        calls in flight) is not charged again: if the estimate is higher now, the difference is held
        as well, by every limit of the request whatever its name. A limit whose keywords say that it
        applies only now is charged, and one that does not apply any more gives back what it holds.

        Returns ``None`` if the attempt is admitted, else the wait in seconds, with nothing charged.
        A name without a limit in the request is ignored; if the whole application has no limit of
        the name, a warning is logged.
        """
        state, components = self._state, self._hooks.components
        admission = components.admission
        for name in set(names).difference(record.bound.limit.name for record in state.taken):
            components.known_names.check_name(name, "admit_again")
        charges, replaced, superseded = _charges_again(admission, state, names)
        if components.callbacks.conditions:
            # Of what was held, only what is taken: the rest was given back.
            others = (r for r in state.decided if not (r.bound.limit.held and r.verdict.allowed))
            prefixes = {record.bound.bucket_prefix for record in (*others, *state.taken)}
            conditional = self._hooks.conditional_limits(self._context)
            charges += admission.charges.of(
                [bound for bound in conditional if bound.bucket_prefix not in prefixes]
            )
        endpoint = self._context.request.endpoint or ""
        if charges and (records := admission.decide_again(endpoint, charges)) is not None:
            if not records.decision.admitted:
                wait_ms = records.decision.retry_after_ms
                return math.inf if wait_ms is None else wait_ms / 1000
            # What the failed attempt took stays charged: it was made.
            gone = set(map(id, replaced))
            state.taken[:] = [record for record in state.taken if id(record) not in gone]
            state.taken.extend(record for record in records if record.verdict.allowed)
        if superseded:  # held of what the call no longer uses
            state.reserved().give_back(superseded)
        return None

    def peek(self, endpoint: str, *, method: str = "GET") -> list[RequestLimit]:
        """Return what the caller has left of each limit of an endpoint, the shortest period first.

        Nothing is charged. A limit whose identity depends on more than the request has, such as the
        model of a call, is left out. Empty if limits are disabled. Raises ``ValueError`` for an
        unknown endpoint.
        """
        hooks = self._hooks
        if not hooks.is_enabled:
            return []
        shown = [record for record in hooks.look(endpoint, method) if record.bound.is_shown]
        shown.sort(key=attrgetter("bound.rank"))
        return list(map(hooks.components.shown, shown))


def _charges_again(
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
    limits = dict.fromkeys([record.bound for record in again if not record.bound.limit.is_share])
    charges: list[BoundCharge] = []
    superseded: list[ChargeRecord] = []
    for bound, identity, charge in admission.charges.of(limits, as_bound=True):
        cost, claim = charge.cost, charge.claim
        if bound.limit.held:
            records = [record for record in again if record.bound is bound]
            held = [record for record in records if record.verdict.charge.key == charge.key]
            if claim is not None and any(record.verdict.others for record in held):
                cost = claim.beside
            superseded += [r for r in records if r.verdict.charge.key != charge.key]
            cost -= sum(record.cost for record in held)
            if held and cost <= 0 and not bound.limit.has_shares:  # decided by their group
                continue
            claim = None if held else claim
        charges.append((bound, identity, charge._replace(cost=max(0, cost), claim=claim)))
    superseded += [
        record
        for record in again
        if record.bound.limit.held
        and (condition := record.bound.condition) is not None
        and condition()
    ]
    replaced = [record for record in again if not record.bound.limit.held]
    return charges, replaced, superseded
