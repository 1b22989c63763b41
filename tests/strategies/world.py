"""One engine and one virtual clock: the stage on which every strategy's promises are shown."""

from typing import Any

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.strategies.guards.block import new_block
from ratelimit_ext.strategies.guards.quota import quota_report

#: The strategies that limit a rate; what holds for each of them is shown for all.
RATES = ("fixed-window", "session", "sliding-window", "sliding-window-counter", "token-bucket")

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 3600 * SECOND
DAY = 86_400 * SECOND
START = 1_800_000_000 * SECOND + 123_457


class World:
    """Requests to an engine at instants that the test chooses."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now_us = START

    def wait(self, seconds: float = 0, *, us: int = 0) -> None:
        """Let time pass (or, negative, set the clock back)."""
        self.now_us += round(seconds * SECOND) + us

    def request(self, *charges: Charge, take: bool = True) -> Decision:
        return self.engine.admit(charges, take=take, now_us=self.now_us)

    def call(self, limit: Limit, cost: int = 1, key: str = "bucket") -> Verdict:
        """One request with one charge."""
        return self.request(Charge(limit, key, cost)).verdicts[0]

    def look(self, limit: Limit, cost: int = 1, key: str = "bucket") -> Verdict:
        """The answer that a call would get, without making it."""
        return self.request(Charge(limit, key, cost), take=False).verdicts[0]

    def left(self, limit: Limit, key: str = "bucket") -> int:
        """What remains, seen by a look that costs nothing."""
        return self.call(limit, 0, key).remaining

    def passed(self, limit: Limit, calls: int, cost: int = 1, key: str = "bucket") -> int:
        """How many of these calls are admitted, all at this instant."""
        return sum(self.call(limit, cost, key).allowed for _ in range(calls))

    def block(self, limit: Limit, seconds: float, key: str = "bucket", **how: Any) -> int:
        """Block the bucket from now on."""
        block = new_block(Charge(limit, key), round(seconds * SECOND), **how)
        return self.engine.settle([block], now_us=self.now_us)

    def report(
        self, limit: Limit, amount: int, used: int, period_us: int, key: str = "bucket"
    ) -> int:
        """What the provider reports."""
        report = quota_report(Charge(limit, key), amount, used, period_us)
        return self.engine.settle([report], now_us=self.now_us)

    def settle(self, verdict: Verdict, delta: int) -> int:
        return self.engine.settle([Change.adjust(verdict, delta)], now_us=self.now_us)
