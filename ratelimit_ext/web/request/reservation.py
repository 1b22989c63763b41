"""A reservation: an admitted request whose costs were estimates, until it is settled.

Nothing is sent before the call is over: settling notes the actual cost, and closing corrects every
charge of the request in one call per engine, which also frees its slots.

:meth:`Reservation.give_back` is the only place that refunds: it takes the record out of the
request, so that it is neither refunded nor settled again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import compress
from typing import Any, Final, TypeAlias

import flask

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import KEPT_AFTER_LEASE_S, Charge
from ratelimit_ext.core.errors import unknown_name
from ratelimit_ext.core.events import Events, SettlementEvent
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, MOST_AMOUNT, NO_OPTIONS
from ratelimit_ext.core.limit_string import stated_units, states_strategy
from ratelimit_ext.core.money import MICRO, Dollars, micro_dollars
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.engine.engine import Engine, Substitute
from ratelimit_ext.settlements.queue import SettlementQueue
from ratelimit_ext.strategies.guards.block import BlockReason, check_reason, length_us, new_block
from ratelimit_ext.strategies.guards.quota import quota_report
from ratelimit_ext.web.bound_limit import ChargeRecord

#: A long call renews its lease at most this often, and three times within a shorter lease.
RENEW_EVERY_S: Final = 5.0

#: A provider's quota in input tokens does not count what was read from a cache.
UNCACHED: Final = "uncached_input_tokens"

#: Names built from request data would fill the log and memory.
MOST_WARNINGS: Final = 100
#: A change, and the engine that took the charge.
Addressed: TypeAlias = tuple[Engine, Change]

_logger = logging.getLogger("ratelimit_ext")


class KnownNames:
    """Warns, once for each, of names of limits that no limit has.

    An application may refer to a limit that its operator's policy leaves out. This is no error,
    but it may be a misspelling. There is no warning if no limit has a name of the kind.
    """

    def __init__(self, definitions: Callable[[], Iterable[Any]]) -> None:
        self._definitions = definitions
        self._warned: set[tuple[str, str]] = set()

    def check_name(self, name: str, caller: str, *, change: str = "") -> None:
        """Warn if no limit has the name; with a ``change``, no limit whose strategy may take it."""
        kind = "'unless blocked' limit" if change else "limit"
        self._warn(name, caller, kind, change, lambda d: getattr(d, "name", ""))

    def check_unit(self, unit: str, caller: str) -> None:
        """Warn if no limit ``as reported`` has the unit."""
        self._warn(unit, caller, "unit", "report", lambda d: getattr(d, "unit", "") or "requests")

    def check_settled(self, units: Collection[str]) -> None:
        """Warn if the application has limits, and none of them counts any of the units."""
        settled = " or ".join(unit for unit in units if unit != UNCACHED)
        definitions = list(self._definitions())
        if not (settled and definitions) or ("settle", settled) in self._warned:
            return
        self._warned.add(("settle", settled))  # also if there is no warning: it is checked once
        for definition in definitions:
            text, options = definition.limit_provider, getattr(definition, "options", NO_OPTIONS)
            if callable(text) or not stated_units(text, options).isdisjoint(units):
                return
        _log_warning(
            "limiter.settle has no effect: no limit of the application counts %s. Add one, such as "
            '@limiter.limit("90000/minute", unit="tokens"), or remove the call.',
            settled,
        )

    def _warn(
        self, name: str, caller: str, kind: str, change: str, name_of: Callable[[Any], str]
    ) -> None:
        strategies = strategies_taking(change)
        names: set[str] = set()
        for definition in self._definitions():
            if not change or states_strategy(
                definition.limit_provider, getattr(definition, "options", NO_OPTIONS), strategies
            ):
                names.add(name_of(definition))
            elif callable(definition.limit_provider) and name_of(definition) == name:
                return  # a function can return any string
        names.discard("")
        warned = (caller, name) in self._warned or len(self._warned) >= MOST_WARNINGS
        if not names or name in names or warned:
            return
        self._warned.add((caller, name))
        _log_warning("%s has no effect: %s", caller, unknown_name(kind, name, sorted(names)))


def _log_warning(text: str, *values: str) -> None:
    logger = flask.current_app.logger if flask.has_app_context() else _logger
    logger.warning(text, *values)


def _by_now(charge: Charge, amount: int, used: int, period_us: int, as_of: float) -> Change:
    """Return the report of a provider's quota as of now: what was used at that instant of the
    monotonic clock has been refilling evenly since."""
    refilled = int((time.monotonic() - as_of) * MICRO) * amount // period_us
    return quota_report(charge, amount, max(0, used - refilled), period_us)


class Reservation:
    """The charges of one admitted request.

    The response closes it: a stream at its end, a complete response with its request. Code that
    needs it for longer, or has no response, calls :meth:`detach` and closes it. All methods may be
    called from any thread. None of them raises if the storage is unavailable: settlements are kept
    and sent again, and the lease expires if they never arrive.
    """

    def __init__(
        self,
        records: list[ChargeRecord],
        names: KnownNames,
        *,
        settlements: SettlementQueue,
        events: Events,
        lease_s: float,
    ) -> None:
        self._names = names
        self._settlements = settlements
        self._events = events
        self._lease_s = lease_s
        self._records = records  # the request's own list: each admission adds to it
        self._corrections: list[Addressed] = []  # due before the call is over
        self._actual: dict[str, int] = {}
        self._so_far: dict[str, int] = {}  # as of the last renewal
        self._reported: dict[str, tuple[Engine, Callable[[], Change]]] = {}
        self._cancelled = self._unseen = False
        self._renewed_at = time.monotonic()
        self._lock = threading.Lock()
        #: Whether :meth:`detach` was called: the response does not close it.
        self.detached = False

    def settle(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_input_tokens: int = 0,
        usd: Dollars | None = None,
        unseen: bool = False,
    ) -> None:
        """Note the actual cost of the call. ``tokens`` defaults to input and output together.

        ``cached_input_tokens`` are a part of the input, which a provider's quota in
        ``input_tokens`` does not count. A unit that is not given stays at its estimate. The last
        call before closing counts. ``unseen``: the call may be billed more than that. Until their
        windows end, its budgets then let no call spend more than they hold for it.
        """
        self._unseen = unseen
        costs = costs_by_unit(tokens, input_tokens, output_tokens, usd)
        if input_tokens is not None:
            costs[UNCACHED] = max(0, input_tokens - cached_input_tokens)
        self._actual |= costs

    def check_settled(self) -> None:
        """Warn if neither the request nor its application has a limit in a settled unit."""
        if self._actual.keys().isdisjoint({record.bound.limit.unit for record in self._records}):
            self._names.check_settled(self._actual)

    def report(
        self, unit: str, *, amount: int, used: int, period_s: int, as_of: float | None = None
    ) -> None:
        """Note what a provider reported of its quota in this unit: ``used`` of ``amount`` per
        period, at ``as_of`` (of the monotonic clock; default: now).

        It reaches the storage with the next changes, for the request's limits ``as reported``.
        Without such a limit the report is ignored; if the whole application has none in the unit,
        a warning is logged. Raises ``ValueError`` for invalid numbers.
        """
        whole = {"amount": (amount, 1, MOST_AMOUNT), "used": (used, 0, MOST_AMOUNT)}
        whole["period_s"] = (period_s, 1, LONGEST_PERIOD_US // MICRO)
        for word, (value, least, most) in whole.items():
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"report: {word} is {value!r}; allowed: a whole number from {least} to {most}."
                )
        since = time.monotonic() if as_of is None else as_of
        is_known = False
        for record in tuple(self._records):  # a retry may use another model
            limit = record.bound.limit
            if "report" in limit.traits.changes and limit.unit == unit:
                is_known, charge = True, record.verdict.charge
                report = partial(_by_now, charge, amount, used, period_s * MICRO, since)
                self._reported[charge.key] = record.engine, report
        if not is_known:
            self._names.check_unit(unit, "reservation.report")

    def block(self, name: str, *, for_s: float, reason: BlockReason = "overloaded") -> None:
        """Block the identity of the request's limit ``unless blocked`` of this name, in all
        workers, for ``for_s`` seconds.

        Ignored if the request has no such limit; if the whole application has none, a warning is
        logged. Raises ``ValueError`` for an invalid length.
        """
        for_us = length_us(for_s)
        check_reason(reason)
        blocks: list[Addressed] = [
            (record.engine, new_block(record.verdict.charge, for_us, reason))
            for record in one_per_verdict(self._records)
            if "block" in record.bound.limit.traits.changes and record.bound.limit.name == name
        ]
        if not blocks:
            self._names.check_name(name, "reservation.block", change="block")
        self._send(blocks + self._reports())

    @property
    def renewal_is_due(self) -> bool:
        """Whether :meth:`renew` would reach the storage now, if costs are expensive to compute."""
        pause_s = min(RENEW_EVERY_S, self._lease_s / 3)
        return bool(self._records) and time.monotonic() - self._renewed_at >= pause_s

    def renew(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        usd: Dollars | None = None,
        at_once: bool = False,
    ) -> None:
        """Extend the lease of a running call, with its cost so far. Cheap to call at every chunk:
        it reaches the storage once in :data:`RENEW_EVERY_S` seconds, or a third of the lease, or
        ``at_once``. That cost is charged if the worker dies; in a unit that was never given, the
        estimate."""
        if not (at_once or self.renewal_is_due):
            return
        self._renewed_at = time.monotonic()
        self._so_far |= costs_by_unit(tokens, input_tokens, output_tokens, usd)
        renewals: list[Addressed] = [
            (r.engine, Change.renew(r.verdict, r.hold, self._spent(r, is_first=is_first)))
            for r, is_first in _charges(self._records)
            if r.bound.limit.held and r.verdict.receipt is not None
        ]
        self._send(renewals + self._reports())

    def _spent(self, record: ChargeRecord, *, is_first: bool) -> int | None:
        """Return what the call has spent of a charge as of its last renewal; ``None`` if unknown.
        The first charge of a bucket has the whole cost."""
        so_far = self._so_far.get(record.bound.limit.unit)
        return so_far if is_first or so_far is None else 0

    def cancel(self) -> None:
        """Note that the call failed without a cost: refund all but the application's own limits."""
        self._cancelled = True

    def detach(self) -> Reservation:
        """Keep it open after the response; the caller closes it."""
        self.detached = True
        return self

    def close(self) -> None:
        """Correct the charges and free the slots. A second call changes nothing."""
        if self._cancelled:
            self.give_back(record for record in tuple(self._records) if _is_cancelled(record))
        with self._lock:
            records, self._records[:] = tuple(self._records), []
        self._send(self._due_corrections() + self._settled(records) + self._reports())
        self.detached = False  # the response closes what the request takes from now on

    def give_back(self, records: Iterable[ChargeRecord]) -> list[ChargeRecord]:
        """Refund these records with the next changes; returns those not refunded before."""
        with self._lock:
            chosen = set(map(id, records))
            gone = [record for record in self._records if id(record) in chosen]
            self._records[:] = [record for record in self._records if id(record) not in chosen]
            in_use = {id(record.verdict) for record in self._records}
            for record in gone:
                verdict, engine = record.verdict, record.engine
                if verdict.receipt is None:
                    continue  # nothing was charged
                if record.bound.limit.held:
                    if id(verdict) not in in_use:  # one hold for all limits of a bucket
                        in_use.add(id(verdict))
                        self._corrections += self._ended(record, 0)
                elif record.cost:
                    self._corrections.append((engine, Change.adjust(verdict, -record.cost)))
        return gone

    def charge_late(self, records: Iterable[ChargeRecord]) -> None:
        """Charge what had only to fit before the view, to the present windows, unless cancelled."""
        with self._lock:
            self._corrections += [
                (record.engine, Change.adjust(record.verdict._replace(receipt=0), record.cost))
                for record in records
                if record.cost
                and record.verdict.receipt is not None
                and not (self._cancelled and _is_cancelled(record))
            ]

    def refuse(self) -> list[ChargeRecord]:
        """Refund a request that was admitted and then refused: everything but what was settled
        before. Returns what was refunded."""
        return self.give_back(record for record in tuple(self._records) if self._is_refused(record))

    def send_corrections(self) -> None:
        """Send refunds and late charges now instead of with the settlement."""
        self._send(self._due_corrections())

    def _is_refused(self, record: ChargeRecord) -> bool:
        """Return whether a refused request gets this back. If it settled anything, it has made its
        call, which the provider's quota has counted."""
        limit = record.bound.limit
        if limit.traits.external and self._actual:
            return False
        return limit.unit not in self._actual

    def _settled(self, records: Sequence[ChargeRecord]) -> list[Addressed]:
        """Return the changes that settle charges: the end of a call can change an estimate, and
        what is the provider's to count. The first charge of a bucket carries the actual cost of the
        request, all others nothing."""
        limits = [record.bound.limit for record in records]
        changed = compress(records, [each.held or each.traits.external for each in limits])
        changes: list[Addressed] = []
        for record, is_first in _charges(changed):
            limit, verdict = record[0].limit, record[3]
            if verdict.receipt is None:
                continue  # nothing was charged
            unit, charge, traits = limit.unit, verdict.charge, limit.traits
            taken = charge.cost if charge.at_once is None else charge.at_once
            if traits.external and unit == "input_tokens":
                unit = UNCACHED
            actual = 0 if traits.one_per_call else self._actual.get(unit)
            if actual is None or self._cancelled:
                actual = taken
            elif not is_first:
                actual = 0
            if limit.held:
                unseen = self._unseen and charge.claim is not None
                changes += self._ended(record, actual, is_first=is_first, unseen=unseen)
            elif actual != taken:
                changes.append((record.engine, Change.adjust(verdict, actual - taken)))
        return changes

    def _ended(
        self, record: ChargeRecord, actual: int, *, is_first: bool = True, unseen: bool = False
    ) -> list[Addressed]:
        """Return the changes that end a hold. If the storage has forgotten it, what was spent stays
        charged, and only the difference is corrected."""
        verdict, engine = record.verdict, record.engine
        changes: list[Addressed] = []
        if time.monotonic() - self._renewed_at > self._lease_s + KEPT_AFTER_LEASE_S:
            spent = self._spent(record, is_first=is_first)
            if spent is None:
                spent = 0 if record.bound.limit.traits.one_per_call else verdict.charge.expected
            delta, actual = actual - spent, spent
            if delta:
                late = verdict._replace(receipt=0) if delta > 0 else verdict
                changes.append((engine, Change.adjust(late, delta)))
        changes.append((engine, Change.settle(verdict, record.hold, actual, unseen=unseen)))
        return changes

    def _due_corrections(self) -> list[Addressed]:
        with self._lock:
            corrections, self._corrections = self._corrections, []
        return corrections

    def _reports(self) -> list[Addressed]:
        reported, self._reported = self._reported, {}
        return [(engine, report()) for engine, report in reported.values()]

    def _send(self, changes: Iterable[Addressed]) -> None:
        by_engine: dict[Engine, list[Change]] = {}
        for engine, change in changes:
            by_engine.setdefault(engine, []).append(change)
        for engine, batch in by_engine.items():
            began = time.perf_counter() if self._events.listeners else 0.0
            outcome = self._settlements.send(
                engine, batch, lease_s=self._lease_s, events=self._events
            )
            settled = {change.hold for change in batch if change.verb == "settle"}
            for hold in settled.difference(record.hold for record in tuple(self._records)):
                self._settlements.end(engine, hold)
            if self._events.listeners:
                self._events.emit(SettlementEvent(batch, outcome, time.perf_counter() - began))


