"""Block: nothing passes a blocked identity until the block ends.

A kill switch, a ban, and the cool-down of whatever a call needs: an operator or the program sets it
(:class:`NewBlock`), for some time and for a reason. Without a block a request pays one empty look.

A block that ends with a *ramp* lets its callers through by degrees: 1 in the first second, 3 until
the end of the second, then 7, 15, 31 and 63, and everybody after six. If all of them had waited for
the end, they would otherwise arrive in one moment and overrun what has just recovered. Time and not
success opens it, as an answer may take half a minute, and a failure comes at once and blocks again.

Not for: a pace. It knows no amount.

>>> block = Block()
>>> ten_s, overloaded, ramped = 10_000_000, 2, 1
>>> state = block.block(None, 0, (), ten_s, overloaded, ramped, 0)
>>> block.check(state, 9_999_999, 1, ())[:2]
(False, (1, 2, 0))
>>> state = block.take(block.check(state, 10_000_000, 1, ())[2], 10_000_000, 1, ())
>>> block.check(state, 10_000_000, 1, ())[:2]
(False, (1000000, 2, 0))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias, get_args

from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import SKEW_US, Snapshot, Strategy

#: ``blocked``: by an operator; ``overloaded``: what the call needs is overloaded; ``closed``: it is
#: switched off; ``abnormal-usage``: the caller's usage is far above normal.
BlockReason: TypeAlias = Literal["blocked", "overloaded", "closed", "abnormal-usage"]
#: They are stored as their positions, from 1.
REASONS: Final[tuple[BlockReason, ...]] = get_args(BlockReason)

#: The ramp: each step lets twice as many through as all steps before it.
STEP_US: Final = 1_000_000
STEPS: Final = 6
RAMP_US: Final = STEPS * STEP_US

#: A block that grows doubles up to this.
LONGEST_GROWN_US: Final = 30_000_000

State: TypeAlias = tuple[int, int, int, int]  # since, end, reason * 2 + ramped, passed
Parameters: TypeAlias = tuple[int, ...]  # none: all is in the state


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block from now on. ``grows``: if it follows on the ramp of another, it lasts at least twice
    as long. Raises ``ValueError`` for an unknown reason."""

    verb: ClassVar[str] = "block"
    hold: ClassVar[Hold] = NO_HOLD

    charge: Charge
    for_us: int
    reason: BlockReason = "blocked"
    ramped: bool = False
    grows: bool = False

    def __post_init__(self) -> None:
        check_reason(self.reason)

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.for_us, REASONS.index(self.reason) + 1, int(self.ramped), int(self.grows)


class Block(Strategy):
    name = "block"
    code = "bl"
    form = Form(
        r"unless \s+ blocked",
        text="unless blocked",
        example="unless blocked",
        keyword="blocked",
    )
    units = ("requests",)
    guard = True
    visible = False
    denial_reason = "blocked"
    one_per_call = True
    on_trial = False
    cacheable = False
    changes = ("adjust", "block", "unblock")

    def parameters(self, limit: Limit, now_us: int) -> Parameters:
        return ()

    def check(
        self, state: State | None, now_us: int, cost: int, parameters: Parameters
    ) -> tuple[bool, Snapshot, State | None]:
        """Snapshot: the wait, the reason, 0."""
        if state is None:
            return True, (0, 0, 0), None
        state = _now(state, now_us)
        wait = _wait(state, now_us, cost)
        return not wait, (wait, state[2] // 2, 0), state

    def take(
        self, state: State | None, now_us: int, cost: int, parameters: Parameters
    ) -> State | None:
        """A call that passes a ramp is counted. Without a block there is nothing to keep."""
        if state is None:
            return None
        since, end, kind, passed = state
        return since, end, kind, passed + cost

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        """Until the block, or its ramp, is over."""
        _, end, kind, _ = state
        return end + kind % 2 * RAMP_US - now_us

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and state[0] - now_us > SKEW_US

    def block(
        self,
        state: State | None,
        now_us: int,
        parameters: Parameters,
        for_us: int,
        reason: int,
        ramped: int,
        grows: int,
    ) -> State | None:
        """``None`` if it is blocked for as long already."""
        if state is not None:
            since, end, last, _ = _now(state, now_us)
            if grows and last % 2 and end <= now_us < end + RAMP_US:
                for_us = max(for_us, min(2 * (end - since), LONGEST_GROWN_US))
            if end >= now_us + for_us:
                return None
        return now_us, now_us + for_us, reason * 2 + ramped, 0

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        wait, code, _ = snapshot
        known = 0 < code <= len(REASONS)
        reason = REASONS[code - 1] if known else self.denial_reason
        remaining = 0 if wait else charge.limit.amount
        return Verdict(charge, allowed, remaining, wait if not allowed else 0, wait, None, reason)


def check_reason(reason: str) -> None:
    """Raise ``ValueError`` for an unknown reason."""
    if reason not in REASONS:
        allowed = ", ".join(map(repr, REASONS))
        raise ValueError(f"the reason of a block is {reason!r}; allowed: {allowed}")


def length_us(for_s: float | None) -> int:
    """How long a block lasts, in microseconds; ``None``: as long as possible.

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


def _now(state: State, now_us: int) -> State:
    """The block, moved to where a clock that was set back would have begun it."""
    since, end, kind, passed = state
    back = since - now_us
    return (since - back, end - back, kind, passed) if back > SKEW_US else state


def _wait(state: State, now_us: int, cost: int) -> int:
    """How long until this many more may pass; 0: they may now."""
    _, end, kind, passed = state
    opens = end
    if kind % 2:
        first = max(0, (now_us - end) // STEP_US)
        fitting = (step for step in range(first, STEPS) if passed + cost < 2 ** (step + 1))
        opens += next(fitting, STEPS) * STEP_US
    return max(0, opens - now_us)
