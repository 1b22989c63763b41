"""Bytes in the server: per key, per call of a sliding window, of many users."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import flask

import ratelimit_ext
from benchmarks import peers
from benchmarks.engine import DAY_US, START_US, decider
from benchmarks.harness import Figure, Plot, Result, Session
from benchmarks.request_cost import caller

USERS = 50_000
CALLS = 5  # of each user
WINDOW_CALLS = 256
SMALL = ("token-bucket", "fixed-window")


def run(session: Session) -> Result:
    # Keys that expire while others are made would be missing at the end.
    session.client.execute_command("DEBUG SET-ACTIVE-EXPIRE 0")
    users = session.scale.users
    contenders: dict[str, Callable[[int], object]] = {
        f"ratelimit_ext, {strategy}": one_limit(session.uri, strategy) for strategy in SMALL
    }
    for name, make in peers.installed(peers.HITS, session).items():
        hit = make(session.uri, {"day": 1_000})
        contenders[name] = lambda user, hit=hit: hit(f"chat/user-{user}")
    per_key = {name: grown(session, call, users, 2) / users for name, call in contenders.items()}
    per_call = bytes_per_call(session)
    per_user = grown(session, three_limits(session.uri), users, CALLS) / users
    in_all = f"{USERS:,} active users, limits by IP, user and day"
    return Result(
        title="Memory in the server",
        notes=(
            f"Growth of `used_memory` by {users:,} users, divided by their number: keys, values, "
            "expiry and hash table."
        ),
        rows=[
            *(
                {"what": f"{name}: a key, two calls", "bytes": each}
                for name, each in per_key.items()
            ),
            {"what": "ratelimit_ext, sliding-window: a call of any cost", "bytes": per_call},
            {"what": "ratelimit_ext: a user, three limits, five calls", "bytes": per_user},
        ],
        figures=[
            *(
                Figure(f"memory per key, {name}", per_key[name], "at most", 200, "bytes")
                for name in (f"ratelimit_ext, {strategy}" for strategy in SMALL)
            ),
            Figure("sliding window, per call, whatever its cost", per_call, "at most", 16, "bytes"),
            Figure(in_all, per_user * USERS / 1e6, "at most", 30, "MB"),
        ],
        plot=Plot("Memory per key", "bytes", per_key),
    )


def grown(session: Session, call: Callable[[int], object], users: int, calls: int) -> float:
    """By how many bytes the server has grown after calls of so many users."""
    session.client.flushall()
    call(0)  # the server knows the script from here on
    session.client.flushall()
    before = settled_memory(session)
    for user in range(users):
        for _ in range(calls):
            call(user)
    return settled_memory(session) - before


def settled_memory(session: Session) -> int:
    """The memory in use without the clients' buffers, once the server has finished rehashing."""
    until = time.monotonic() + 30
    while True:
        found = session.client.info("memory")
        if not found.get("mem_overhead_db_hashtable_rehashing") or time.monotonic() > until:
            return int(found["used_memory"]) - int(found["mem_clients_normal"])
        time.sleep(0.1)


def one_limit(uri: str, strategy: str) -> Callable[[int], None]:
    app, limiter = limited_app(uri)

    @app.get("/")
    @limiter.limit("1000/day", strategy=strategy, name="chat")
    def view() -> str:
        return "ok"

    return by_user(app)


def three_limits(uri: str) -> Callable[[int], None]:
    app, limiter = limited_app(uri)

    @app.get("/")
    @limiter.limit(
        "120/minute", strategy="token-bucket", burst=20, name="ip", key_func=ratelimit_ext.client_ip
    )
    @limiter.limit("30/minute", strategy="token-bucket", burst=10, name="user")
    @limiter.limit("100/day", strategy="sliding-window", name="plan")
    def view() -> str:
        return "ok"

    return by_user(app)


def bytes_per_call(session: Session) -> float:
    """What a call adds to a sliding window of a day whose calls are evenly spread."""
    chance, client = random.Random(0), session.client
    decide = decider(client, "sliding-window", 10**12)
    sizes = []
    for call in range(WINDOW_CALLS):
        now_us = START_US + call * DAY_US // WINDOW_CALLS
        decide("window", now_us, chance.randint(1, 50_000))
        sizes.append(client.memory_usage("window"))
    return (sizes[-1] - sizes[0]) / (WINDOW_CALLS - 1)


def limited_app(uri: str) -> tuple[flask.Flask, ratelimit_ext.Limiter]:
    app = flask.Flask("memory")
    user = lambda: flask.request.environ["benchmark.user"]  # noqa: E731
    return app, ratelimit_ext.Limiter(user, app=app, storage_uri=uri)


def by_user(app: flask.Flask) -> Callable[[int], None]:
    request: Any = caller(app)

    def call(user: int) -> None:
        address = f"10.{user >> 16}.{user >> 8 & 255}.{user & 255}"
        if request(REMOTE_ADDR=address, **{"benchmark.user": f"user-{user}"}) != 200:
            raise SystemExit("a call was denied by a limit that is not exhausted")

    return call
