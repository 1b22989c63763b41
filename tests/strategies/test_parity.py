"""The Python reference and the Lua fragments agree to the digit, on a real server, expiry included.

``PARITY_EXAMPLES=20000 pytest tests/strategies/test_parity.py`` searches with fresh randomness.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import (
    LONGEST_PERIOD_US,
    MOST_AMOUNT,
    MOST_MULTIPLE,
    Limit,
)
from ratelimit_ext.engine.engine import (
    Correction,
    Renewal,
    Settlement,
)
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.guards.block import REASONS, NewBlock
from ratelimit_ext.strategies.guards.provider_quota import QuotaReport
from tests import servers
from tests.strategies.virtual_time import OpenBuckets, VirtualClient
from tests.strategies.world import RATES

EXAMPLES = int(os.environ.get("PARITY_EXAMPLES", "300"))
SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_800_000_000 * SECOND

PERIODS = (SECOND, 7 * SECOND + 1, 60 * SECOND, 3600 * SECOND, DAY, 30 * DAY, 360 * DAY)
AMOUNTS = (1, 2, 3, 10, 30, 90, 511, 1000, 65_537, 10_000_000, 999_999_937, MOST_AMOUNT)

amounts = st.one_of(st.sampled_from(AMOUNTS), st.integers(1, MOST_AMOUNT))
periods = st.one_of(st.sampled_from(PERIODS), st.integers(1, 360 * DAY), st.just(LONGEST_PERIOD_US))


@st.composite
def limits(draw: st.DrawFn) -> Limit:
    strategy = draw(st.sampled_from((*RATES, "block", "reported", "surge", "concurrency")))
    units = ["calls"] if strategy == "concurrency" else ["requests", "tokens"]
    burst = draw(st.none() | amounts) if strategy == "token-bucket" else None
    anchored = strategy == "fixed-window" and draw(st.booleans())
    return Limit(
        draw(amounts),
        draw(periods),
        strategy,
        burst=burst,
        unit=draw(st.sampled_from(["requests"] if strategy in ("block", "reported") else units)),
        mode=draw(st.sampled_from(("enforce", "enforce", "shadow"))),
        anchor=draw(st.sampled_from(("day", "month"))) if anchored else None,
        timezone=draw(st.sampled_from(("UTC", "Europe/Berlin", "America/Havana"))),
        multiple=draw(st.sampled_from((1, 2, 20, MOST_MULTIPLE))) if strategy == "surge" else None,
    )


@dataclass(frozen=True)
class Step:
    """What happens next; sizes are shares, so that they mean something for any limit."""

    kind: str
    places: tuple[int, ...] = (0,)
    share: float = 0.0
    unit: int = 0
    flag: bool = False


shares = st.one_of(
    st.sampled_from((0.0, 0.001, 0.1, 1 / 3, 0.5, 0.999, 1.0, 1.001, 2.0)), st.floats(0, 1.2)
)
places = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(tuple)
steps = st.one_of(
    st.builds(Step, st.just("admit"), places, shares, st.integers(0, 3), st.booleans()),
    st.builds(Step, st.just("admit"), places, shares, st.integers(0, 3), st.booleans()),
    st.builds(Step, st.just("advance"), places, shares, st.integers(-2, 2), st.booleans()),
    st.builds(Step, st.just("advance"), places, shares, st.integers(-2, 2), st.booleans()),
    st.builds(Step, st.just("rewind"), places, shares, st.integers(0, 2 * SECOND)),
    st.builds(Step, st.just("correct"), places, shares, st.integers(-2, 2), st.booleans()),
    st.builds(Step, st.just("end"), places, shares, st.integers(0, 2)),
    st.builds(Step, st.just("renew"), places, shares, st.integers(0, 2)),
    st.builds(Step, st.just("burst"), places, shares, st.integers(0, 2)),
    st.builds(Step, st.just("guard"), places, shares, st.integers(0, 19), st.booleans()),
    st.builds(Step, st.just("change"), places, shares, st.integers(1, MOST_AMOUNT)),
)


class Twins:
    """Both engines, given the same history."""

    def __init__(self, client: redis.Redis, buckets: Sequence[Limit]) -> None:
        client.flushall()
        self.limits = list(buckets)
        self.buckets = OpenBuckets()
        self.memory = MemoryEngine(lambda: self.buckets)
        self.virtual = VirtualClient(client)
        self.redis = RedisEngine(self.virtual, redis.RedisError)
        # Functions keep their locals between calls, which EVALSHA does not.
        self.redis._connections = self.virtual  # type: ignore[assignment]
        self.now = START
        self.taken: list[tuple[Verdict, Hold]] = []
        self.calls = 0

    def limit(self, place: int) -> Limit:
        return self.limits[place % len(self.limits)]

    def play(self, step: Step) -> None:
        getattr(self, step.kind)(step)

    def advance(self, step: Step) -> None:
        limit = self.limit(step.places[0])
        whole = limit.period_us if step.flag else limit.period_us // limit.amount
        self.now += max(0, int(whole * step.share) + step.unit)

    def rewind(self, step: Step) -> None:
        period = self.limit(step.places[0]).period_us
        self.now = max(START - DAY, self.now - int(period * step.share) - step.unit)

    def change(self, step: Step) -> None:
        place = step.places[0] % len(self.limits)
        changed: dict[str, Any] = {"amount": step.unit}
        if self.limits[place].burst is not None:
            changed["burst"] = min(MOST_AMOUNT, 1 + int(step.unit * step.share))
        self.limits[place] = replace(self.limits[place], **changed)

    def admit(self, step: Step) -> None:
        lease_us = (0, 1, SECOND, 120 * SECOND)[step.places[0]]
        if step.places[0] and step.flag:
            lease_us = max(1, min(self.limit(0).period_us, DAY) // step.places[0])
        self._admitted(self._charges(step), take=step.unit < 3, lease_us=lease_us)

    def burst(self, step: Step) -> None:
        gap = int(self.limit(step.places[0]).period_us * step.share) // 10
        for _ in range(10):
            self._admitted(self._charges(replace(step, share=step.unit / 1e12)), take=True)
            self.now += gap

    def _charges(self, step: Step) -> list[Charge]:
        charges = []
        chosen = sorted({place % len(self.limits) for place in step.places})
        for position, place in enumerate(chosen):
            limit = self.limits[place]
            meta = step.flag and position > 0 and position == len(chosen) - 1
            cost = int(limit.capacity * step.share) + step.unit
            triggers = (0,) if meta and step.unit == 1 else ()
            charges.append(Charge(limit, f"b{place}", cost, meta=meta, on_denial=triggers))
        return charges

    def _admitted(self, charges: list[Charge], *, take: bool, lease_us: int = 0) -> None:
        self.calls += 1
        hold = Hold(self.calls, lease_us) if lease_us else NO_HOLD
        ours = self.memory.admit(charges, take=take, hold=hold, now_us=self.now)
        theirs = self.redis.admit(charges, take=take, hold=hold, now_us=self.now)
        assert ours == theirs
        self._same_expiry([charge.key for charge in charges])
        self.taken += [(verdict, hold) for verdict in ours.verdicts if take]

    def _chosen(self, step: Step) -> list[tuple[Verdict, Hold]]:
        return [self.taken[-1 - place] for place in step.places if place < len(self.taken)]

    def correct(self, step: Step) -> None:
        sign = 1 if step.flag else -1
        self._settled(
            [
                Correction(v, sign * int(v.charge.limit.amount * step.share) + step.unit)
                for v, _ in self._chosen(step)
            ]
        )

    def end(self, step: Step) -> None:
        self._settled(
            [
                Settlement(v, hold, int(v.charge.limit.amount * step.share) + step.unit)
                for v, hold in self._chosen(step)
                if v.charge.limit.held
            ]
        )

    def renew(self, step: Step) -> None:
        self._settled(
            [
                Renewal(v, hold, int(v.charge.cost * step.share) + step.unit)
                for v, hold in self._chosen(step)
                if v.charge.limit.held
            ]
        )

    def _settled(self, changes: Sequence[Change]) -> None:
        ours = self.memory.settle(changes, now_us=self.now)
        assert ours == self.redis.settle(changes, now_us=self.now)
        self._same_expiry([change.charge.key for change in changes])

    def guard(self, step: Step) -> None:
        """Blocks and reports, for those of the limits that take them."""
        changes: list[Change] = []
        for place in step.places:
            limit = self.limit(place)
            charge = Charge(limit, f"b{place % len(self.limits)}")
            if limit.strategy == "block":
                for_us = int(limit.period_us * step.share)
                changes.append(
                    NewBlock(
                        charge,
                        for_us,
                        REASONS[step.unit % 4],
                        ramped=step.flag,
                        grows=step.unit > 9,
                    )
                )
            if limit.strategy == "reported":
                amount = limit.amount if step.flag else 60
                used = int(amount * step.share)
                changes.append(QuotaReport(charge, amount, used, limit.period_us))
        self._settled(changes)

    def _same_expiry(self, keys: list[str]) -> None:
        for key in keys:
            assert self.virtual.expiry_us.get(key) == self.buckets.expiry_us(key)


@pytest.fixture(scope="module")
def client(redis_server: servers.Server) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


@settings(
    max_examples=EXAMPLES,
    derandomize="PARITY_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    buckets=st.lists(limits(), min_size=1, max_size=4),
    history=st.lists(steps, min_size=10, max_size=50),
)
def test_any_history_has_one_outcome(
    client: redis.Redis, buckets: list[Limit], history: list[Step]
) -> None:
    """Whatever is charged, refunded, changed or waited for: both engines answer the same digits."""
    twins = Twins(client, buckets)
    for step in history:
        twins.play(step)


@pytest.mark.parametrize("seed", range(3))
def test_a_log_at_its_largest_has_one_outcome(client: redis.Redis, seed: int) -> None:
    """Merging, expiry and correction in the middle of 512 entries agree in both engines."""
    chance = random.Random(seed)
    period = chance.choice((60 * SECOND, DAY, 360 * DAY))
    twins = Twins(client, [Limit(400_000, period, "sliding-window")])
    longest = 0
    for call in range(2000):
        twins.now += chance.choice((0, 1, period // 3000, period // 700, period // 511))
        cost = chance.choice((1, 1, 1, 50, 1000, 200_000))
        charge = Charge(twins.limits[0], "b0", cost)
        twins._admitted([charge], take=chance.random() < 0.95)
        if chance.random() < 0.1:
            verdict, _ = chance.choice(twins.taken[-600:])
            correction = Correction(verdict, chance.randint(-verdict.charge.cost, 30))
            assert twins.memory.settle([correction], now_us=twins.now) == twins.redis.settle(
                [correction], now_us=twins.now
            )
        if call > 1200 and chance.random() < 0.01:
            twins.now += chance.choice((-1, -SECOND, -period // 9, period // 2))
        longest = max(longest, client.strlen("b0"))
    assert 480 * 10 < longest <= 512 * 10 + 4  # the amount fits 3 bytes


def test_the_product_of_the_largest_numbers_is_exact(client: redis.Redis) -> None:
    """The prelude's a * b / m is exact to 2^53, where a double alone is not."""
    from importlib.resources import files

    prelude = (files("ratelimit_ext.engine") / "prelude.lua").read_text("utf-8")
    script = (
        prelude
        + """
    local quotient, rest = multiply_divide(tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))
    return {string.format('%.0f', quotient), string.format('%.0f', rest)}
    """
    )
    chance = random.Random(1)
    for _ in range(2000):
        divisor = chance.randint(1, 2 ** chance.randint(1, 48))
        one = chance.randint(0, 2 ** chance.randint(1, 53) - 1)
        other = chance.randint(0, 2 ** chance.randint(1, 53) - 1)
        if one * other // divisor >= 2**53:
            other = min(other, divisor)
        reply: Any = client.eval(script, 0, one, other, divisor)
        assert tuple(map(int, reply)) == divmod(one * other, divisor)
