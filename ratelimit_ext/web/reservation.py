"""A reservation: an admitted request whose costs were estimates, and what becomes of them.

Nothing is sent before the call is over: settling notes the real cost, and closing corrects every
charge of the request in one round trip, together with giving back its slots.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, NamedTuple

from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, MOST_AMOUNT
from ratelimit_ext.core.money import Dollars, micro_dollars
from ratelimit_ext.engine.protocol import (
    Change,
    Closing,
    Correction,
    Engine,
    Renewal,
    Report,
    Settlement,
)
from ratelimit_ext.strategies.block import length_us
from ratelimit_ext.web.cause import BlockReason, manner
from ratelimit_ext.web.entry import Entry, one_per_charge
from ratelimit_ext.web.known_names import KnownNames

#: A long call renews its lease at most this often.
RENEW_EVERY_S: Final = 5.0

_logger = logging.getLogger("ratelimit_ext")

NOT_SETTLED: Final = "could not settle %d charges, their lease ends by itself: %s"

MICRO: Final = 1_000_000
#: What a keeper of an allowance counts of the input: not what was read from a cache.
UNCACHED: Final = "uncached_input_tokens"


class Reported(NamedTuple):
    """What was used of an allowance at an instant of the monotonic clock."""

    charge: Charge
    amount: int
    used: int
    period_us: int
    as_of: float

    def by_now(self) -> Report:
        """The same with what is still used, as it refills evenly."""
        elapsed_us = int((time.monotonic() - self.as_of) * MICRO)
        refilled = elapsed_us * self.amount // self.period_us
        return Report(self.charge, self.amount, max(0, self.used - refilled), self.period_us)


class Reservation:
    """The charges of one admitted request.

    The response closes it: a stream at its end, a whole answer with its request. Whoever needs it
    for longer, or has no response, takes it with :meth:`detach` and closes it. All methods may be
    called from any thread, and none of them raises for a storage that is away: the lease is the
    net.
    """

    def __init__(self, engine: Engine, hold: Hold, entries: list[Entry], names: KnownNames) -> None:
        self._engine = engine
        self._names = names
        #: Under which id the estimates are held.
        self.hold = hold
        self._entries = entries  # grows with every further admission of the request
        self._actual: dict[str, int] = {}
        self._reported: dict[str, Reported] = {}
        self._cancelled = False
        self._closed = False
        self._renewed_at = time.monotonic()
        self._lock = threading.Lock()
        #: Whether the response leaves closing to somebody else.
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
        ``input_tokens`` does not count. A unit that is not told stays at its estimate. The last
        word before closing counts.
        """
        told = _told(tokens, input_tokens, output_tokens, usd)
        if input_tokens is not None:
            told[UNCACHED] = max(0, input_tokens - cached_input_tokens)
        self._actual |= told

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
        charges = [
            entry.verdict.charge
            for entry in self._entries  # those of now: another attempt may be another's
            if entry.claim.limit.strategy == "reported" and entry.claim.limit.unit == unit
        ]
        for charge in charges:
            self._reported[charge.key] = Reported(charge, amount, used, period_s * MICRO, since)
        if not charges:
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
        how = manner(reason, ramped=True, grows=grows)
        closings: list[Change] = [
            Closing(entry.verdict.charge, for_us, how)
            for entry in one_per_charge(self._entries)
            if entry.claim.limit.strategy == "block" and entry.claim.limit.name == name
        ]
        if not closings:
            self._names.doubt_name(name, "reservation.block", strategy="block")
        self._send(closings + self._reports())

    @property
    def renewal_is_due(self) -> bool:
        """Whether :meth:`renew` would reach the storage now, for those who have to compute what
        they tell it."""
        return not self._closed and time.monotonic() - self._renewed_at >= RENEW_EVERY_S

    def renew(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        usd: Dollars | None = None,
    ) -> None:
        """Say that the call goes on, and what it has cost so far. Cheap to call at every chunk: it
        reaches the storage once in :data:`RENEW_EVERY_S` seconds."""
        if not self.renewal_is_due:
            return
        self._renewed_at = time.monotonic()
        spent = _told(tokens, input_tokens, output_tokens, usd)
        self._send(
            [
                Renewal(entry.verdict, self.hold, spent.get(entry.claim.limit.unit, 0))
                for entry in one_per_charge(self._entries)
                if entry.claim.limit.held
            ]
            + self._reports()
        )

    def cancel(self) -> None:
        """Note that the call never happened: give back everything but what the edge counted."""
        self._cancelled = True

    def detach(self) -> Reservation:
        """Take it out of the response's hands; the caller closes it."""
        self.detached = True
        return self

    def close(self) -> None:
        """Correct the charges, give back the slots. Once: later calls do nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        changes = [
            change for entry in one_per_charge(self._entries) for change in self._change(entry)
        ]
        self._send(changes + self._reports())

    def _change(self, entry: Entry) -> tuple[Change, ...]:
        limit, verdict = entry.claim.limit, entry.verdict
        if limit.strategy == "block":
            return ()
        if limit.strategy == "reported":
            # Its keeper gives nothing back for a call that failed.
            unit = UNCACHED if limit.unit == "input_tokens" else limit.unit
            actual = None if self._cancelled else self._actual.get(unit)
            if actual is None or not verdict.receipt or actual == verdict.charge.cost:
                return ()
            return (Correction(verdict, actual - verdict.charge.cost),)
        if not limit.held:
            if self._cancelled and not entry.claim.edge and verdict.charge.cost:
                return (Correction(verdict, -verdict.charge.cost),)
            return ()
        if limit.unit == "calls" or self._cancelled:
            actual = 0
        else:
            actual = self._actual.get(limit.unit, verdict.charge.cost)
        return (Settlement(verdict, self.hold, actual),)

    def _reports(self) -> list[Change]:
        """What was reported since the last time, for the limits that are kept elsewhere."""
        reported, self._reported = self._reported, {}
        return [told.by_now() for told in reported.values()]

    def _send(self, changes: list[Change]) -> None:
        if not changes:
            return
        try:
            self._engine.settle(changes)
        except StorageUnavailable as error:
            _logger.error(NOT_SETTLED, len(changes), error)
        except Exception:  # with its trace: the engine's own failures have a class
            _logger.exception(NOT_SETTLED, len(changes), "an error of ours")


def _told(
    tokens: int | None,
    input_tokens: int | None,
    output_tokens: int | None,
    usd: Dollars | None,
) -> dict[str, int]:
    """Costs by unit. Raises ``ValueError`` for one that is none."""
    if tokens is None and (input_tokens is not None or output_tokens is not None):
        tokens = (input_tokens or 0) + (output_tokens or 0)
    counts = {"tokens": tokens, "input_tokens": input_tokens, "output_tokens": output_tokens}
    told = {unit: count for unit, count in counts.items() if count is not None}
    for unit, count in told.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"settling {unit}={count!r}: a whole number from 0 up is allowed")
    if usd is not None:
        told["usd"] = micro_dollars(usd)
    return told
