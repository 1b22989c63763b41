"""Denials that are cached in the worker."""

import random
from collections.abc import Callable

import pytest

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Claim, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine import denial_cache
from ratelimit_ext.engine.denial_cache import CachedDecision, DenialCache
from ratelimit_ext.engine.memory import MemoryEngine

pytestmark = pytest.mark.usefixtures("clock")
SECOND = 1_000_000


class Counted(MemoryEngine):
    """Counts how often it is asked."""

    asked = 0

    def admit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.asked += 1
        return super().admit(*args, **kwargs)


class SlowEngine(Counted):
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
def behind() -> Counted:
    """The engine that is asked."""
    return Counted()


@pytest.fixture
def engine(behind: Counted) -> DenialCache:
    return DenialCache(behind)


ONE_A_MINUTE = Charge(Limit(1, 60 * SECOND), "bucket")


def denied(engine: DenialCache, times: int, charge: Charge = ONE_A_MINUTE) -> None:
    """Use up the limit, and be denied this often."""
    assert engine.admit([charge]).admitted
    assert not any(engine.admit([charge]).admitted for _ in range(times))


def test_hammering_costs_no_round_trip(engine: DenialCache, behind: Counted) -> None:
    """From the second denial within a second on, the engine is not asked."""
    denied(engine, 100)
    assert behind.asked == 3


def test_a_single_denial_is_not_remembered(
    clock: Clock, engine: DenialCache, behind: Counted
) -> None:
    """A client that is denied now and then is always decided by the engine."""
    assert engine.admit([ONE_A_MINUTE]).admitted
    for _ in range(5):
        assert not engine.admit([ONE_A_MINUTE]).admitted
        clock.now += 1
    assert behind.asked == 6


def test_it_ends_with_the_wait(clock: Clock, engine: DenialCache) -> None:
    """The wait that a remembered denial names is exact: over, and the call passes."""
    charge = Charge(Limit(2, SECOND, "token-bucket", burst=1), "bucket")
    denied(engine, 3, charge)
    clock.now += 0.2
    cached = engine.admit([charge])
    assert cached.retry_after_ms == 300
    clock.now += 0.299
    assert not engine.admit([charge]).admitted
    clock.now += 0.001
    assert engine.admit([charge]).admitted


def test_it_lasts_a_second_at_most(clock: Clock, engine: DenialCache, behind: Counted) -> None:
    """A refund by another worker is seen after a second."""
    denied(engine, 5)
    behind.clear(["bucket"])
    assert not engine.admit([ONE_A_MINUTE]).admitted
    clock.now += 1
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_what_this_worker_gives_back_is_seen_at_once(engine: DenialCache) -> None:
    """A settlement, a clear and a reset drop the cached denials."""
    verdict = engine.admit([ONE_A_MINUTE]).verdicts[0]
    assert not any(engine.admit([ONE_A_MINUTE]).admitted for _ in range(3))
    engine.settle([Change.adjust(verdict, -1)])
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_another_cost_is_another_question(engine: DenialCache) -> None:
    """A cached denial of cost 5 does not deny cost 1."""
    limit = Limit(5, 60 * SECOND)
    assert engine.admit([Charge(limit, "bucket", 3)]).admitted
    assert not any(engine.admit([Charge(limit, "bucket", 5)]).admitted for _ in range(3))
    assert engine.admit([Charge(limit, "bucket", 1)]).admitted


def test_what_counts_denials_is_always_asked(engine: DenialCache, behind: Counted) -> None:
    """A ban counts every request, also of a client that hammers."""
    ban = Charge(Limit(9, 60 * SECOND), "ban", meta=True)
    for _ in range(6):
        engine.admit([ONE_A_MINUTE, ban])
    assert behind.asked == 6


@pytest.mark.parametrize("strategy", ["fixed-window", "block"])
def test_a_shadow_is_not_asked(engine: DenialCache, behind: Counted, strategy: str) -> None:
    """It never comes first, and counts no denied request."""
    denied(engine, 3, EVERYONE)
    asked = behind.asked
    shadow = Limit(1, SECOND, strategy, mode="shadow")
    for caller in range(5):
        assert not engine.admit([Charge(shadow, f"caller-{caller}"), EVERYONE]).admitted
    assert behind.asked == asked


