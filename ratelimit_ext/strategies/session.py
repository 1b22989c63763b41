"""Session: an amount for a session, which ends when nothing was charged for a while.

A caller who makes no call for that long (``idle``) begins anew. Until then nothing but an operator
gives back what is used.

Not for: a budget. A caller who chooses the name of a session can begin another one. It fits beside
budgets, against an agent that calls again and again.

>>> from ratelimit_ext.core.limit import Limit
>>> session = Session()
>>> ten = session.parameters(Limit(10, 60_000_000, "session"), 0)
>>> state = session.take((0, 60_000_000, 0), 0, 4, ten)
>>> session.take(session.check(state, 50_000_000, 4, ten)[2], 50_000_000, 4, ten)
(8, 110000000, 0)
"""

from __future__ import annotations

from typing import TypeAlias

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import MOST_USED, Answer, Snapshot, Strategy

State: TypeAlias = tuple[int, int, int]  # used, end, begin
Parameters: TypeAlias = tuple[int, ...]  # amount; for how long it may be idle


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
    denial_sentence = "To go on, have the operator raise it, or begin another session."

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: units used, when the session ends if nothing is charged, when it began."""
        used, end, begin = 0, now_us + parameters[1], now_us
        if state is not None and state[1] > now_us:
            # An end further off than the idle time is a clock set back.
            used, end, begin = state[0], min(state[1], end), state[2]
        return used + cost <= parameters[0], (used, end, begin), (used, end, begin)

    def take(self, state: State, now_us: int, cost: int, parameters: Parameters) -> State:
        used, _, begin = state
        return used + cost, now_us + parameters[1], begin

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        return state[1] - now_us

    def marked_us(self, state: State, now_us: int, parameters: Parameters) -> int:
        """A day: the session goes on as long as calls come."""
        return 86_400_000_000

    def longest_wait_us(self, limit: Limit) -> int:
        return limit.period_us

    def usage(self, state: State, now_us: int, parameters: Parameters) -> int:
        return state[0] if state[1] > now_us else 0

    def filled(
        self, units: int, now_us: int, parameters: Parameters, reset_after_us: int, age_us: int
    ) -> State:
        return units, now_us + reset_after_us, now_us

    def receipt(self, state: State, now_us: int) -> int:
        """Return when the session began."""
        return state[2]

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and state[1] > now_us + parameters[1]

    def adjust(
        self, state: State | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> State | None:
        """A refund goes to the session that was charged. An extra charge goes to the present one,
        and begins one if none is. Neither prolongs it."""
        used, end, begin = state if state is not None and state[1] > now_us else (0, 0, 0)
        if delta <= 0 and (not end or begin != receipt):
            return None
        if not end:
            end, begin = now_us + parameters[1], now_us
        return min(MOST_USED, max(0, used + delta)), end, begin

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        used, end, _ = snapshot
        reset = limit.period_us if cost else end - now_us if used else 0
        return max(0, limit.amount - used - cost), reset, reset

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Waiting ends with the session: nothing is charged meanwhile."""
        cost = charge.cost if taken else 0
        remaining, reset, _ = self.left(charge.limit, snapshot, now_us, cost)
        wait = 0 if allowed else snapshot[1] - now_us
        return Verdict(charge, allowed, remaining, wait, reset, snapshot[2])