def one_per_verdict(records: Iterable[ChargeRecord]) -> list[ChargeRecord]:
    """Return the records without those that share another's verdict: they are one charge."""
    return list({id(record.verdict): record for record in records}.values())


def _charges(records: Iterable[ChargeRecord]) -> list[tuple[ChargeRecord, bool]]:
    """One record for each charge, and whether it is the first of its bucket: a request that is
    charged to a limit several times has its cost once, also if an outage of the storage began or
    ended in between. The storage's charges come first: in an outage a limit may not count."""
    charged = one_per_verdict(records)
    in_outage = [record for record in charged if isinstance(record.engine, Substitute)]
    if in_outage:
        charged = [r for r in charged if not isinstance(r.engine, Substitute)] + in_outage
    first: dict[str, ChargeRecord] = {}
    return [(r, first.setdefault(r.verdict.charge.key, r) is r) for r in charged]


def _is_cancelled(record: ChargeRecord) -> bool:
    """Return whether a failed call gets this back: edge limits and a provider's quota count it."""
    limit = record.bound.limit
    return limit.held or not (record.bound.is_edge or limit.traits.external)


def costs_by_unit(
    tokens: int | None, input_tokens: int | None, output_tokens: int | None, usd: Dollars | None
) -> dict[str, int]:
    if tokens is None and (input_tokens is not None or output_tokens is not None):
        tokens = (input_tokens or 0) + (output_tokens or 0)
    counts = {"tokens": tokens, "input_tokens": input_tokens, "output_tokens": output_tokens}
    costs = {unit: count for unit, count in counts.items() if count is not None}
    for unit, count in costs.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"{unit}: found {count!r}; allowed: a whole number from 0 up.")
    if usd is not None:
        costs["usd"] = micro_dollars(usd)
    return costs
