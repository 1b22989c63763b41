"""Block: nothing passes an identity that somebody has blocked, until the block ends.

A kill switch, a ban, and the cool-down of whatever stands behind a call: an operator or the program
closes it (:func:`close`), for so long and for a reason; whoever is not blocked pays one empty look.

A block that ends with a *ramp* lets its callers through by degrees: 1 in the first second, 3 until
the end of the second, then 7, 15, 31 and 63, and everybody after six. Had all of them waited for
the end, they would else arrive in one moment and overrun what has just recovered. Time and not
success opens it, as an answer may take half a minute, and a refusal comes at once and closes it
again.

Not for: a pace. It knows no amount.

>>> state = close(None, 0, 10_000_000, how(OVERLOADED, ramped=True), ())
>>> check(state, 9_999_999, 1, ())[:2]
(False, Reading(x=1, y=2, z=0))
>>> state = take(check(state, 10_000_000, 1, ())[2], 10_000_000, 1, ())
>>> check(state, 10_000_000, 1, ())[:2]
(False, Reading(x=1000000, y=2, z=0))
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

import math
from typing import Final, TypeAlias

from ratelimit_ext.core.limit import LONGEST_PERIOD_US, Limit
from ratelimit_ext.strategies.strategy import Answer, Reading

CODE = "bl"

#: Why: an operator's or the program's own ban; what is behind has too much to do; it is switched
#: off; the caller does what he never does.
BLOCKED: Final = 1
OVERLOADED: Final = 2
CLOSED: Final = 3
ABNORMAL_USAGE: Final = 4

#: The ramp: each step lets twice as many through as all steps before it.
STEP_US: Final = 1_000_000
STEPS: Final = 6
RAMP_US: Final = STEPS * STEP_US

#: A block that grows doubles up to this.
LONGEST_GROWN_US: Final = 30_000_000

#: See token_bucket.py.
SKEW_US: Final = 1_000_000

State: TypeAlias = tuple[int, int, int, int]  # since, end, reason * 2 + ramped, passed


def how(reason: int, *, ramped: bool = False, grows: bool = False) -> int:
    """The manner of a block as one number. ``grows``: closed again on its ramp, it is twice as
    long as before at least."""
    return reason * 4 + grows * 2 + ramped


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """None: all is in the state."""
    return ()


def _present(state: State, now_us: int) -> State:
    """The block, moved to where a clock that was set back would have begun it."""
    since, end, manner, passed = state
    back = since - now_us
    return (since - back, end - back, manner, passed) if back > SKEW_US else state


def _wait(state: State, now_us: int, cost: int) -> int:
    """How long until this many more may pass; 0: they may now."""
    _, end, manner, passed = state
    opens = end
    if manner % 2:
        first = max(0, (now_us - end) // STEP_US)
        fitting = (step for step in range(first, STEPS) if passed + cost < 2 ** (step + 1))
        opens += next(fitting, STEPS) * STEP_US
    return max(0, opens - now_us)


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State | None]:
    """Reading: the wait, the reason, 0."""
    if state is None:
        return True, Reading(0, 0, 0), None
    state = _present(state, now_us)
    wait = _wait(state, now_us, cost)
    return not wait, Reading(wait, state[2] // 2, 0), state


def take(state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]) -> State | None:
    """Who passes a ramp is counted. Where nothing is blocked there is nothing to keep."""
    if state is None:
        return None
    since, end, manner, passed = state
    return since, end, manner, passed + cost


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """Until the block, or its ramp, is over."""
    _, end, manner, _ = state
    return end + manner % 2 * RAMP_US - now_us


def booked(state: State | None, now_us: int) -> int:
    """Nowhere: nothing is given back."""
    return 0


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Whether it began later than clocks may differ."""
    return state is not None and state[0] - now_us > SKEW_US


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> None:
    """Nothing was charged."""
    return


def length_us(for_s: float | None) -> int:
    """How long a block lasts, in microseconds; ``None``: for as long as there are blocks.

    >>> length_us(1.5)
    1500000
    >>> length_us(-1)
    Traceback (most recent call last):
    ...
    ValueError: a block of -1 seconds; allowed: more than 0
    """
    if for_s is None or for_s == math.inf:
        return LONGEST_PERIOD_US
    if not for_s > 0:  # nor a NaN
        raise ValueError(f"a block of {for_s!r} seconds; allowed: more than 0")
    return max(1, min(int(for_s * 1_000_000), LONGEST_PERIOD_US))


def close(
    state: State | None, now_us: int, for_us: int, manner: int, parameters: tuple[int, ...]
) -> State | None:
    """Block from now on. ``None`` where it is blocked for as long already: a shorter block never
    ends a longer one."""
    reason_and_ramp = manner // 4 * 2 + manner % 2
    if state is not None:
        since, end, last, _ = _present(state, now_us)
        if manner // 2 % 2 and last % 2 and end <= now_us < end + RAMP_US:
            for_us = max(for_us, min(2 * (end - since), LONGEST_GROWN_US))
        if end >= now_us + for_us:
            return None
    return now_us, now_us + for_us, reason_and_ramp, 0


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """The receipt is the reason: there is nothing to give back, and the refusal tells it."""
    return Answer(
        remaining=0 if reading.x else limit.amount,
        retry_after_us=reading.x,
        reset_after_us=reading.x,
        receipt=reading.y,
    )


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """The block may have ended."""
    return answer._replace(reset_after_us=max(0, answer.reset_after_us - elapsed_us))
