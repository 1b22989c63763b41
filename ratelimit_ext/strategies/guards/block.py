"""Block: nothing passes a blocked identity until the block ends.

A kill switch, a ban, and the cool-down of whatever a call needs: an operator or the program sets it
(:func:`new_block`), for some time and for a reason. Without a block a request pays one empty look.

A block that ends earlier than the present one changes nothing.

Not for: a pace. It knows no amount.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> limit, engine = Limit(1, 1_000_000, "block"), MemoryEngine()
>>> engine.settle([new_block(Charge(limit, "eve"), 10_000_000, "overloaded")], now_us=0)
1
>>> [engine.admit([Charge(limit, "eve")], now_us=at).admitted for at in (9_999_999, 10_000_000)]
[False, True]
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge
from ratelimit_ext.core.decision import Left
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import Snapshot, Strategy

#: ``blocked``: by an operator; ``overloaded``: what the call needs is overloaded; ``closed``: it is
#: switched off; ``abnormal-usage``: the caller's usage is far above normal.
BlockReason: TypeAlias = Literal["blocked", "overloaded", "closed", "abnormal-usage"]
#: They are stored as their positions, from 1.
REASONS: Final[tuple[BlockReason, ...]] = get_args(BlockReason)


def new_block(charge: Charge, for_us: int, reason: BlockReason = "blocked") -> Change:
    """Block from now on. Raises ``ValueError`` for an unknown reason."""
    check_reason(reason)
    return Change(charge, NO_HOLD, "block", (for_us, REASONS.index(reason) + 1))


class Block(Strategy):
    name = "block"
    code = "bl"
    form = Form(
        r"unless \s+ blocked", text="unless blocked", example="unless blocked", keyword="blocked"
    )
    units = ("requests",)
    guard = True
    denial_reason = "blocked"
    one_per_call = True
    can_shadow = False
    changes = ("adjust", "block", "unblock")

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        return ()

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        wait = snapshot[0]
        return 0 if wait else limit.amount, wait, wait

    def receipt(self, snapshot: Snapshot, now_us: int) -> None:
        return None

    def reason(self, snapshot: Snapshot) -> str:
        return REASONS[snapshot[1] - 1] if 0 < snapshot[1] <= len(REASONS) else self.denial_reason


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
