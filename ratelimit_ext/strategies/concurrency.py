"""Concurrency: a maximum of calls in flight.

A call takes a slot and returns it when it is over. The slot is a hold
(:mod:`~ratelimit_ext.strategies.reservations`): if its worker dies, the lease ends and the server
takes the slot back.

Not for: a pace. Ten calls in flight may be ten a minute or a thousand.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> from ratelimit_ext.core.charge import new_hold
>>> engine, two = MemoryEngine(), Limit(2, 1_000_000, "concurrency", unit="calls")
>>> [engine.admit([Charge(two, "ada")], hold=new_hold(1_000_000)).admitted for _ in range(3)]
[True, True, False]
"""

from __future__ import annotations

from typing import Final

from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import Snapshot, Strategy

#: When a slot becomes free depends on the calls, not on the time. A client should retry after this
#: long rather than after the longest lease.
RETRY_US: Final = 1_000_000


class Concurrency(Strategy):
    name = "concurrency"
    code = "cc"
    options = ("wait",)
    units = ("calls",)
    form = Form(
        r"(?P<amount>[0-9]+) \s+ in \s+ flight",
        text="{amount} in flight",
        example="4 in flight",
        keyword="flight",
        unit="calls",
    )
    one_per_call = True
    ends_with_calls = True

    def longest_wait_us(self, limit: Limit) -> int:
        return RETRY_US

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        calls = snapshot[0] + cost
        reset = RETRY_US if calls else 0
        return max(0, limit.amount - calls), reset, reset

    def later(self, verdict: Verdict, elapsed_us: int) -> Left:
        """What happened to the other calls is unknown."""
        return verdict.left
