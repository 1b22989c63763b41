"""A reservation: an admitted request whose costs were estimates, and what becomes of them.

Nothing is sent before the call is over: settling notes the real cost, and closing corrects every
charge of the request in one call of each engine that took one, which also frees its slots.

Each charge is refunded in one place: :meth:`Reservation.give_back` takes its entry out of the
request, so that nothing else refunds or settles it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

from ratelimit_ext.core.charge import Change, Charge
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, MOST_AMOUNT
from ratelimit_ext.core.money import Dollars, micro_dollars
from ratelimit_ext.engine.engine import Correction, Engine, Renewal
from ratelimit_ext.strategies.guards.block import BlockReason, NewBlock, check_reason, length_us
from ratelimit_ext.strategies.guards.provider_quota import QuotaReport
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.known_names import KnownNames
from ratelimit_ext.web.settlement_queue import SettlementQueue

#: A long call renews its lease at most this often, and three times within a shorter lease.
RENEW_EVERY_S: Final = 5.0

MICRO: Final = 1_000_000
#: What a keeper of an allowance counts of the input: not what was read from a cache.
UNCACHED: Final = "uncached_input_tokens"

#: A change, and the engine that took the charge.
Addressed: TypeAlias = tuple[Engine, Change]


class Reported(NamedTuple):
    """What was used of an allowance at an instant of the monotonic clock."""

    engine: Engine
    charge: Charge
    amount: int
    used: int
    period_us: int
    as_of: float

    def by_now(self) -> QuotaReport:
        """The same with what is still used, as it refills evenly."""
        elapsed_us = int((time.monotonic() - self.as_of) * MICRO)
        refilled = elapsed_us * self.amount // self.period_us
        return QuotaReport(self.charge, self.amount, max(0, self.used - refilled), self.period_us)


class Reservation:
    """The charges of one admitted request.

    The response closes it: a stream at its end, a whole answer with its request. Code that needs
    it for longer, or has no response, takes it with :meth:`detach` and closes it. All methods may
    be called from any thread. None of them raises if the storage is unavailable: settlements are
    kept and sent again, and the lease is the net.
    """

    def __init__(
        self,
        entries: list[Entry],
        names: KnownNames,
        *,
        settlements: SettlementQueue,
        lease_s: float,
    ) -> None:
        self._names = names
        self._settlements = settlements
        self._lease_s = lease_s
        self._entries = entries  # the request's own list: each admission adds to it
        self._corrections: list[Addressed] = []  # due before the call is over
        self._actual: dict[str, int] = {}
        self._reported: dict[str, Reported] = {}
        self._cancelled = False
        self._renewed_at = time.monotonic()
        self._lock = threading.Lock()
        #: Whether other code than the response closes it.
        self.detached = False

    def settle(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_input_tokens: int = 0,
        usd: Dollars | None = None,
    ) -> None:
        """Note what the call really cost. ``tokens`` defaults to input and output together.

        ``cached_input_tokens`` are a part of the input, which a provider that keeps a limit in
        ``input_tokens`` does not count. A unit that is not given stays at its estimate. The last
        call before closing counts.
        """
        costs = _costs(tokens, input_tokens, output_tokens, usd)
        if input_tokens is not None:
            costs[UNCACHED] = max(0, input_tokens - cached_input_tokens)
        self._actual |= costs

    def report(
        self,
        unit: str,
        *,
        amount: int,
        used: int,
        period_s: int,
        as_of: float | None = None,
    ) -> None:
        """Note what the keeper of the request's limit ``as reported`` in this unit says: of
        ``amount`` per period so much was used at ``as_of`` (of the monotonic clock; default: now).

        It reaches the storage with what is sent next. Without such a limit nothing is noted; where
        the whole application has none in the unit, the log says so. Raises ``ValueError`` for what
        is none.
        """
        whole = {"amount": (amount, 1, MOST_AMOUNT), "used": (used, 0, MOST_AMOUNT)}
        whole["period_s"] = (period_s, 1, LONGEST_PERIOD_US // MICRO)
        for word, (value, least, most) in whole.items():
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"reporting {word}={value!r}: a whole number from {least} to {most} is allowed"
                )
        since = time.monotonic() if as_of is None else as_of
        entries = [
            entry
            for entry in tuple(self._entries)  # the present ones: a retry may ask another model
            if "report" in entry.claim.limit.traits.changes and entry.claim.limit.unit == unit
        ]
        for entry in entries:
            engine, charge = entry.admission.engine, entry.verdict.charge
            self._reported[charge.key] = Reported(
                engine, charge, amount, used, period_s * MICRO, since
            )
        if not entries:
            self._names.doubt_unit(unit, "reservation.report")

    def block(
        self, name: str, *, for_s: float, reason: BlockReason = "overloaded", grows: bool = False
    ) -> None:
        """Close the limit ``unless blocked`` of this name for everybody whom the present request's
        identity concerns: at once, in all workers, for so long. It opens by degrees.

        ``grows`` is for a wait that nobody named: closed again while it opens, it is twice as long
        as before. Where the request has no such limit, nothing is closed; where the whole
        application has none, the log says so. Raises ``ValueError`` for a length that is none.
        """
        for_us = length_us(for_s)
        check_reason(reason)
        blocks: list[Addressed] = [
            (
                entry.admission.engine,
                NewBlock(entry.verdict.charge, for_us, reason, ramped=True, grows=grows),
            )
            for entry in _one_per_verdict(self._entries)
            if "block" in entry.claim.limit.traits.changes and entry.claim.limit.name == name
        ]
        if not blocks:
            self._names.doubt_name(name, "reservation.block", change="block")
        self._send(blocks + self._reports())

    @property
    def renewal_is_due(self) -> bool:
        """Whether :meth:`renew` would reach the storage now, for callers whose costs are expensive
        to compute."""
        pause_s = min(RENEW_EVERY_S, self._lease_s / 3)
        return bool(self._entries) and time.monotonic() - self._renewed_at >= pause_s

    def renew(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        usd: Dollars | None = None,
    ) -> None:
        """Say that the call goes on, and what it has cost so far. Cheap to call at every chunk: it
        reaches the storage once in :data:`RENEW_EVERY_S` seconds, or a third of the lease."""
        if not self.renewal_is_due:
            return
        self._renewed_at = time.monotonic()
        spent = _costs(tokens, input_tokens, output_tokens, usd)
        renewals: list[Addressed] = [
            (
                entry.admission.engine,
                Renewal(
                    entry.verdict,
                    entry.admission.hold,
                    spent.get(entry.claim.limit.unit, 0) if is_first else 0,
                ),
            )
            for entry, is_first in _charges(self._entries)
            if entry.claim.limit.held
        ]
        self._send(renewals + self._reports())

    def cancel(self) -> None:
        """Note that the call never happened: give back everything but what the edge counted."""
        self._cancelled = True

    def detach(self) -> Reservation:
        """Keep it open after the response; the caller closes it."""
        self.detached = True
        return self

    def close(self) -> None:
        """Correct the charges and free the slots. Once: what is closed is not changed again."""
        if self._cancelled:
            self.give_back(entry for entry in tuple(self._entries) if _is_cancelled(entry))
        with self._lock:
            entries, self._entries[:] = tuple(self._entries), []
        changes = [change for entry in _charges(entries) for change in self._settled(*entry)]
        self._send(self._due_corrections() + changes + self._reports())
        self.detached = False  # what the request takes from now on is the response's again

    def give_back(self, entries: Iterable[Entry]) -> list[Entry]:
        """Refund these entries with what is sent next; returns those that were not refunded yet."""
        with self._lock:
            chosen = set(map(id, entries))
            gone = [entry for entry in self._entries if id(entry) in chosen]
            self._entries[:] = [entry for entry in self._entries if id(entry) not in chosen]
            in_use = {id(entry.verdict) for entry in self._entries}
            for entry in gone:
                verdict, engine = entry.verdict, entry.admission.engine
                if entry.claim.limit.held:
                    if id(verdict) not in in_use:  # one hold for all claims of a bucket
                        in_use.add(id(verdict))
                        self._corrections.append((engine, entry.settlement(0)))
                elif entry.cost and _is_charged(entry):
                    self._corrections.append((engine, Correction(verdict, -entry.cost)))
        return gone

    def charge_late(self, entries: Iterable[Entry]) -> None:
        """Charge what an engine that cannot refund has only looked at."""
        with self._lock:
            self._corrections += [
                (entry.admission.engine, Correction(entry.verdict, entry.cost)) for entry in entries
            ]

    def refuse(self) -> list[Entry]:
        """Give back what a request took that was then refused: everything, the edge included, but
        for shadows and for what was settled before. Returns what was given back."""
        return self.give_back(entry for entry in tuple(self._entries) if self._is_refused(entry))

    def send_corrections(self) -> None:
        """Send now what was given back or charged late, and not only with the settlement."""
        self._send(self._due_corrections())

    def _is_refused(self, entry: Entry) -> bool:
        """Whether a refused request gets this back. If it settled anything, it has made its call,
        which the keeper of a limit ``as reported`` has counted."""
        limit = entry.claim.limit
        if limit.traits.external and self._actual:
            return False
        return limit.unit not in self._actual and (limit.held or limit.mode == "enforce")

    def _settled(self, entry: Entry, is_first: bool) -> Iterator[Addressed]:
        """The change that settles a charge. The first of a bucket bears the actual cost of the
        request, all others nothing."""
        limit = entry.claim.limit
        cost = entry.verdict.charge.cost
        unit = limit.unit
        if limit.traits.external and unit == "input_tokens":
            unit = UNCACHED
        actual = 0 if limit.traits.one_per_call else self._actual.get(unit)
        if actual is None or self._cancelled:
            actual = cost
        elif not is_first:
            actual = 0
        if limit.held or (_is_charged(entry) and limit.traits.external and actual != cost):
            yield entry.admission.engine, entry.settlement(actual)

    def _due_corrections(self) -> list[Addressed]:
        with self._lock:
            corrections, self._corrections = self._corrections, []
        return corrections

    def _reports(self) -> list[Addressed]:
        """What was reported since the last time, for the limits that are kept elsewhere."""
        reported, self._reported = self._reported, {}
        return [(each.engine, each.by_now()) for each in reported.values()]

    def _send(self, changes: Iterable[Addressed]) -> None:
        by_engine: dict[Engine, list[Change]] = {}
        for engine, change in changes:
            by_engine.setdefault(engine, []).append(change)
        for engine, own in by_engine.items():
            self._settlements.send(engine, own, lease_s=self._lease_s)


def _one_per_verdict(entries: Iterable[Entry]) -> list[Entry]:
    """The entries without those whose verdict another one has: they are one charge."""
    return list({id(entry.verdict): entry for entry in tuple(entries)}.values())


def _charges(entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool]]:
    """One entry for each charge, and whether it is the first of its bucket: a request that meets a
    limit several times costs once what it costs."""
    met: set[tuple[Engine, str]] = set()
    for entry in _one_per_verdict(entries):
        bucket = entry.admission.engine, entry.verdict.charge.key
        yield entry, bucket not in met
        met.add(bucket)


def _is_charged(entry: Entry) -> bool:
    """Whether there is something to correct."""
    return entry.verdict.receipt is not None


def _is_cancelled(entry: Entry) -> bool:
    """Whether a call that never happened gets this back. Neither the edge does that, nor the keeper
    of a limit ``as reported``."""
    limit = entry.claim.limit
    return limit.held or not (entry.claim.edge or limit.traits.external)


def _costs(
    tokens: int | None,
    input_tokens: int | None,
    output_tokens: int | None,
    usd: Dollars | None,
) -> dict[str, int]:
    """Costs by unit. Raises ``ValueError`` for an invalid one."""
    if tokens is None and (input_tokens is not None or output_tokens is not None):
        tokens = (input_tokens or 0) + (output_tokens or 0)
    counts = {"tokens": tokens, "input_tokens": input_tokens, "output_tokens": output_tokens}
    costs = {unit: count for unit, count in counts.items() if count is not None}
    for unit, count in costs.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"settling {unit}={count!r}: a whole number from 0 up is allowed")
    if usd is not None:
        costs["usd"] = micro_dollars(usd)
    return costs
