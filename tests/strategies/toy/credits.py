"""Credits: an amount that is used up, and topped up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Left
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import Snapshot, Strategy

DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class TopUp:
    """More credits."""

    verb: ClassVar[str] = "top_up"
    hold: ClassVar[Hold] = NO_HOLD

    charge: Charge
    credits: int

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.credits,)


class Credits(Strategy):
    name = "credits"
    code = "cr"
    units = ("credits",)
    form = Form(
        r"(?P<amount>[0-9]+) \s+ credits",
        text="{amount} credits",
        example="50 credits",
        keyword="credit",
        unit="credits",
        period="day",
    )
    guard = True
    denial_reason = "no-credit"
    denial_sentence = "Your credits are used up. Buy more."
    changes = ("adjust", "top_up")

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        return (limit.amount,)

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        return max(0, limit.amount - snapshot[0] - cost), DAY_US, DAY_US
