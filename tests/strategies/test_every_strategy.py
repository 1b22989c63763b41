"""What every strategy of rates promises, whatever its algorithm."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.traits import StrategyName
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies import ALIASES, STRATEGIES, strategy_named
from tests.strategies.models import GRACE
from tests.strategies.virtual_time import KeptBuckets, OpenBuckets, VirtualClient
from tests.strategies.world import DAY, HOUR, MINUTE, RATES, SECOND, World

every_strategy = pytest.mark.parametrize("strategy", RATES)
#: Of each guard, one that denies nothing yet.
GUARDS = {
    "block": Limit(1, SECOND, "block"),
    "reported": Limit(1, MINUTE, "reported", unit="tokens"),
    "surge": Limit(3, MINUTE, "surge", multiple=10),
}


@every_strategy
def test_the_amount_passes_and_not_one_more(world: World, strategy: str) -> None:
    """10 of 12 simultaneous calls pass on 10 a minute; what remains counts down with them."""
    limit = Limit(10, MINUTE, strategy)
    assert [world.call(limit).remaining for _ in range(10)] == list(range(9, -1, -1))
    assert world.passed(limit, 2) == 0


@every_strategy
def test_a_cost_of_zero_looks(world: World, strategy: str) -> None:
    """A look is never denied, takes nothing and leaves no bucket behind."""
    limit = Limit(3, MINUTE, strategy)
    assert world.call(limit, 0).remaining == 3
    assert world.engine.clear(["bucket"]) == 0
    world.passed(limit, 3)
    for _ in range(5):
        verdict = world.call(limit, 0)
        assert (verdict.allowed, verdict.remaining, verdict.retry_after_ms) == (True, 0, 0)


@every_strategy
def test_a_cost_above_the_capacity_never_passes(world: World, strategy: str) -> None:
    """It is denied without a waiting time, and it uses nothing."""
    limit = Limit(10, MINUTE, strategy)
    verdict = world.call(limit, 11)
    assert not verdict.allowed
    assert verdict.retry_after_ms is None
    assert world.call(limit, 10**30).retry_after_ms is None
    assert world.left(limit) == 10
    assert world.call(limit, 10).allowed


@every_strategy
def test_a_denied_cost_does_not_burn_what_was_left(world: World, strategy: str) -> None:
    """7 of 10 used: 5 are denied, and the 3 that were left still pass."""
    limit = Limit(10, MINUTE, strategy)
    world.call(limit, 7)
    denied = world.call(limit, 5)
    assert (denied.allowed, denied.remaining) == (False, 3)
    assert world.call(limit, 3).allowed
    assert not world.call(limit, 1).allowed


@every_strategy
@pytest.mark.parametrize(("amount", "left"), [(2000, 1940), (50, 0), (100, 40)])
def test_a_changed_amount_keeps_the_usage(
    world: World, strategy: str, amount: int, left: int
) -> None:
    """60 of 100 a day used: raised to 2,000 it leaves 1,940, lowered to 50 it leaves none."""
    before = Limit(100, DAY, strategy)
    world.call(before, 60)
    after = replace(before, amount=amount)
    assert world.left(after) == left
    assert world.call(after).allowed == (left > 0)


@every_strategy
def test_an_amount_of_zero_denies_everything(world: World, strategy: str) -> None:
    """Without a wait, for a new bucket and for one that was in use: 3 of 10 used, lowered to 0, are
    still used when it is 10 again."""
    nothing = Limit(0, MINUTE, strategy)
    before = replace(nothing, amount=10)
    world.call(nothing, key="new")
    world.call(before, 3)
    for key in ("new", "bucket"):
        verdict = world.call(nothing, key=key)
        assert (verdict.allowed, verdict.remaining, verdict.retry_after_ms) == (False, 0, None)
        assert verdict.reset_after_us == MINUTE
        look = world.call(nothing, 0, key=key)
        assert (look.allowed, look.remaining, look.retry_after_ms) == (True, 0, 0)
    assert world.left(before) == 7


FOREIGN = {
    "list": lambda client: client.rpush("bucket", "x"),
    "set": lambda client: client.sadd("bucket", "x"),
    "hash": lambda client: client.hset("bucket", "field", "x"),
    "zset": lambda client: client.zadd("bucket", {"x": 1}),
    "stream": lambda client: client.xadd("bucket", {"field": "x"}),
    "empty": lambda client: client.set("bucket", ""),
    "number": lambda client: client.set("bucket", "17"),
    "text": lambda client: client.set("bucket", "y" * 1000),
}


@every_strategy
@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_a_foreign_value_under_our_name_is_a_fresh_bucket(
    redis_client: redis.Redis, strategy: str, kind: str
) -> None:
    """Never a WRONGTYPE, whatever is stored there, also in a settlement."""
    world = World(RedisEngine(redis_client, redis.RedisError))
    limit = Limit(3, MINUTE, strategy)
    FOREIGN[kind](redis_client)
    verdict = world.look(limit)
    world.settle(verdict, -1)
    redis_client.delete("bucket")
    FOREIGN[kind](redis_client)
    assert world.passed(limit, 4) == 3


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_a_foreign_value_under_the_name_of_a_guard_denies_nothing(
    redis_client: redis.Redis, guard: str, kind: str
) -> None:
    """And what a guard counts begins anew."""
    world = World(RedisEngine(redis_client, redis.RedisError))
    for cost in (0, 1):
        FOREIGN[kind](redis_client)
        verdict = world.call(GUARDS[guard], cost)
        assert verdict.allowed
        world.settle(verdict, 1)
        redis_client.delete("bucket")


def act_on_block(world: World, limit: Limit) -> int:
    world.block(limit, 600)
    world.wait(60)
    world.call(limit)
    return 540 * SECOND


def act_on_reported(world: World, limit: Limit) -> int:
    world.report(limit, 600, 60, MINUTE)
    world.wait(60)
    world.call(limit)
    return HOUR


def act_on_surge(world: World, limit: Limit) -> int:
    """What is given back leaves a window in which nothing is used."""
    verdict = world.call(limit)
    world.wait(20)
    world.settle(verdict, -1)
    return 40 * SECOND


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_is_kept_for_as_long_as_it_matters(redis_client: redis.Redis, guard: str) -> None:
    """Less than two milliseconds longer, by its last change."""
    client = VirtualClient(redis_client)
    world = World(RedisEngine(client, redis.RedisError))
    lasts_us = globals()[f"act_on_{guard}"](world, GUARDS[guard])
    assert 0 <= client.expiry_us["bucket"] - world.now_us - lasts_us < 2_001


@pytest.mark.parametrize("first", [*RATES, *GUARDS])
def test_what_stands_beside_a_limit_changes_no_answer(world: World, first: str) -> None:
    """In one request and in one settlement, in any order, whatever each stores and sends."""
    limits = [Limit(3, MINUTE, strategy) for strategy in RATES] + list(GUARDS.values())
    one = GUARDS.get(first) or Limit(3, MINUTE, first)
    for number, other in enumerate(limits):
        keys = f"a{number}", f"b{number}"
        for guard, key in zip((one, other), keys, strict=True):
            if guard.strategy == "reported":
                world.report(guard, 3, 0, MINUTE, key)
        charges = [Charge(one, keys[0], 2), Charge(other, keys[1], 2)]
        decision = world.request(*charges)
        assert decision.admitted, other.strategy
        refunds = [Change.adjust(verdict, -1) for verdict in decision.verdicts]
        world.engine.settle(refunds, now_us=world.now_us)
        for limit, key in zip((one, other), keys, strict=True):
            alone = world.request(Charge(limit, "alone", 0)).verdicts[0]
            if limit.strategy == "reported":
                world.report(limit, 3, 0, MINUTE, "alone")
            alone = world.request(Charge(limit, "alone", 2)).verdicts[0]
            world.settle(alone, -1)
            pair = [world.call(limit, 0, each) for each in (key, "alone")]
            assert pair[0].remaining == pair[1].remaining, (limit.strategy, other.strategy)
            world.engine.clear(["alone"])


@every_strategy
@pytest.mark.parametrize("seed", range(6))
def test_the_wait_is_exact(world: World, strategy: str, seed: int) -> None:
    """After retry_after_ms the same cost passes, one millisecond earlier it does not."""
    chance = random.Random(f"{strategy} {seed}")
    amount = chance.choice((3, 30, 90, 1000, 10_000_000, 999_999_937))
    period = chance.choice((SECOND, 7 * SECOND + 1, MINUTE, DAY, 30 * DAY))
    limit = Limit(amount, period, strategy)
    waited = 0
    while waited < 25:
        cost = max(1, int(amount * chance.choice((1e-9, 0.01, 0.1, 0.4, 1.0))))
        world.now_us += chance.choice((0, 1, 999, period // amount, period // 7))
        wait = world.call(limit, cost).retry_after_ms
        if not wait:
            continue
        world.now_us += (wait - 1) * 1000
        assert not world.look(limit, cost).allowed
        world.now_us += 1000
        assert world.look(limit, cost).allowed
        waited += 1


@every_strategy
def test_the_wait_is_that_of_this_cost(world: World, strategy: str) -> None:
    """A cheap call never waits longer than an expensive one, and mostly less."""
    limit = Limit(10, MINUTE, strategy)
    for _ in range(10):
        world.call(limit)
        world.wait(2)
    cheap, dear = world.look(limit, 1).retry_after_ms, world.look(limit, 8).retry_after_ms
    assert cheap is not None
    assert dear is not None
    assert cheap == dear if strategy in ("fixed-window", "session") else cheap < dear


@every_strategy
@pytest.mark.parametrize("seed", range(3))
def test_reset_says_when_the_limit_is_full(world: World, strategy: str, seed: int) -> None:
    """After reset_after all of it is there, and a microsecond earlier it is not."""
    chance = random.Random(seed)
    limit = Limit(20, MINUTE, strategy)
    for _ in range(60):
        world.wait(chance.choice((0.1, 3, 17)))
        verdict = world.call(limit, chance.choice((1, 1, 2, 9)))
        for look in (verdict, world.look(limit, 0)):
            assert look.reset_after_us > 0
            world.now_us += look.reset_after_us - 1
            assert world.look(limit, 0).remaining < 20
            world.now_us += 1
            assert world.look(limit, 0).remaining == 20
            world.now_us -= look.reset_after_us
        if chance.random() < 0.2:
            world.now_us += verdict.reset_after_us


@every_strategy
def test_an_unused_limit_is_full(world: World, strategy: str) -> None:
    """Now: before the first call, and when the last one no longer counts."""
    limit = Limit(20, MINUTE, strategy)
    assert world.look(limit, 0).reset_after_us == 0
    world.now_us += world.call(limit).reset_after_us
    assert world.look(limit, 0).reset_after_us == 0


@every_strategy
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_read_later_promises_nothing_that_is_not_there(
    world: World, strategy: str, seed: int
) -> None:
    """Headers half a minute later may show too few remaining, never too many."""
    chance = random.Random(f"{strategy} {seed}")
    amount = chance.choice((3, 20, 1000))
    limit = Limit(amount, MINUTE, strategy)
    for _ in range(60):
        world.wait(chance.choice((0, 0.01, 3, 17)))
        cost = chance.randint(1, max(1, amount // 3))
        verdict = world.call(limit, cost)
        if not verdict.allowed:
            continue
        assert strategy_named(strategy).later(verdict, 0) == verdict.left
        elapsed_us = chance.choice((1, SECOND, 7 * SECOND, 59 * SECOND, 61 * SECOND))
        remaining, reset_us, _ = strategy_named(strategy).later(verdict, elapsed_us)
        world.now_us += elapsed_us
        assert 0 <= remaining <= world.look(limit, 0).remaining
        assert reset_us == max(0, verdict.reset_after_us - elapsed_us)
        world.now_us -= elapsed_us


@every_strategy
@pytest.mark.parametrize("back", [0.3, 1, 5, 40, 3700, 3 * 86_400])
def test_a_clock_set_back_blocks_no_longer_than_the_limit(
    world: World, strategy: str, back: float
) -> None:
    """An exhausted bucket opens no later than one exhausted after the change (1 s for skew)."""
    limit = Limit(30, MINUTE, strategy)
    world.passed(limit, 30)
    world.wait(-back)
    world.passed(limit, 30, key="fresh")
    wait, fresh = world.call(limit).retry_after_ms, world.call(limit, key="fresh").retry_after_ms
    assert wait is not None
    assert fresh is not None
    assert 0 < wait <= fresh + 1000
    world.now_us += (wait - 1) * 1000
    assert not world.look(limit).allowed
    world.now_us += 1000
    assert world.call(limit).allowed


@every_strategy
@pytest.mark.parametrize("skew_us", [1, 3000, 400_000, 1_000_000])
def test_clocks_that_differ_refill_nothing(world: World, strategy: str, skew_us: int) -> None:
    """Two workers whose clocks differ by up to a second share the amount, without extra refills."""
    limit = Limit(100, MINUTE, strategy)
    admitted = 0
    for _ in range(400):
        admitted += world.call(limit).allowed
        world.now_us -= skew_us
        admitted += world.call(limit).allowed
        world.now_us += skew_us
    refilled = skew_us * 100 // MINUTE if strategy == "token-bucket" else 0
    assert admitted <= 100 + refilled


@every_strategy
def test_debt_is_carried(world: World, strategy: str) -> None:
    """What a call really cost is charged even beyond the amount; the next call waits for it."""
    limit = Limit(100, MINUTE, strategy)
    verdict = world.call(limit, 10)
    assert world.settle(verdict, 140) == 1
    assert world.left(limit) == 0
    denied = world.call(limit, 1)
    assert not denied.allowed
    assert denied.retry_after_ms
    world.now_us += (denied.retry_after_ms - 1) * 1000
    assert not world.look(limit).allowed
    world.now_us += 1000
    assert world.call(limit).allowed


@every_strategy
def test_debt_of_an_estimate_of_nothing_is_carried(world: World, strategy: str) -> None:
    """A call with an estimate of 0 is charged its real cost."""
    limit = Limit(100, MINUTE, strategy)
    verdict = world.call(limit, 0)
    world.wait(1)
    assert world.settle(verdict, 100) == 1
    assert world.left(limit) == 0
    assert not world.call(limit).allowed


@every_strategy
@pytest.mark.parametrize("debt", [1, 7])
def test_debt_of_a_window_that_is_over_is_charged_to_the_next(
    world: World, strategy: str, debt: int
) -> None:
    """A call that ends later than its window costs what it cost, also a single unit."""
    limit = Limit(100, MINUTE, strategy)
    verdict = world.call(limit, 10)
    world.wait(3 * 60)
    assert world.settle(verdict, debt) == 1
    assert world.left(limit) == 100 - debt


@every_strategy
def test_debt_never_outgrows_the_arithmetic(world: World, strategy: str) -> None:
    """No correction, however absurd, leaves a bucket that fails or that never opens again."""
    limit = Limit(100, SECOND, strategy)
    verdict = world.call(limit, 1)
    for _ in range(3):
        world.settle(verdict, 10**30)
    assert world.left(limit) == 0
    wait = world.call(limit).retry_after_ms
    assert wait
    world.now_us += wait * 1000
    assert world.call(limit).allowed
    world.settle(verdict, -(10**30))
    assert 0 <= world.left(limit) <= 100


@every_strategy
def test_a_refund_gives_back_and_no_more(world: World, strategy: str) -> None:
    """A refund can be used again, up to the capacity."""
    limit = Limit(100, MINUTE, strategy)
    first, second = world.call(limit, 60), world.call(limit, 40)
    assert world.settle(first, -20) == 1
    assert world.left(limit) == 20
    world.settle(second, -10_000)
    world.settle(first, -10_000)
    assert world.left(limit) == 100


@pytest.mark.parametrize("strategy", sorted(set(RATES) - {"token-bucket"}))
def test_a_refund_credits_no_other_window(world: World, strategy: str) -> None:
    """A refund of a window that is over does not change the current one."""
    limit = Limit(100, MINUTE, strategy)
    charged = world.call(limit, 100)
    world.wait(3 * 60)
    assert world.call(limit, 100).allowed
    assert world.settle(charged, -100) == 0
    assert not world.call(limit).allowed


@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window-counter"])
def test_a_refund_credits_no_window_that_was_opened_anew(world: World, strategy: str) -> None:
    """Forgotten and begun again within its own period: it is another window."""
    limit = Limit(100, MINUTE, strategy)
    charged = world.call(limit, 100)
    world.engine.clear(["bucket"])
    world.wait(10)
    world.call(limit, 100)
    assert world.settle(charged, -100) == 0
    assert world.left(limit) == 0


def test_a_refund_credits_no_other_call_of_the_log(world: World) -> None:
    """A second refund is not taken from an older call, which would leave the window too early."""
    limit = Limit(10, MINUTE, "sliding-window")
    world.call(limit, 5)
    world.wait(30)
    verdict = world.call(limit, 5)
    assert world.settle(verdict, -5) == 1
    assert world.settle(verdict, -5) == 0
    assert world.left(limit) == 5


@every_strategy
def test_every_bucket_has_a_time_to_live(redis_client: redis.Redis, strategy: str) -> None:
    """Every admission and settlement leaves a bucket with an expiry."""
    engine = RedisEngine(redis_client, redis.RedisError)
    chance = random.Random(strategy)
    for number in range(200):
        period = chance.choice((1, 999, SECOND, DAY, 2**48))
        amount = chance.choice((1, 1000, 10**12))
        burst = chance.choice((None, 10**12)) if strategy == "token-bucket" else None
        charge = Charge(Limit(amount, period, strategy, burst=burst), f"b{number}", amount)
        verdict = engine.admit([charge]).verdicts[0]
        if number % 2:
            engine.settle([Change.adjust(verdict, chance.choice((-amount, -1, 1, 10**30)))])
    names = list(redis_client.scan_iter())
    assert names
    assert all(redis_client.pttl(name) != -1 for name in names)


@every_strategy
@pytest.mark.parametrize("seed", range(3))
def test_no_bucket_dies_while_it_matters(strategy: str, seed: int) -> None:
    """At the instant of its expiry a bucket answers as a fresh one does."""
    chance = random.Random(f"{strategy} {seed}")
    kept = KeptBuckets()
    world = World(MemoryEngine(lambda: kept))
    for number in range(150):
        key = f"b{number % 5}"
        amount, period = (
            (3, SECOND),
            (7, MINUTE),
            (1000, 7 * SECOND + 1),
            (10**12, DAY),
            (1, DAY),
        )[number % 5]
        limit = Limit(amount, period, strategy)
        verdict = world.call(limit, chance.randint(0, amount), key)
        if chance.random() < 0.3:
            world.settle(verdict, chance.randint(-amount, amount))
        expiry_us = kept.expiry_us(key)
        world.now_us += chance.choice((0, 1, period // amount, period // 2))
        if expiry_us is not None and chance.random() < 0.5:
            world.now_us = max(world.now_us, expiry_us)
            late, fresh = world.look(limit, amount, key), world.look(limit, amount, "fresh")
            assert (late.allowed, late.remaining) == (True, fresh.remaining)


@every_strategy
@pytest.mark.parametrize("lease", [0, MINUTE])
@pytest.mark.parametrize("amount", [3, 1000, 10**12])
def test_no_bucket_is_kept_for_longer_than_it_matters(
    strategy: str, amount: int, lease: int
) -> None:
    """It expires when it is full again, a token bucket within two units more, and a counter when
    its window no longer overlaps; and not before the holds of its calls are forgotten. A server
    counts whole milliseconds, and one more for that in which it stores it."""
    chance, kept = random.Random(f"{strategy} {amount}"), OpenBuckets()
    world = World(MemoryEngine(lambda: kept))
    limit = Limit(amount, MINUTE, strategy, unit="tokens" if lease else "requests")
    more_us = 2 * MINUTE // amount + 2 if strategy == "token-bucket" else 0
    forgotten_us = 0
    for number in range(1, 200):
        world.now_us += chance.choice((0, 0, 1, 999, MINUTE // 7, MINUTE, 2 * MINUTE))
        charge = Charge(limit, "bucket", chance.randint(1, amount // 2 + 1))
        decision = world.engine.admit([charge], hold=Hold(number, lease), now_us=world.now_us)
        if not decision.admitted:
            continue
        if lease:
            forgotten_us = world.now_us + lease + GRACE
        elif chance.random() < 0.3:
            world.settle(decision.verdicts[0], chance.randint(1 - charge.cost, charge.cost + 1))
        look, expiry_us = world.look(limit, 0), kept.expiry_us("bucket")
        full_us = world.now_us + look.reset_after_us
        most_us = full_us + more_us
        if strategy == "sliding-window-counter":
            most_us = (look.receipt or 0) + 2 * MINUTE
        assert expiry_us is not None
        assert max(full_us, forgotten_us) <= expiry_us <= max(most_us, forgotten_us) + 2000


@pytest.mark.parametrize("strategy", ["token-bucket", "fixed-window", "sliding-window-counter"])
def test_a_bucket_takes_at_most_200_bytes(redis_client: redis.Redis, strategy: str) -> None:
    """All in: name, value, expiry and the server's own, after a million units."""
    world = World(RedisEngine(redis_client, redis.RedisError))
    name = f"LIMITS:2:{STRATEGIES[strategy].code}:86400:chat.send::{{user-0123456789abcdef}}"
    world.call(Limit(10_000_000, DAY, strategy), 1_000_000, name)
    assert redis_client.memory_usage(name) <= 200


