"""A strategy object of the `limits` library over our buckets."""

from __future__ import annotations

from abc import abstractmethod

from limits import RateLimitItem, WindowStats
from limits.storage import Storage
from limits.strategies import RateLimiter

from ratelimit_ext.core.charge import Charge, checked_cost
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.web.claims import Naming
from ratelimit_ext.web.limits_adapter import limit_of


class BucketLimiter(RateLimiter):
    """``hit``, ``test``, ``get_window_stats`` and ``clear``, decided by an engine."""

    def __init__(self, storage: Storage, engine: Engine, naming: Naming) -> None:
        super().__init__(storage)
        self.engine = engine
        self.naming = naming

    @abstractmethod
    def _key(self, limit: Limit, item: RateLimitItem, identifiers: tuple[str, ...]) -> str:
        """The name of the bucket."""

    def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Take the cost if it fits; whether it did."""
        return self._decided(item, identifiers, cost, take=True).admitted

    def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Whether the cost fits; nothing is taken."""
        return self._decided(item, identifiers, cost, take=False).admitted

    def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        """When the limit is reset (seconds since 1970), and what remains."""
        decision = self._decided(item, identifiers, 0, take=False)
        verdict = decision.verdicts[0]
        return WindowStats(
            (decision.now_us + verdict.reset_after_us) / 1_000_000, verdict.remaining
        )

    def clear(self, item: RateLimitItem, *identifiers: str) -> None:
        """Forget what was taken."""
        limit = limit_of(item, self.naming.strategy)
        self.engine.clear([self._key(limit, item, identifiers)])

    def _decided(
        self, item: RateLimitItem, identifiers: tuple[str, ...], cost: int, *, take: bool
    ) -> Decision:
        limit = limit_of(item, self.naming.strategy)
        key = self._key(limit, item, identifiers)
        return self.engine.admit([Charge(limit, key, checked_cost(cost, item))], take=take)


class ScopedLimiter(BucketLimiter):
    """What ``limiter.limiter`` is: for the commands and applications that ask about an identity
    and a scope, under the names that requests are charged under."""

    def _key(self, limit: Limit, item: RateLimitItem, identifiers: tuple[str, ...]) -> str:
        """Identity and scope come last; a key prefix before them is the naming's own already."""
        identity, scope = identifiers[-2:] if len(identifiers) > 1 else (*identifiers, "")
        return bucket_key(self.naming.prefix(limit, str(scope)), str(identity))
