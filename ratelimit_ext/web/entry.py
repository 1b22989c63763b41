"""An entry: one claim of a request, whom it was charged to, and the answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.strategies import strategy_named
from ratelimit_ext.strategies.protocol import Answer
from ratelimit_ext.web.claims import Claim


class Entry(NamedTuple):
    """One claim, whom it was charged to, and the answer."""

    claim: Claim
    identity: str
    verdict: Verdict
    now_us: int
    decided_at: float

    def later(self, elapsed_us: int) -> Entry:
        """The entry as it reads that much after the decision."""
        verdict, limit = self.verdict, self.claim.limit
        answer = strategy_named(limit.strategy).later(
            limit,
            verdict.charge.cost,
            Answer(verdict.remaining, 0, verdict.reset_after_us, verdict.receipt),
            elapsed_us,
        )
        now = verdict._replace(remaining=answer.remaining, reset_after_us=answer.reset_after_us)
        return self._replace(verdict=now, now_us=self.now_us + elapsed_us)

    @property
    def spent_budget(self) -> bool:
        """Whether it is a limit in dollars that denied."""
        return not self.verdict.allowed and self.claim.limit.unit == "usd"

    @property
    def reset_at(self) -> float:
        """When the limit is reset, in seconds since 1970 by the deciding clock."""
        return (self.now_us + self.verdict.reset_after_us) / 1_000_000


def one_per_charge(entries: Iterable[Entry]) -> list[Entry]:
    """The entries without those whose charge another one stands for: claims of one bucket share
    one verdict, with their costs added up, and what corrects it must do so once."""
    return list({id(entry.verdict): entry for entry in entries}.values())
