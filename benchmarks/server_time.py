"""The server's own microseconds per script: strategies, live calls, numbers of keys, open calls."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import flask
import redis

import ratelimit_ext
from benchmarks.engine import DAY_US, START_US, Decide, decider
from benchmarks.harness import Figure, Plot, Result, Rounds, Session, alternate
from benchmarks.request_cost import caller
from benchmarks.servers import server_us

AMPLE = 10**6  # more than is called, and so little that a bucket does not refill at once
STRATEGIES = ("token-bucket", "fixed-window", "sliding-window-counter", "sliding-window")
FEW = 20  # live calls
BATCH = 5  # calls that are admitted, then settled

Times = dict[str, list[float]]


def run(session: Session) -> Result:
    scale = session.scale
    by_strategy, by_live = strategies(session), live_calls(session)
    by_keys, by_open = numbers_of_keys(session), calls_in_flight(session)
    rounds = Rounds({**by_strategy, **by_live, **by_keys, **by_open}, "lower")
    denial = max(rounds.best(name) for name in by_strategy if name.endswith("denial"))
    few, many = by_live
    live = f"sliding window, {scale.live:,} live calls: admission, relative to {FEW}"
    figures = [
        Figure("a denial in the server", denial, "at most", 60, "µs"),
        rounds.figure(live, many, few, "at most", 1.5),
    ]
    for step in ("admission", "settlement"):
        one, many = (f"usd budget, {n:,} in flight: {step}" for n in (1, scale.in_flight))
        what = f"{scale.in_flight:,} calls in flight on one budget: {step}, relative to one"
        figures.append(rounds.figure(what, many, one, "at most", 2))
    times = dict(zip(scale.keys, map(rounds.best, by_keys), strict=True))
    return Result(
        title="Time in the server",
        notes=(
            "The server's own µs per script (`INFO commandstats`), each on one limit and one key. "
            "A call in flight holds an estimate until it is settled."
        ),
        rows=[
            {"script": name, "µs": rounds.best(name), "median": rounds.median(name)}
            for name in rounds.values
        ],
        figures=figures,
        plot=Plot("An admission, by number of keys", "µs", lines={"token bucket": times}, x="keys"),
        rounds={"µs": rounds.values},
    )


def timed(session: Session, call: Callable[[], object]) -> float:
    return server_us(session.client, call, session.scale.calls)


def strategies(session: Session) -> Times:
    """A call that is admitted and one that is denied, for each strategy."""

    def contender(strategy: str, what: str, amount: int) -> Callable[[], float]:
        decide, clock = decider(session.client, strategy, amount), count(START_US)
        return partial(timed, session, lambda: decide(f"{strategy} {what}", next(clock)))

    contenders = {
        f"{strategy}: {what}": contender(strategy, what, amount)
        for strategy in STRATEGIES
        for what, amount in (("admission", AMPLE), ("denial", 1))
    }
    return alternate(contenders, session.scale.rounds)


def live_calls(session: Session) -> Times:
    """An admission to a sliding window of a day that holds few calls or many, evenly spread."""
    client = session.client
    decide = decider(client, "sliding-window", AMPLE)

    def contender(live: int) -> Callable[[], float]:
        key = f"window of {live}"
        for call in range(live):
            decide(key, START_US + call * DAY_US // live)
        image = client.dump(key)

        def measure() -> float:
            client.restore(key, 0, image, replace=True)
            clock = count(START_US + DAY_US)
            return timed(session, lambda: decide(key, next(clock)))

        return measure

    contenders = {
        f"sliding-window, {live:,} live calls: admission": contender(live)
        for live in (FEW, session.scale.live)
    }
    return alternate(contenders, session.scale.rounds)


def numbers_of_keys(session: Session) -> Times:
    """An admission to one of so many token buckets, chosen at random.

    The numbers are measured one after the other: each adds keys to those of the one before.
    """
    decide = decider(session.client, "token-bucket", 1_000)
    found: Times = {}
    filled = 0
    for number in session.scale.keys:
        fill(session.client, decide, range(filled, number))
        filled, chance = number, random.Random(number)
        call = partial(decide_any, decide, chance, number)
        name = f"token-bucket, {number:,} keys: admission"
        found |= alternate({name: partial(timed, session, call)}, session.scale.rounds)
    session.client.flushall()
    return found


def fill(client: redis.Redis, decide: Decide, numbers: range) -> None:
    """Copies of one bucket."""
    decide("bucket")
    image = client.dump("bucket")
    for start in range(numbers.start, numbers.stop, 5_000):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + 5_000, numbers.stop)):
            pipeline.restore(f"bucket:{number:07}", DAY_US // 1000, image)
        pipeline.execute()


def decide_any(decide: Decide, chance: random.Random, number: int) -> bool:
    return decide(f"bucket:{chance.randrange(number):07}")


# -- calls in flight -------------------------------------------------------------------------------

BUDGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "usd budget": ("1000000 usd/day", {"cost": lambda: "0.01", "strategy": "fixed-window"}),
    "tokens": ("1000000000/day", {"unit": "tokens", "cost": 1000, "strategy": "token-bucket"}),
    "slots": ("1000000 in flight", {}),
}


class OpenCalls:
    """A limited view whose calls stay open."""

    def __init__(self, uri: str, budget: str, in_flight: int) -> None:
        app = flask.Flask("budget")
        app.config["RATELIMIT_LEASE_SECONDS"] = 86_400  # no call expires meanwhile
        limit, options = BUDGETS[budget]
        limiter = ratelimit_ext.Limiter(lambda: f"team-{in_flight}", app=app, storage_uri=uri)
        self._open: deque[ratelimit_ext.Reservation] = deque()

        @app.get("/")
        @limiter.limit(limit, name="budget", **options)
        def view() -> str:
            self._open.append(limiter.current.reservation.detach())
            return "ok"

        self._call = caller(app)
        for _ in range(in_flight - 1):
            self.admit()

    def admit(self) -> None:
        if self._call() != 200:
            raise SystemExit("a call was denied by a budget that is not exhausted")

    def settle(self) -> None:
        """Close the call that has been open for the longest time."""
        reservation = self._open.popleft()
        reservation.settle(tokens=400, usd="0.004")
        reservation.close()


def calls_in_flight(session: Session) -> Times:
    contenders = {
        f"{budget}, {number:,} in flight": partial(
            admitted_and_settled, session, OpenCalls(session.uri, budget, number)
        )
        for budget in BUDGETS
        for number in (1, session.scale.in_flight)
    }
    return {
        f"{name}: {step}": [each[place] for each in times]
        for name, times in alternate(contenders, session.scale.rounds).items()
        for place, step in enumerate(("admission", "settlement"))
    }


def admitted_and_settled(session: Session, calls: OpenCalls) -> tuple[float, float]:
    """The server's µs per admission and per settlement, in small batches of each, so that the
    number of calls in flight stays about the same."""
    batches = max(1, session.scale.calls // 10 // BATCH)
    times = [
        (
            server_us(session.client, calls.admit, BATCH),
            server_us(session.client, calls.settle, BATCH),
        )
        for _ in range(batches)
    ]
    admissions, settlements = zip(*times, strict=True)
    return sum(admissions) / batches, sum(settlements) / batches
