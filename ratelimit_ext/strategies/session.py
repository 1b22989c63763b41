"""Session: an amount for a session, which ends when nothing was charged for a while.

A caller who makes no call for that long (``idle``) starts over. Until then nothing but an operator
gives back what is used.

A refund goes to the session that was charged. An extra charge goes to the present one, and begins
one if none is. Neither prolongs it.

Not for: a budget. A caller who chooses the name of a session can begin another one. It fits beside
budgets, against an agent that calls again and again.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> engine, ten = MemoryEngine(), Limit(10, 60_000_000, "session")
>>> calls = (4, 0), (4, 50_000_000), (4, 100_000_000), (4, 160_000_000)
>>> [engine.admit([Charge(ten, "ada", cost)], now_us=at).admitted for cost, at in calls]
[True, True, False, True]
"""

from __future__ import annotations

from ratelimit_ext.core.decision import Left
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import Snapshot, Strategy


class Session(Strategy):
    name = "session"
    code = "se"
    form = Form(
        r"""(?P<amount>[0-9]+)
        (?: (?P<fraction>\.[0-9]+)? \s* (?P<usd>usd) | \s* (?: calls | requests ) )?
        \s* (?: / | per ) \s* session""",
        text="{amount} per session",
        example="5 usd per session",
        keyword="session",
        period="hour",
    )
    options = ("idle",)
    frees_after_period = True
    denial_sentence = "To continue, ask the operator to raise it, or start another session."

    def longest_wait_us(self, limit: Limit) -> int:
        return limit.period_us

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        used, end, _ = snapshot
        reset = limit.period_us if cost else end - now_us if used else 0
        return max(0, limit.amount - used - cost), reset, reset

    def receipt(self, snapshot: Snapshot, now_us: int) -> int:
        return snapshot[2]
