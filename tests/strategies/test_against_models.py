"""Both engines against brute force: random histories, in virtual time, with expiry.

``MODEL_HISTORIES=2000 pytest tests/strategies/test_against_models.py`` plays as many for every
strategy, plain and held. Below 256 calls in a window a sliding window merges nothing, and no
history has as many: every answer has to be equal.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import redis

from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import (
    Correction,
    Engine,
    Renewal,
    Settlement,
)
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.guards.block import REASONS, NewBlock
from ratelimit_ext.strategies.guards.provider_quota import QuotaReport
from tests import servers
from tests.strategies import models
from tests.strategies.virtual_time import VirtualClient
from tests.strategies.world import DAY, MINUTE, SECOND, START

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "100"))
STEPS = 40
#: A renewal and a settlement use these; the lease of most calls.
LEASES = (SECOND, 120 * SECOND, 900 * SECOND)

#: A surge's past is forgotten after 400 of them, which no history of the longer ones lasts.
PERIODS = (SECOND, 7 * SECOND + 1, MINUTE, 60 * MINUTE)

MODELS = {
    "token-bucket": models.TokenBucket,
    "fixed-window": models.FixedWindow,
    "sliding-window": models.SlidingWindow,
    "sliding-window-counter": models.SlidingWindowCounter,
    "surge": models.Surge,
    "concurrency": models.Concurrency,
    "block": models.Block,
    "reported": models.Reported,
}
#: Where it is not stored when a call came: a clock set back does not part a refund from its charge.
TIMELESS = ("token-bucket", "concurrency")

CASES = [
    (strategy, unit, anchor)
    for strategy in MODELS
    for unit in ("requests", "tokens")
    for anchor in ((None, "day") if strategy == "fixed-window" else (None,))
    if unit == "requests" or strategy not in ("block", "reported", "concurrency")
]


class History:
    """One bucket in both engines and in the model."""

    def __init__(
        self, chance: random.Random, client: redis.Redis, strategy: str, unit: str, anchor: Any
    ) -> None:
        client.flushall()
        self.chance = chance
        self.engines: list[Engine] = [
            MemoryEngine(),
            RedisEngine(VirtualClient(client), redis.RedisError),
        ]
        self.model = models.Bucket(MODELS[strategy]())
        amount = chance.choice((1, 2, 5, 10, 100, 1000))
        self.limit = Limit(
            min(amount, 5) if strategy == "concurrency" else amount,
            DAY if anchor else chance.choice(PERIODS[2 * (strategy == "surge") :]),
            strategy,
            burst=amount * chance.choice((1, 3)) if strategy == "token-bucket" else None,
            unit="calls" if strategy == "concurrency" else unit,
            anchor=anchor,
            multiple=3 if strategy == "surge" else None,
        )
        self.now = START
        self.calls = 0
        self.final: list[tuple[int, Verdict]] = []  # without a lease: to be corrected once
        self.held: list[tuple[int, Verdict, Hold]] = []

    def play(self) -> None:
        steps = [self.call] * 8 + [self.look] * 2 + [self.correct, self.change]
        steps += [self.advance] * 5 + [self.set_back]
        if self.limit.held:
            steps += [self.settle] * 3 + [self.renew] * 3
        if self.limit.strategy in ("block", "reported"):
            steps += [self.guard] * 3
        for _ in range(STEPS):
            self.chance.choice(steps)()

    def cost(self) -> int:
        if self.limit.strategy == "concurrency":
            return 1
        most = min(self.limit.capacity, self.limit.amount * 3)
        return self.chance.choice((0, 1, 1, most // 3, most // 2, most, most + 1))

    def call(self) -> None:
        lease = self.chance.choice((*LEASES, *LEASES, 0))
        if self.limit.strategy == "concurrency":
            lease = lease or LEASES[0]
        self.calls += 1
        hold = Hold(self.calls, lease) if self.limit.held and lease else NO_HOLD
        cost = self.cost()
        self.model.advance(self.limit, self.now)
        verdict = self.admitted(cost, hold, take=True)
        if verdict.allowed and hold.lease_us:
            self.held.append((self.calls, verdict, hold))
        elif verdict.allowed and cost:
            self.final.append((self.calls, verdict))

    def look(self) -> None:
        self.model.advance(self.limit, self.now)
        self.admitted(self.cost(), NO_HOLD, take=False)

    def admitted(self, cost: int, hold: Hold, *, take: bool) -> Verdict:
        """The engines' answer, which is the model's."""
        charge, model = Charge(self.limit, "b", cost), self.model
        if not take:
            model = deepcopy(model)
        allowed = model.admit(self.limit, self.now, self.calls, cost if take else 0, hold.lease_us)
        if not take:
            allowed = model.rule.fits(self.limit, self.now, cost)
        left = model.rule.left(self.limit, self.now)
        verdicts = [
            engine.admit([charge], take=take, hold=hold, now_us=self.now).verdicts[0]
            for engine in self.engines
        ]
        for verdict in verdicts:
            assert verdict.allowed == allowed
            if left != models.UNKNOWN:
                # Of a report, a unit's refill is rounded up to a microsecond.
                assert 0 <= verdict.remaining - left <= (self.limit.strategy == "reported")
            self.same_wait(model, verdict)
        assert verdicts[0] == verdicts[1]
        return verdicts[0]

    def same_wait(self, model: models.Bucket, verdict: Verdict) -> None:
        """Without other calls the wait is enough, and one microsecond less is not."""
        wait, cost = verdict.retry_after_us, verdict.charge.cost
        if not wait or self.limit.strategy == "concurrency":
            return
        rule = model.rule
        assert rule.fits(self.limit, self.now + wait, cost)
        assert not rule.fits(self.limit, self.now + wait - 1, cost)

    def changed(self, change: Change, expected: bool) -> None:
        for engine in self.engines:
            assert engine.settle([change], now_us=self.now) == expected

    def correct(self) -> None:
        if not self.final:
            return
        number, verdict = self.final.pop(self.chance.randrange(len(self.final)))
        cost = verdict.charge.cost
        if self.limit.strategy == "block":
            return
        delta = self.chance.choice((-cost, -(cost // 2) or -1, 1, cost, 3 * cost))
        self.model.advance(self.limit, self.now)
        self.changed(
            Correction(self.by_now(verdict), delta),
            self.model.correct(self.limit, self.now, number, delta),
        )

    def settle(self) -> None:
        if not self.held:
            return
        place = self.chance.randrange(len(self.held))
        number, verdict, hold = self.held[place]
        if self.chance.random() < 0.7:
            self.held.pop(place)  # or it is settled again, which changes nothing
        cost = verdict.charge.cost
        actual = self.chance.choice((0, cost // 2, cost, cost + 1, 3 * cost + 2))
        if self.limit.strategy == "concurrency":
            actual = 0
        self.model.advance(self.limit, self.now)
        self.changed(
            Settlement(self.by_now(verdict), hold, actual),
            self.model.settle(self.limit, self.now, number, actual),
        )

    def renew(self) -> None:
        if not self.held:
            return
        number, verdict, hold = self.chance.choice(self.held)
        cost = verdict.charge.cost
        spent = self.chance.choice((0, 0, cost // 3, cost, cost + 1, 2 * cost + 2))
        if self.limit.strategy == "concurrency":
            spent = 0
        self.model.advance(self.limit, self.now)
        self.changed(
            Renewal(self.by_now(verdict), hold, spent),
            self.model.renew(self.limit, self.now, number, spent, hold.lease_us),
        )

    def by_now(self, verdict: Verdict) -> Verdict:
        """The verdict with the limit as it is now."""
        return verdict._replace(charge=verdict.charge._replace(limit=self.limit))

    def change(self) -> None:
        """Another amount. What a token bucket refilled by then was refilled at the former pace: a
        correction of 0 brings it to the present, and one by the new limit keeps it for long enough.
        """
        self.model.advance(self.limit, self.now)
        amount = self.chance.choice((1, 3, 10, 50, 2000))
        if self.limit.strategy == "concurrency":
            amount = min(amount, 10)
        changed = replace(
            self.limit,
            amount=amount,
            burst=self.limit.burst and amount * self.chance.choice((1, 2)),
        )
        for limit in (self.limit, changed):
            if self.limit.strategy == "token-bucket":
                self.model.rule.take(limit, self.now, 0, 0)
                nothing = Verdict(Charge(limit, "b"), True, 0, 0, 0, 0)
                self.changed(Correction(nothing, 0), True)
        self.limit = changed

    def advance(self) -> None:
        period = self.limit.period_us
        gaps = [0, 1, 999, SECOND, period // self.limit.amount, period // 10, period // 2]
        gaps += [period - 1, period, period + 1, 2 * period, 3 * period]
        if self.limit.held:
            gaps += [*LEASES, LEASES[1] - 1, models.GRACE, models.GRACE - 1]
        self.now += self.chance.choice(gaps)

    def set_back(self) -> None:
        """Earlier calls are not corrected any more, as their window is unknown. A call is made
        calls at once, and no lease ends twice."""
        back = self.chance.choice((1, SECOND // 3, SECOND, SECOND + 1, 5 * MINUTE, DAY))
        if self.limit.held and self.limit.strategy not in TIMELESS:
            return
        self.model.advance(self.limit, self.now)
        if any(self.now - back < instant <= self.now for instant in self.model.boundaries()):
            return
        if self.limit.strategy not in TIMELESS:
            self.final.clear()
        if not self.model.calls and not self.model.rule.matters(self.limit, self.now):
            # It has expired, or will within a moment.
            self.model.rule = MODELS[self.limit.strategy]()
            for engine in self.engines:
                engine.clear(["b"])
        self.now -= back
        self.call()

    def guard(self) -> None:
        """A block begins; a provider reports."""
        charge, rule = Charge(self.limit, "b"), self.model.rule
        if self.limit.strategy == "block":
            for_us = self.chance.choice((1, SECOND, 9 * SECOND))
            how: Any = {
                "reason": self.chance.choice(REASONS),
                "ramped": self.chance.random() < 0.5,
                "grows": self.chance.random() < 0.5,
            }
            expected = rule.block(self.now, for_us, ramped=how["ramped"], grows=how["grows"])
            self.changed(NewBlock(charge, for_us, **how), expected)
            return
        amount = self.chance.choice((1, 60, 1000))
        used, period = self.chance.randint(0, amount), self.chance.choice((SECOND, 7 * SECOND + 1))
        rule.report(self.now, amount, used, period)
        self.changed(QuotaReport(charge, amount, used, period), True)


@pytest.fixture(scope="module")
def client(redis_server: servers.Server) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


@pytest.mark.parametrize(("strategy", "unit", "anchor"), CASES)
def test_every_answer_is_that_of_the_model(
    client: redis.Redis, strategy: str, unit: str, anchor: str | None
) -> None:
    """Whatever is called, settled, renewed, refunded, changed or waited for."""
    for seed in range(HISTORIES):
        chance = random.Random(f"{strategy} {unit} {anchor} {seed}")
        history = History(chance, client, strategy, unit, anchor)
        try:
            history.play()
        except AssertionError as error:
            raise AssertionError(f"history {seed}, {history.limit}: {error}") from error
