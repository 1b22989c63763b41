"""Denials that are cached in the worker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine import denial_cache
from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.engine import Correction, Settlement
from ratelimit_ext.engine.memory import MemoryEngine

SECOND = 1_000_000


class CountingEngine(MemoryEngine):
    """Counts how often it is asked."""

    asked = 0

    def admit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.asked += 1
        return super().admit(*args, **kwargs)


class SlowEngine(CountingEngine):
    """Shows what happens before a settlement is applied, or after a decision was made."""

    before_settling: Callable[[], object] | None = None
    after_deciding: Callable[[], object] | None = None

    def admit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        decision = super().admit(*args, **kwargs)
        meanwhile, self.after_deciding = self.after_deciding, None
        if meanwhile is not None:
            meanwhile()
        return decision

    def settle(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if self.before_settling is not None:
            self.before_settling()
        return super().settle(*args, **kwargs)


class Clock:
    """Both clocks of a worker, in step."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test moves."""
    clock = Clock()
    monkeypatch.setattr(denial_cache.time, "monotonic", clock.monotonic)
    monkeypatch.setattr("ratelimit_ext.core.clock.now_us", lambda: int(clock.now * SECOND))
    return clock


@pytest.fixture
def behind() -> CountingEngine:
    """The engine that is asked."""
    return CountingEngine()


ONE_A_MINUTE = Charge(Limit(1, 60 * SECOND), "bucket")


def denied(engine: DenialCache, times: int, charge: Charge = ONE_A_MINUTE) -> None:
    """Use up the limit, and be denied this often."""
    assert engine.admit([charge]).admitted
    assert not any(engine.admit([charge]).admitted for _ in range(times))


def test_hammering_costs_no_round_trip(clock: Clock, behind: CountingEngine) -> None:
    """From the second denial within a second on, the engine is not asked."""
    denied(DenialCache(behind), 100)
    assert behind.asked == 3


def test_a_single_denial_is_not_remembered(clock: Clock, behind: CountingEngine) -> None:
    """A client that is denied now and then is always decided by the engine."""
    engine = DenialCache(behind)
    assert engine.admit([ONE_A_MINUTE]).admitted
    for _ in range(5):
        assert not engine.admit([ONE_A_MINUTE]).admitted
        clock.now += 1
    assert behind.asked == 6


def test_it_ends_with_the_wait(clock: Clock, behind: CountingEngine) -> None:
    """The wait that a remembered denial names is exact: over, and the call passes."""
    engine = DenialCache(behind)
    charge = Charge(Limit(2, SECOND, "token-bucket", burst=1), "bucket")
    denied(engine, 3, charge)
    clock.now += 0.2
    recalled = engine.admit([charge])
    assert recalled.retry_after_ms == 300
    clock.now += 0.299
    assert not engine.admit([charge]).admitted
    clock.now += 0.001
    assert engine.admit([charge]).admitted


def test_it_lasts_a_second_at_most(clock: Clock, behind: CountingEngine) -> None:
    """A refund by another worker is seen after a second."""
    engine = DenialCache(behind)
    denied(engine, 5)
    behind.clear(["bucket"])
    assert not engine.admit([ONE_A_MINUTE]).admitted
    clock.now += 1
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_what_this_worker_gives_back_is_seen_at_once(clock: Clock, behind: CountingEngine) -> None:
    """A settlement, a clear and a reset drop the cached denials."""
    engine = DenialCache(behind)
    verdict = engine.admit([ONE_A_MINUTE]).verdicts[0]
    assert not any(engine.admit([ONE_A_MINUTE]).admitted for _ in range(3))
    engine.settle([Correction(verdict, -1)])
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_another_cost_is_another_question(clock: Clock, behind: CountingEngine) -> None:
    """A cached denial of cost 5 does not deny cost 1."""
    engine = DenialCache(behind)
    limit = Limit(5, 60 * SECOND)
    assert engine.admit([Charge(limit, "bucket", 3)]).admitted
    assert not any(engine.admit([Charge(limit, "bucket", 5)]).admitted for _ in range(3))
    assert engine.admit([Charge(limit, "bucket", 1)]).admitted