def test_it_does_not_grow(engine: DenialCache, behind: Counted) -> None:
    """However many clients hammer, the memory is bounded; the oldest denial makes room."""
    limit = Limit(1, 60 * SECOND)
    for client in range(denial_cache.MOST_BUCKETS + 1):
        denied(engine, 2, Charge(limit, f"bucket-{client}"))
    assert len(engine._denials) == denial_cache.MOST_BUCKETS
    asked = behind.asked
    engine.admit([Charge(limit, "bucket-1")])
    assert behind.asked == asked
    engine.admit([Charge(limit, "bucket-0")])
    assert behind.asked == asked + 1


def test_the_costs_of_a_bucket_are_bounded(engine: DenialCache) -> None:
    """A client that chooses its cost cannot fill the memory."""
    limit = Limit(100, 60 * SECOND)
    assert engine.admit([Charge(limit, "bucket", 100)]).admitted
    for cost in range(1, 60):
        assert not engine.admit([Charge(limit, "bucket", cost)]).admitted
    assert len(engine._denials["bucket"]) == denial_cache.MOST_COSTS


EVERYONE = Charge(Limit(1, 60 * SECOND, name="shared"), "everyone")
OWN = Limit(9, 60 * SECOND, name="own")


def test_a_shared_limit_that_is_exhausted_is_remembered_for_all(
    engine: DenialCache, behind: Counted
) -> None:
    """A thousand callers cost three round trips; each answer has the verdicts that are known."""
    assert engine.admit([Charge(OWN, "caller-0"), EVERYONE]).admitted
    for caller in range(1000):
        decision = engine.admit([Charge(OWN, f"caller-{caller}"), EVERYONE])
        assert [verdict.charge for verdict in decision.denials] == [EVERYONE]
    assert behind.asked == 3
    assert [verdict.charge for verdict in decision.verdicts] == [EVERYONE]
    known = engine.admit([Charge(OWN, "caller-1"), EVERYONE])  # whose denial is remembered
    assert [(v.allowed, v.remaining) for v in known.verdicts] == [(True, 9), (False, 0)]


def test_of_several_remembered_denials_the_longest_wait_counts(
    clock: Clock, engine: DenialCache, behind: Counted
) -> None:
    """Denials of different requests that concern one request are named together."""
    own = Charge(Limit(1, 90 * SECOND, name="own"), "caller")
    denied(engine, 2, EVERYONE)
    denied(engine, 2, own)
    clock.now += 0.5
    asked = behind.asked
    decision = engine.admit([own, EVERYONE])
    assert behind.asked == asked
    assert [denial.charge for denial in decision.denials] == [own, EVERYONE]
    assert decision.retry_after_ms == 89_500


BRIEF = Charge(Limit(1, 2 * SECOND, name="brief"), "caller")
DAILY = Limit(1000, 86_400 * SECOND, name="daily")


def hammering(engine: DenialCache, *others: Charge) -> None:
    """A caller whose brief limit denies, from memory."""
    assert engine.admit([BRIEF, *others]).admitted
    assert not any(engine.admit([BRIEF, *others]).admitted for _ in range(3))
    assert isinstance(engine.admit([BRIEF, *others]), CachedDecision)


def test_a_limit_that_may_deny_for_longer_is_asked(
    clock: Clock, engine: DenialCache, behind: Counted
) -> None:
    """Of a caller of whom nothing is known here, and whose day is used up by other workers."""
    hammering(engine)
    assert behind.admit([Charge(DAILY, "another", 1000)]).admitted
    clock.now += 0.016
    decision = engine.admit([BRIEF, Charge(DAILY, "another")])
    assert decision.retry_after_ms == 86_399_984
    assert [denial.charge.key for denial in decision.denials] == ["caller", "another"]


def test_what_this_worker_has_taken_since_is_not_left(clock: Clock, engine: DenialCache) -> None:
    """While a caller hammers, another one takes the last of what they share."""
    shared = Charge(DAILY, "everyone")
    hammering(engine, shared)
    assert engine.admit([Charge(DAILY, "everyone", 990)]).admitted
    assert isinstance(engine.admit([BRIEF, shared]), CachedDecision)  # nine are left
    assert engine.admit([Charge(DAILY, "everyone", 9)]).admitted
    clock.now += 0.016
    assert engine.admit([BRIEF, shared]).retry_after_ms == 86_399_984


