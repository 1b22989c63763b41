"""An entry: one claim of a request, the identity that was charged, and the answer."""

from __future__ import annotations

from typing import NamedTuple

from ratelimit_ext.core.charge import Change, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.engine.engine import Correction, Engine, Settlement
from ratelimit_ext.strategies import strategy_of
from ratelimit_ext.web.claims import Claim


class Admission(NamedTuple):
    """One decision of a request: the engine that made it, and the hold of its estimates.

    ``decided_at`` is of the monotonic clock. Each admission has a hold of its own, so that a limit
    that a request meets twice is held twice and settled twice.
    """

    engine: Engine
    hold: Hold
    decided_at: float


class Entry(NamedTuple):
    """One claim, the identity that was charged, and the answer.

    ``cost`` is this claim's own. Claims of one bucket share a verdict, whose charge has the sum.
    """

    claim: Claim
    identity: str
    cost: int
    verdict: Verdict
    now_us: int
    admission: Admission

    def later(self, elapsed_us: int) -> Entry:
        """The entry as it reads that much after the decision."""
        later = strategy_of(self.claim.limit).later(self.verdict, elapsed_us)
        return self._replace(verdict=later, now_us=self.now_us + elapsed_us)

    def settlement(self, actual: int) -> Change:
        """What replaces the estimate of the verdict's charge by the actual cost."""
        if self.claim.limit.held:
            return Settlement(self.verdict, self.admission.hold, actual)
        return Correction(self.verdict, actual - self.verdict.charge.cost)

    @property
    def spent_budget(self) -> bool:
        """Whether it is a limit in dollars that denied."""
        return not self.verdict.allowed and self.claim.limit.unit == "usd"

    @property
    def reset_at(self) -> float:
        """When the limit is reset, in seconds since 1970 by the deciding clock."""
        return (self.now_us + self.verdict.reset_after_us) / 1_000_000
