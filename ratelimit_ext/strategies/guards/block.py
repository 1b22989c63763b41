"""Block: nothing passes a blocked identity until the block ends.

A kill switch, a ban, and the cool-down of whatever a call needs: an operator or the program sets it
(:func:`new_block`), for some time and for a reason. Without a block a request pays one empty look.

Not for: a pace. It knows no amount.

>>> block = Block()
>>> ten_s, overloaded = 10_000_000, 2
>>> state = block.block(None, 0, (), ten_s, overloaded)
>>> block.check(state, 9_999_999, 1, ())[:2]
(False, (1, 2, 0))
>>> block.check(state, 10_000_000, 1, ())[:2]
(True, (0, 2, 0))
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import SKEW_US, Answer, Snapshot, Strategy

#: ``blocked``: by an operator; ``overloaded``: what the call needs is overloaded; ``closed``: it is
#: switched off; ``abnormal-usage``: the caller's usage is far above normal.
BlockReason: TypeAlias = Literal["blocked", "overloaded", "closed", "abnormal-usage"]
#: They are stored as their positions, from 1.
REASONS: Final[tuple[BlockReason, ...]] = get_args(BlockReason)

State: TypeAlias = tuple[int, int, int]  # since, end, reason
Parameters: TypeAlias = tuple[int, ...]  # none: all is in the state


def new_block(charge: Charge, for_us: int, reason: BlockReason = "blocked") -> Change:
    """Block from now on. Raises ``ValueError`` for an unknown reason."""
    check_reason(reason)
    return Change(charge, NO_HOLD, "block", (for_us, REASONS.index(reason) + 1))


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
    can_shadow = False
    cacheable = False
    changes = ("adjust", "block", "unblock")
    idle = 0

    def parameters(self, limit: Limit, now_us: int) -> Parameters:
        return ()

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: the wait, the reason, 0."""
        if state is None:
            return True, (0, 0, 0), None
        state = _now(state, now_us)
        wait = max(0, state[1] - now_us)
        return not wait, (wait, state[2], 0), state

    def take(
        self, state: State | None, now_us: int, cost: int, parameters: Parameters
    ) -> State | None:
        return state

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        return state[1] - now_us

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and state[0] - now_us > SKEW_US

    def block(
        self,
        state: State | None,
        now_us: int,
        parameters: Parameters,
        for_us: int,
        reason: int,
    ) -> State | None:
        """``None`` if it is blocked for as long already."""
        if state is not None and _now(state, now_us)[1] >= now_us + for_us:
            return None
        return now_us, now_us + for_us, reason

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
    """Return how long a block lasts, in microseconds; ``None``: as long as possible.

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
    """Return the block, moved to where a clock that was set back would have begun it."""
    since, end, reason = state
    back = since - now_us
    return (since - back, end - back, reason) if back > SKEW_US else state
