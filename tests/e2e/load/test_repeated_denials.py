"""Denials that two workers repeat from memory, on a real server: what each says is compared with a
look of its own, which changes nothing."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import pytest
import redis
from limits.storage import storage_from_string

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.denial_cache import LONGEST_S, CachedDecision, DenialCache
from ratelimit_ext.engine.redis import RedisEngine
from tests.servers import Server

pytestmark = pytest.mark.slow

STEPS = 3_600
SECOND = 1_000_000
LIMITS = (
    Limit(6, 4 * SECOND, "sliding-window"),
    Limit(9, 5 * SECOND, "token-bucket", burst=5),
    Limit(8, 3 * SECOND, "fixed-window"),
)
#: Both waits are rounded.
ROUNDED_MS = 2
#: What the other worker did counts when its reply is read.
SLACK_S = 0.1


@dataclass(frozen=True)
class Step:
    """What a worker has done to the buckets of these numbers, between two instants of the clock
    that all processes share: what it has changed, or how what it repeated differs from its look.
    ``too_much`` is how many units too many it showed of a limit, ``late_ms`` how much longer than
    true its wait was, below 0 if it was too short."""

    buckets: tuple[int, ...]
    changed: str
    began: float
    ended: float
    age_s: float | None = None
    too_much: int = 0
    late_ms: float = 0.0


def work(uri: str, orders: Connection) -> None:
    """Carry out orders: which buckets, for how much, or what to give back of the first."""
    storage = storage_from_string(uri)
    behind, looking = (
        RedisEngine(client.get_connection(), client.base_exceptions)
        for client in (storage, storage_from_string(uri))
    )
    engine, last = DenialCache(behind), {}
    while (order := orders.recv()) is not None:
        buckets, costs, gives_back = order
        began = time.monotonic()
        if gives_back:
            verdict = last.pop(buckets[0], None)
            if verdict is not None:
                engine.settle([Change.adjust(verdict, -1)])
            changed = "given" if verdict is not None else ""
            orders.send(Step(buckets[:1], changed, began, time.monotonic()))
            continue
        charges = [Charge(LIMITS[n], f"b{n}", cost) for n, cost in zip(buckets, costs, strict=True)]
        decision = engine.admit(charges)
        if isinstance(decision, CachedDecision):
            truth = looking.admit(charges, take=False)
            ended = time.monotonic()
            left = {verdict.charge.key: verdict.remaining for verdict in truth.verdicts}
            too_much = max(v.remaining - left[v.charge.key] for v in decision.verdicts)
            true_ms = 0 if truth.admitted else truth.retry_after_ms
            # What passes before the look is no difference: only more than that is late.
            late_ms = decision.retry_after_ms - true_ms
            late_ms = min(late_ms, max(0.0, late_ms - (ended - began) * 1000))
            age_s = decision.elapsed_us / SECOND
            orders.send(Step(buckets, "", began, ended, age_s, too_much, late_ms))
            continue
        if decision.admitted:
            last |= dict(zip(buckets, decision.verdicts, strict=True))
        changed = "taken" if decision.admitted else ""
        orders.send(Step(buckets, changed, began, time.monotonic()))


def orders_of(draws: random.Random) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    buckets = tuple(draws.sample(range(3), draws.randint(1, 3)))
    return buckets, tuple(draws.choice((1, 1, 2, 3)) for _ in buckets), draws.random() < 0.1


@pytest.mark.parametrize("seed", range(2))
def test_a_repeated_denial_is_right_but_for_a_second_of_others(
    redis_server: Server, redis_client: redis.Redis, seed: int
) -> None:
    """A denial states no more than is left, and no wait that is too short or too long, unless the
    other worker has taken or given back something of these buckets since it was decided. That was
    at most a second ago."""
    draws, steps = random.Random(seed), list[tuple[int, Step]]()
    context = get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    workers = [
        context.Process(target=work, args=(redis_server.uri, theirs), daemon=True)
        for _, theirs in pipes
    ]
    for worker in workers:
        worker.start()
    order = orders_of(draws)
    for _ in range(STEPS // 2):
        if draws.random() < 0.4:
            order = orders_of(draws)
        time.sleep(draws.choice((0, 0, 0, 0.003, 0.013, 0.057)))
        number = draws.randrange(2)
        pipes[number][0].send(order)
        steps.append((number, pipes[number][0].recv()))
    for ours, _ in pipes:
        ours.send(None)
    for worker in workers:
        worker.join(60)
    repeated = [place for place, (_, step) in enumerate(steps) if step.age_s is not None]
    assert len(repeated) > 100
    assert max(steps[place][1].age_s for place in repeated) <= LONGEST_S
    wrong = [steps[place] for place in repeated if not is_right(steps, place)]
    assert wrong == []


def is_right(steps: Sequence[tuple[int, Step]], place: int) -> bool:
    """Return whether a repeated denial was true, or the other worker has changed one of its buckets
    in the last second."""
    number, step = steps[place]
    recent = [(own, s) for own, s in steps[:place] if s.ended >= step.began - LONGEST_S - SLACK_S]
    # A wait counts from when the reply was read, so it is too long by the time that the reply took.
    reply_s = max([s.ended - s.began for own, s in recent if own == number], default=0.0)
    others = {
        s.changed
        for own, s in recent
        if own != number and not set(s.buckets).isdisjoint(step.buckets)
    }
    is_high = step.too_much > 0 or step.late_ms < -ROUNDED_MS
    is_late = step.late_ms > ROUNDED_MS + reply_s * 1000
    return (not is_high or "taken" in others) and (not is_late or "given" in others)