def test_what_was_charged_meanwhile_is_not_left(engine: DenialCache) -> None:
    """A call that ends has cost more than was estimated."""
    shared = Charge(DAILY, "everyone")
    (verdict,) = engine.admit([shared]).verdicts
    hammering(engine, shared)
    engine.settle([Change.adjust(verdict, 1000)])
    assert engine.admit([BRIEF, shared]).retry_after_ms == 86_400_000


def test_a_cost_that_was_not_decided_is_asked(engine: DenialCache, behind: Counted) -> None:
    """Up to what is left a limit is known to allow it, and above it may deny for longer."""
    hammering(engine, Charge(DAILY, "tokens", 400))
    asked = behind.asked
    assert engine.admit([BRIEF, Charge(DAILY, "tokens", 600)]).retry_after_ms == 2000
    assert behind.asked == asked
    assert engine.admit([BRIEF, Charge(DAILY, "tokens", 601)]).retry_after_ms == 86_400_000


def test_of_a_hammering_caller_a_busy_limit_is_not_asked(
    engine: DenialCache, behind: Counted
) -> None:
    """What others take of it matters only near its end."""
    shared = Charge(DAILY, "everyone")
    hammering(engine, shared)
    asked = behind.asked
    for _ in range(100):
        assert engine.admit([shared]).admitted
        assert isinstance(engine.admit([BRIEF, shared]), CachedDecision)
    assert behind.asked == asked + 100


@pytest.mark.parametrize(
    "other",
    [Charge(Limit(1, SECOND, "block"), "caller"), Charge(OWN, "caller", 10)],
    ids=["a guard", "a cost above the capacity"],
)
def test_what_may_change_the_answer_is_asked(
    engine: DenialCache, behind: Counted, other: Charge
) -> None:
    """A reason that comes first, and a request that never passes."""
    denied(engine, 3, EVERYONE)
    asked = behind.asked
    engine.admit([other, EVERYONE])
    assert behind.asked == asked + 1


def test_another_limit_of_the_same_bucket_is_another_question(engine: DenialCache) -> None:
    """A named limit that was raised keeps its bucket, and is decided again."""
    denied(engine, 3, EVERYONE)
    assert engine.admit([EVERYONE._replace(limit=Limit(5, 60 * SECOND, name="shared"))]).admitted


def test_costs_of_one_bucket_are_one_cost(engine: DenialCache, behind: Counted) -> None:
    """Two charges of a bucket were denied together: one of them alone is another question."""
    three = Charge(OWN, "bucket", 3)
    assert engine.admit([three]).admitted
    assert not any(engine.admit([three, three, three]).admitted for _ in range(5))
    assert behind.asked == 3
    assert engine.admit([three]).admitted


def test_what_others_are_given_back_changes_nothing(engine: DenialCache, behind: Counted) -> None:
    """Every call settles; only what goes back to the bucket that denied is of interest."""
    verdict = engine.admit([Charge(Limit(9, 60 * SECOND), "another's")]).verdicts[0]
    denied(engine, 3)
    asked = behind.asked
    for _ in range(10):
        engine.settle([Change.adjust(verdict, -1)])
        engine.clear(["a third one's"])
        assert not engine.admit([ONE_A_MINUTE]).admitted
    assert behind.asked == asked
    engine.clear(["bucket"])
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_what_is_denied_while_a_refund_is_on_its_way_is_forgotten() -> None:
    """The denials before it reaches the storage end with it."""
    behind = SlowEngine()
    engine = DenialCache(behind)
    verdict = engine.admit([ONE_A_MINUTE]).verdicts[0]
    behind.before_settling = lambda: [engine.admit([ONE_A_MINUTE]) for _ in range(3)]
    engine.settle([Change.adjust(verdict, -1)])
    assert engine.admit([ONE_A_MINUTE]).admitted


@pytest.mark.parametrize("by", ["settle", "clear", "reset"])
def test_a_denial_that_a_refund_overtakes_is_not_remembered(by: str) -> None:
    """It was decided before the refund, and arrives after it."""
    behind = SlowEngine()
    engine = DenialCache(behind)
    verdict = engine.admit([ONE_A_MINUTE]).verdicts[0]
    assert not engine.admit([ONE_A_MINUTE]).admitted
    behind.after_deciding = {
        "settle": lambda: engine.settle([Change.adjust(verdict, -1)]),
        "clear": lambda: engine.clear(["bucket"]),
        "reset": lambda: engine.reset(""),
    }[by]
    assert not engine.admit([ONE_A_MINUTE]).admitted
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_a_refund_that_fails_forgets_as_well() -> None:
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
        engine.settle([Change.adjust(verdict, -1)])
    assert engine.admit([ONE_A_MINUTE]).admitted


