"""A reservation: an admitted request whose costs were estimates, and what becomes of them.

Nothing is sent before the call is over: settling notes the real cost, and closing corrects every
charge of the request in one round trip, together with giving back its slots.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from ratelimit_ext.core.charge import Hold
from ratelimit_ext.core.money import Dollars, micro_dollars
from ratelimit_ext.engine.protocol import Change, Correction, Engine, Renewal, Settlement
from ratelimit_ext.web.limited_request import Entry, one_per_charge

#: A long call renews its lease at most this often.
RENEW_EVERY_S: Final = 5.0

_logger = logging.getLogger("ratelimit_ext")


class Reservation:
    """The charges of one admitted request.

    The response closes it: a stream at its end, a whole answer with its request. Whoever needs it
    for longer, or has no response, takes it with :meth:`detach` and closes it. All methods may be
    called from any thread, and none of them raises for a storage that is away: the lease is the
    net.
    """

    def __init__(self, engine: Engine, hold: Hold, entries: list[Entry]) -> None:
        self._engine = engine
        #: Under which id the estimates are held.
        self.hold = hold
        self._entries = entries  # grows with every further admission of the request
        self._actual: dict[str, int] = {}
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
        usd: Dollars | None = None,
    ) -> None:
        """Note what the call really cost. ``tokens`` defaults to input and output together.

        A unit that is not told stays at its estimate. The last word before closing counts.
        """
        self._actual |= _told(tokens, input_tokens, output_tokens, usd)

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
        if changes:
            self._send(changes)

    def _change(self, entry: Entry) -> tuple[Change, ...]:
        limit, verdict = entry.claim.limit, entry.verdict
        if not limit.held:
            if self._cancelled and not entry.claim.edge and verdict.charge.cost:
                return (Correction(verdict, -verdict.charge.cost),)
            return ()
        if limit.unit == "calls" or self._cancelled:
            actual = 0
        else:
            actual = self._actual.get(limit.unit, verdict.charge.cost)
        return (Settlement(verdict, self.hold, actual),)

    def _send(self, changes: list[Change]) -> None:
        try:
            self._engine.settle(changes)
        except Exception:
            _logger.exception(
                "could not settle %d charges; their lease ends by itself", len(changes)
            )


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