@pytest.mark.parametrize("amount", [10_000_000, 999_999_937])
@every_strategy
def test_budgets_of_language_models_are_counted_to_the_unit(
    world: World, strategy: str, amount: int
) -> None:
    """Ten million tokens a day, a thousand dollars a month in millionths: no unit is lost."""
    limit = Limit(amount, 30 * DAY, strategy)
    spent = 0
    for cost in (1, 1499, amount // 3, 7, amount // 2):
        spent += cost
        assert world.call(limit, cost).remaining == amount - spent
    assert not world.call(limit, amount - spent + 1).allowed
    assert world.call(limit, amount - spent).remaining == 0


def test_names_of_strategies_are_told_apart() -> None:
    """Each has a code of its own, and Flask-Limiter's moving-window is our sliding-window."""
    assert len({strategy.code for strategy in STRATEGIES.values()}) == len(STRATEGIES)
    assert strategy_named("moving-window") is STRATEGIES["sliding-window"]
    known = ", ".join(sorted({*STRATEGIES, *ALIASES}))
    with pytest.raises(ConfigurationError, match=f"'leaky'; known: {known}"):
        strategy_named("leaky")


@every_strategy
def test_two_identities_do_not_share(world: World, strategy: str) -> None:
    """An exhausted identity does not affect another."""
    limit = Limit(2, HOUR, strategy)
    assert world.passed(limit, 5, key="a") == 2
    assert world.passed(limit, 5, key="b") == 2


def test_type_checkers_know_the_names() -> None:
    """Of the strategies that a limit chooses by name: the others are written in its string."""
    chosen = [name for name, strategy in STRATEGIES.items() if strategy.form is None]
    assert {*get_args(StrategyName)} == {*chosen, *ALIASES}


@every_strategy
@pytest.mark.parametrize("used", [1, 7, 10, 13])
def test_more_is_available_exactly_when_the_verdict_says(
    world: World, strategy: str, used: int
) -> None:
    """Calls of 1 on 10 a minute, 1.7 seconds apart, and a debt where 13 are used: one unit more
    than what remains passes at the stated time, and is refused a microsecond earlier. A full bucket
    states no time."""
    limit = Limit(10, MINUTE, strategy)
    assert world.call(limit, 0).left == (10, 0, 0)
    for _ in range(min(used, 10)):
        verdict = world.call(limit)
        world.wait(1.7)
    if used > 10:
        world.settle(verdict, used - 10)
    remaining, reset_us, more_us = world.call(limit, 0).left
    assert 0 < more_us <= reset_us
    world.wait(us=more_us - 1)
    assert not world.look(limit, remaining + 1).allowed
    world.wait(us=1)
    assert world.look(limit, remaining + 1).allowed