@pytest.mark.parametrize(
    "extra",
    [
        Charge(Limit(9, 60 * SECOND, mode="shadow"), "shadow"),
        Charge(Limit(9, 60 * SECOND), "ban", meta=True),
    ],
)
def test_what_counts_denials_is_always_asked(
    clock: Clock, behind: CountingEngine, extra: Charge
) -> None:
    """A shadow limit and a ban count every request, also of a client that hammers."""
    engine = DenialCache(behind)
    for _ in range(6):
        engine.admit([ONE_A_MINUTE, extra])
    assert behind.asked == 6


def test_it_does_not_grow(clock: Clock, behind: CountingEngine) -> None:
    """However many clients hammer, the memory is bounded."""
    engine = DenialCache(behind)
    limit = Limit(1, 60 * SECOND)
    for client in range(denial_cache.MOST_DENIALS):
        denied(engine, 2, Charge(limit, f"bucket-{client}"))
    assert len(engine._denials) + len(engine._denied_once) <= denial_cache.MOST_DENIALS


def test_what_others_are_given_back_changes_nothing(clock: Clock, behind: CountingEngine) -> None:
    """Every call settles; only what goes back to the bucket that denied is of interest."""
    engine = DenialCache(behind)
    verdict = engine.admit([Charge(Limit(9, 60 * SECOND), "another's")]).verdicts[0]
    denied(engine, 3)
    asked = behind.asked
    for _ in range(10):
        engine.settle([Correction(verdict, -1)])
        engine.clear(["a third one's"])
        assert not engine.admit([ONE_A_MINUTE]).admitted
    assert behind.asked == asked
    engine.clear(["bucket"])
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_what_is_denied_while_a_refund_is_on_its_way_is_forgotten(clock: Clock) -> None:
    """The denials before it reaches the storage end with it."""
    behind = SlowEngine()
    engine = DenialCache(behind)
    verdict = engine.admit([ONE_A_MINUTE]).verdicts[0]
    behind.before_settling = lambda: [engine.admit([ONE_A_MINUTE]) for _ in range(3)]
    engine.settle([Correction(verdict, -1)])
    assert engine.admit([ONE_A_MINUTE]).admitted


@pytest.mark.parametrize("by", ["settle", "clear", "reset"])
def test_a_denial_that_a_refund_overtakes_is_not_remembered(clock: Clock, by: str) -> None:
    """It was decided before the refund, and arrives after it."""
    behind = SlowEngine()
    engine = DenialCache(behind)
    verdict = engine.admit([ONE_A_MINUTE]).verdicts[0]
    assert not engine.admit([ONE_A_MINUTE]).admitted
    behind.after_deciding = {
        "settle": lambda: engine.settle([Correction(verdict, -1)]),
        "clear": lambda: engine.clear(["bucket"]),
        "reset": lambda: engine.reset(""),
    }[by]
    assert not engine.admit([ONE_A_MINUTE]).admitted
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_a_refund_that_fails_forgets_as_well(clock: Clock) -> None:
    """Its reply was lost, and it may have been applied."""

    def lost() -> None:
        for _ in range(3):
            engine.admit([ONE_A_MINUTE])
        behind.clear(["bucket"])  # by the refund
        raise ConnectionError

    behind = SlowEngine()
    engine = DenialCache(behind)
    verdict = engine.admit([ONE_A_MINUTE]).verdicts[0]
    behind.before_settling = lost
    with pytest.raises(ConnectionError):
        engine.settle([Correction(verdict, -1)])
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_no_denial_of_a_slot_is_remembered(clock: Clock, behind: CountingEngine) -> None:
    """It is free as soon as another worker's call is over, before the named wait."""
    engine = DenialCache(behind)
    slot = Charge(Limit(1, SECOND, "concurrency", unit="calls"), "slots")
    hold = Hold(7, 60 * SECOND)
    verdict = engine.admit([slot], hold=hold).verdicts[0]
    assert not any(engine.admit([slot], hold=Hold(8, SECOND)).admitted for _ in range(5))
    behind.settle([Settlement(verdict, hold, 0)])
    assert engine.admit([slot], hold=Hold(8, SECOND)).admitted