def test_no_denial_of_a_slot_is_remembered(engine: DenialCache, behind: Counted) -> None:
    """It is free as soon as another worker's call is over, before the named wait."""
    slot = Charge(Limit(1, SECOND, "concurrency", unit="calls"), "slots")
    hold = Hold(7, 60 * SECOND)
    verdict = engine.admit([slot], hold=hold).verdicts[0]
    assert not any(engine.admit([slot], hold=Hold(8, SECOND)).admitted for _ in range(5))
    behind.settle([Change.settle(verdict, hold, 0)])
    assert engine.admit([slot], hold=Hold(8, SECOND)).admitted


def test_denials_of_an_attack_do_not_stay(clock: Clock, engine: DenialCache) -> None:
    """Each new one drops two that are older than a second."""
    limit = Limit(1, 60 * SECOND)
    for client in range(100):
        denied(engine, 2, Charge(limit, f"bucket-{client}"))
    clock.now += 2
    for client in range(50):
        denied(engine, 2, Charge(limit, f"other-{client}"))
    assert sorted(engine._denials) == sorted(f"other-{client}" for client in range(50))


@pytest.mark.parametrize("seed", range(40))
def test_a_repeated_denial_says_no_more_than_is_left(
    clock: Clock, engine: DenialCache, behind: Counted, seed: int
) -> None:
    """In random histories of callers with other costs and limits in common: no wait is too short,
    and no limit has less than what is shown, whatever this worker has taken since."""
    draws, repeated = random.Random(seed), 0
    limits = (
        Limit(6, 4 * SECOND, "sliding-window"),
        Limit(9, 5 * SECOND, "token-bucket", burst=5),
        Limit(8, 3 * SECOND, "fixed-window"),
    )
    charges = [Charge(limits[0], "bucket-0")]
    for _ in range(200):
        if draws.random() < 0.5:
            chosen = draws.sample(range(3), draws.randint(1, 3))
            charges = [Charge(limits[i], f"bucket-{i}", draws.choice((1, 1, 2, 3))) for i in chosen]
        clock.now += draws.choice((0, 0, 0, 0.013, 0.057, 0.211))
        truth = behind.admit(charges, take=False)
        decision = engine.admit(charges)
        if not isinstance(decision, CachedDecision) or truth.admitted:
            continue  # at the microsecond at which the wait ends
        repeated += 1
        assert decision.retry_after_ms is not None
        assert truth.retry_after_ms is not None
        assert decision.retry_after_ms >= truth.retry_after_ms - 1
        left = {verdict.charge.key: verdict.remaining for verdict in truth.verdicts}
        for verdict in decision.verdicts:
            assert verdict.remaining <= left[verdict.charge.key]
    assert repeated > 5


def test_a_denial_by_calls_in_flight_is_not_repeated() -> None:
    """Other workers' calls may end at any moment."""
    engine = MemoryEngine()
    cache, budget = DenialCache(engine), Limit(1_000, 86_400 * SECOND, unit="usd")
    charge, hold = Charge(budget, "b", 10, claim=Claim(10, 20, 500, 500)), Hold(1, 600 * SECOND)
    [verdict] = engine.admit([charge._replace(cost=985)], hold=hold).verdicts
    assert [cache.admit([charge], hold=Hold(2, SECOND)).admitted for _ in range(3)] == [False] * 3
    engine.settle([Change.settle(verdict, hold, 10)])
    assert cache.admit([charge], hold=Hold(2, SECOND)).admitted


@pytest.mark.parametrize(("most", "is_repeated"), [(400, True), (2_000, False)])
def test_a_claim_may_take_its_most(most: int, is_repeated: bool) -> None:
    """Beside another limit that denies: a budget that may deny for longer is asked."""
    cache, budget = DenialCache(MemoryEngine()), Limit(1_000, 86_400 * SECOND, unit="usd")
    claimed = Charge(budget, "b", 10, claim=Claim(10, 20, most, most))
    charges = [Charge(Limit(1, 60 * SECOND), "pace"), claimed]
    answers = [cache.admit(charges, hold=Hold(number, SECOND)) for number in range(1, 4)]
    assert [each.admitted for each in answers] == [True, False, False]
    assert (cache.cached(charges) is not None) is is_repeated
