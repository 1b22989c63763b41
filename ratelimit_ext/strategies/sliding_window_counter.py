"""Sliding window counter: two fixed windows, the earlier one weighted by how much still overlaps.

Not for: an exact promise. It assumes that the earlier window's calls were spread evenly, so it may
admit or deny a little too much at any instant; it costs one small string whatever the traffic.

>>> from ratelimit_ext.core.limit import Limit
>>> counter = parameters(Limit(10, 60_000_000), 0)
>>> check((0, 0, 10), 90_000_000, 5, counter)[0], check((0, 0, 10), 90_000_000, 6, counter)[0]
(True, False)
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import TypeAlias

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import MOST_USED, Answer, Reading

CODE = "sc"

State: TypeAlias = tuple[int, int, int]  # start, previous, current


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """Amount and period in microseconds."""
    return (limit.amount, limit.period_us)


def _present(state: State | None, now_us: int, period: int) -> State:
    """The windows at ``now_us``. A start in the future (a clock set back) becomes the present."""
    if state is None or now_us >= state[0] + 2 * period:
        return now_us, 0, 0
    start, previous, current = state
    if now_us >= start + period:
        return start + period, current, 0
    return min(start, now_us), previous, current


def _weighted(start: int, previous: int, current: int, now_us: int, period: int) -> int:
    return previous * (start + period - now_us) // period + current


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State]:
    """Reading: the current window's start, units in the previous window, units in the current."""
    amount, period = parameters
    present = _present(state, now_us, period)
    return _weighted(*present, now_us, period) + cost <= amount, Reading(*present), present


def take(state: State, now_us: int, cost: int, parameters: tuple[int, ...]) -> State:
    """The current window is charged."""
    start, previous, current = state
    return start, previous, current + cost


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """Until the end of the window that follows the current one."""
    return state[0] + 2 * parameters[1] - now_us


def booked(state: State, now_us: int) -> int:
    """In the window with this start."""
    return state[0]


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Whether the current window has not begun yet."""
    return state is not None and state[0] > now_us


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> State | None:
    """The receipt is the start of the window that was charged: a refund goes to it, if it is the
    current or the previous one; an extra charge always goes to the current one."""
    period = parameters[1]
    start, previous, current = _present(state, now_us, period)
    if delta > 0 or receipt == start:
        current = min(MOST_USED, max(0, current + delta))
    elif receipt == start - period:
        previous = max(0, previous + delta)
    else:
        return None
    return start, previous, current


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """Waiting ends when enough of the previous window has slid out, or of the current one later."""
    start, previous, current = reading
    period = limit.period_us
    end = start + period
    weighted = _weighted(start, previous, current, now_us, period)
    charged = cost if taken else 0
    if weighted + cost <= limit.amount:
        wait = 0
    elif current + cost <= limit.amount:
        wait = end - _overlap(limit.amount - cost - current, previous, period) - now_us
    else:
        wait = end + period - _overlap(limit.amount - cost, current, period) - now_us
    return Answer(
        remaining=max(0, limit.amount - weighted - charged),
        retry_after_us=wait,
        reset_after_us=end - now_us + (period if current + charged else 0),
        receipt=start,
    )


def _overlap(room: int, units: int, period: int) -> int:
    """The longest overlap, in microseconds, at which ``units`` weigh no more than ``room``."""
    return min(period, ((room + 1) * period - 1) // units) if units else period


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """How the weight was made up is not known any more; only the window's end comes nearer."""
    return answer._replace(reset_after_us=max(0, answer.reset_after_us - elapsed_us))
