"""An engine that a test makes unavailable, in front of a real one."""

from typing import Any

from ratelimit_ext import Limiter, StorageUnavailable
from ratelimit_ext.core.charge import Hold
from ratelimit_ext.settlements.queue import SettlementQueue


class FlakyEngine:
    """Passes everything on. ``is_away``: settling fails, for the changes of a hold only if
    ``refuses``; ``loses_replies``: it is applied, and raises."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.is_away = False
        self.loses_replies = False
        self.refuses: Hold | None = None
        #: How often `settle` was called.
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def settle(self, changes: Any, **words: Any) -> int:
        self.calls += 1
        if self.is_away or self.refuses in [change.hold for change in changes]:
            raise StorageUnavailable("away")
        applied: int = self._engine.settle(changes, **words)
        if self.loses_replies:
            raise StorageUnavailable("the reply was lost")
        return applied


def make_flaky(limiter: Limiter) -> tuple[FlakyEngine, SettlementQueue]:
    """A flaky engine for the extension, and a queue of its own that starts no thread."""
    engine = FlakyEngine(limiter._components.engines.primary)
    queue = SettlementQueue(in_background=False)
    limiter._components.engines._primary = engine
    limiter._components.settlements = queue
    return engine, queue
