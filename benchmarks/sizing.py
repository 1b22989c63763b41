"""How large a storage chatapp needs: measured per active user and call, simulated per day and for
clusters beyond this machine."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import flask
import redis

from benchmarks.gateway import AT_ONCE, PATH, call_body, chatapp_environment
from benchmarks.harness import Plot, Result, Row, Session
from benchmarks.memory import settled_memory
from benchmarks.mock_upstream import mock_upstream
from benchmarks.servers import script_statistics, server_us
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.key import SLOTS, hash_tag, slot_of, with_tag
from ratelimit_ext.engine.redis import RedisEngine

CALLS = 4  # of each user that is measured
#: The assumed day: users come by a daily curve, with a peak in the afternoon.
CALLS_A_DAY = 20
PEAK_HOUR, SPREAD_HOURS = 15, 4
POPULATIONS = (1_000, 100_000, 10_000_000, 100_000_000)
#: The assumed models: the one of rank r gets 1/r as many calls as the first.
MODELS = 20
MOST_MASTERS = 1_000
#: What identifies the whole application, and one user.
EVERYONE, CALLER = "everyone", "the caller's own"
SAMPLE = 200_000  # simulated calls
#: The share of a core that a storage should not exceed in the busiest minute.
BUSY = 0.5


class PerUser(NamedTuple):
    """What the storage has of an active user, and its µs and scripts for each call."""

    bytes: float
    keys: float
    call_us: float
    scripts: float
    #: The µs of an admission for each group of limits that a cluster decides by itself.
    groups: dict[str, float]


def run(session: Session) -> Result:
    measured = measure(session)
    peak = busiest_minute(random.Random(0))
    rows = [row(users, measured, peak) for users in POPULATIONS]
    return Result(
        title="Sizing a storage for chatapp",
        notes=(
            f"Measured with the default policy's limits, {session.scale.users // 10:,} users and "
            f"{CALLS} calls of each: {measured.bytes:,.0f} bytes and {measured.keys:.1f} keys per "
            f"active user, {measured.call_us:.0f} µs in the server and {measured.scripts:.1f} "
            f"scripts per call. Simulated: {CALLS_A_DAY} calls per user and day, most of them "
            f"around {PEAK_HOUR} h; the busiest minute has {peak * 1440:.1f} times the mean. "
            f"A core of the storage is planned to be busy for {BUSY:.0%} of it. "
            f"Simulated, not run: a cluster of that many masters, with calls of {MODELS} models "
            "(the one of rank r has 1/r as many as the first), and as much time for a settlement "
            "as for the caller's own admission. Measured for it, µs of an admission: "
            + ", ".join(f"{name} {us:.0f}" for name, us in measured.groups.items())
            + f". One cluster takes at most {most_calls(measured.groups):,.0f} calls/s, as each "
            "call asks one master for the limits of everyone."
        ),
        rows=rows,
        figures=[],
        plot=Plot(
            "Memory of the storage",
            "MB",
            lines={"chatapp": {n: n * measured.bytes / 1e6 for n in POPULATIONS}},
            x="active users a day",
        ),
    )


def row(users: int, measured: PerUser, peak: float) -> Row:
    per_second = users * CALLS_A_DAY * peak / 60
    cores = per_second * measured.call_us / 1e6 / BUSY
    return {
        "active users a day": users,
        "calls/s in the busiest minute": per_second,
        "memory, MB": users * measured.bytes / 1e6,
        "storage cores": cores,
        "deployments": max(1, math.ceil(cores)),
        "masters of one cluster": masters(per_second, measured.groups) or "too many calls",
    }


def most_calls(groups: dict[str, float]) -> float:
    """How many calls per second the master of one slot can take: all of them ask for the limits of
    everyone."""
    return BUSY * 1e6 / groups[EVERYONE]


def masters(per_second: float, groups: dict[str, float]) -> int | None:
    """The fewest masters of which none is busier than planned; ``None``: no number is enough."""
    return next((n for n in range(1, MOST_MASTERS) if busiest(n, per_second, groups) <= BUSY), None)


def busiest(number: int, per_second: float, groups: dict[str, float]) -> float:
    """How busy the busiest of so many masters is, from 0 up."""
    own = 2 * groups[CALLER] / number  # the settlement, too
    load = [own] * number
    common = {name: us for name, us in groups.items() if name != CALLER}
    load[slot_of("*") * number // SLOTS] += common.pop(EVERYONE)
    total = sum(1 / rank for rank in range(1, MODELS + 1))
    for rank in range(1, MODELS + 1):
        for name, us in common.items():
            slot = slot_of(f"{name}{rank}")
            load[slot * number // SLOTS] += us / rank / total
    return per_second * max(load) / 1e6


def busiest_minute(chance: random.Random) -> float:
    """The share of a day's calls in its busiest minute, of the large numbers' curve."""
    minutes = [0] * 1440
    for _ in range(SAMPLE):
        hour = chance.gauss(PEAK_HOUR, SPREAD_HOURS)
        minutes[int(hour * 60) % 1440] += 1
    # A minute of the sample is noisy: its quarter of an hour is not.
    quarters = [sum(minutes[start : start + 15]) for start in range(0, 1440, 15)]
    return max(quarters) / 15 / SAMPLE


def measure(session: Session) -> PerUser:
    """The storage's growth and time by calls of many users, each at an address of their own."""
    users = max(2, session.scale.users // 10)
    with application(session) as app:
        client, body = app.test_client(), call_body(AT_ONCE)

        def call(user: int) -> None:
            address = f"10.{user >> 16}.{user >> 8 & 255}.{user & 255}"
            answer = client.post(PATH, json=body, environ_base={"REMOTE_ADDR": address})
            if answer.status_code != 200:
                raise SystemExit(f"a call was answered with {answer.status_code}: {answer.text}")

        call(0)  # the server knows the scripts, and the buckets that all users share exist
        keys, memory = session.client.dbsize(), settled_memory(session)
        session.client.config_resetstat()
        for user in range(1, users + 1):
            for _ in range(CALLS):
                call(user)
        found = script_statistics(session.client)
        measured = PerUser(
            bytes=(settled_memory(session) - memory) / users,
            keys=(session.client.dbsize() - keys) / users,
            call_us=sum(each["usec"] for each in found) / users / CALLS,
            scripts=sum(each["calls"] for each in found) / users / CALLS,
            groups={},
        )
        with recorded_charges(app) as charges:
            call(users + 1)
        return measured._replace(groups=by_identity(session, charges))


@contextmanager
def recorded_charges(app: flask.Flask) -> Iterator[list[Charge]]:
    """The charges of the calls meanwhile."""
    from chatapp.services import services_of

    cache = services_of(app).limiter._components.engines.primary  # noqa: SLF001
    engine = cache._engine  # noqa: SLF001 - what decides, behind the cached denials
    charges: list[Charge] = []
    admit = engine.admit

    def recording(own: Sequence[Charge], **words: Any) -> Any:
        charges.extend(own)
        return admit(own, **words)

    engine.admit = recording
    try:
        yield charges
    finally:
        del engine.admit


def by_identity(session: Session, charges: Sequence[Charge]) -> dict[str, float]:
    """The µs of an admission for the charges of each identity, as a cluster splits them."""
    groups: dict[str, list[Charge]] = {}
    names: dict[str, str] = {}
    for charge in charges:
        tag = hash_tag(charge.key)
        name = EVERYONE if tag == "*" else charge.limit.name if charge.limit.common else CALLER
        name = names.setdefault(tag, name)
        groups.setdefault(name, []).append(charge)
    engine = RedisEngine(session.client, redis.RedisError)
    numbers = itertools.count()

    def admit(own: Sequence[Charge]) -> None:
        number = next(numbers)  # each time another bucket, which is not full
        hold = Hold(number + 1, 60_000_000)
        fresh = [each._replace(key=with_tag(each.key, f"n{number}")) for each in own]
        engine.admit(fresh, hold=hold)

    return {
        name: server_us(session.client, partial(admit, own), session.scale.users // 10)
        for name, own in groups.items()
    }


@contextmanager
def application(session: Session) -> Iterator[flask.Flask]:
    """chatapp in this process over a mock provider, with the limits of its policy."""
    from chatapp import create_app

    with mock_upstream() as port:
        environment = chatapp_environment(session, f"http://127.0.0.1:{port}/v1")
        os.environ |= {
            name: environment.pop(name) for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL")
        }
        app = create_app({**environment, "CHATAPP_DATABASE_URL": environment["DATABASE_URL"]})
        yield app
