"""One hot key: decisions a second of 4 processes with 8 threads each, and whether they are exact.

    python -m benchmarks.hot_key [--rounds N] [--seconds S]

Everybody asks for the same key of one Valkey on a Unix socket. What a decision costs at least is
the bare contender: a script of GET and INCRBY that redis-py calls. Ours are one charge of a token
bucket and one of a sliding window, decided by the engine as a request's are; peers are the
strategies of `limits`, which Flask-Limiter uses.

First everybody calls a fixed number of times, more often than the amount allows: as many must pass
as the amount says. Then there is room for every call, and contenders take turns in rounds, in
which everybody calls as often as he can. Clients and server share the machine; the last columns
tell how much processor time a decision takes of each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from limits import RateLimitItemPerDay
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from benchmarks.throughput import processor_seconds, storage
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.engine.redis import RedisEngine
from tests.engine.hot_key import limits_of

PROCESSES, THREADS = 4, 8
SCARCE, CALLS = 5_000, 200  # calls of each thread: 6,400 on 5,000
AMPLE = 10**9
BARE = "bare GET and INCRBY"
OURS = ("token-bucket", "sliding-window")
NAMES = (
    BARE,
    *(f"ours, {strategy}" for strategy in OURS),
    "limits, fixed window",
    "limits, moving window",
)

GET_AND_INCRBY = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used >= tonumber(ARGV[1]) then return 0 end
redis.call('INCRBY', KEYS[1], 1)
return 1
"""

Decide = Callable[[], bool]


def deciders(uri: str, amount: int) -> dict[str, Decide]:
    """Each contender's decision over one call on a limit of that amount."""
    kept = storage_from_string(uri)
    client = kept.get_connection()
    sha = client.script_load(GET_AND_INCRBY)
    engine = RedisEngine(client, kept.base_exceptions)
    limits = limits_of(amount)
    item = RateLimitItemPerDay(amount)

    def bare() -> bool:
        return client.evalsha(sha, 1, f"bare:{amount}", amount) == 1

    def ours(strategy: str) -> bool:
        return engine.admit([Charge(limits[strategy], f"{strategy}:{amount}")]).admitted

    found: list[Decide] = [bare, *(partial(ours, strategy) for strategy in OURS)]
    found.append(partial(FixedWindowRateLimiter(kept).hit, item, "fixed"))
    found.append(partial(MovingWindowRateLimiter(kept).hit, item, "moving"))
    return dict(zip(NAMES, found, strict=True))


# -- what each process does ------------------------------------------------------------------------


class Share(NamedTuple):
    """One process's part of a round: how many calls were admitted, in how much processor time."""

    admitted: int
    cpu_s: float


class Process:
    """What a process keeps from round to round; there is one, as its module's `_here`."""

    def __init__(self, uri: str, start: Barrier) -> None:
        self.start = start
        self.scarce, self.ample = deciders(uri, SCARCE), deciders(uri, AMPLE)
        self.threads = ThreadPoolExecutor(THREADS)

    def share(self, calls: Callable[[int], int]) -> Share:
        """What all threads were admitted, once all processes are there."""
        self.start.wait(30)
        before = time.process_time()
        admitted = sum(self.threads.map(calls, range(THREADS)))
        return Share(admitted, time.process_time() - before)


_here: Process


def begin(uri: str, start: Barrier) -> None:
    global _here  # noqa: PLW0603 - a pool's initializer has nowhere else to leave it
    _here = Process(uri, start)


def spent(name: str) -> Share:
    """Every thread calls a fixed number of times, on less than that."""
    decide = _here.scarce[name]
    return _here.share(lambda _: sum(decide() for _ in range(CALLS)))


def decided(name: str, seconds: float) -> Share:
    """Every thread calls for so long, and is always admitted."""
    decide = _here.ample[name]

    def calls(_: int) -> int:
        until, admitted = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            if not decide():
                raise RuntimeError(f"{name} denied a call that had room")
            admitted += 1
        return admitted

    return _here.share(calls)


# -- the run ---------------------------------------------------------------------------------------


class Round(NamedTuple):
    """One contender's round: decisions a second, and the processor time of one."""

    per_second: float
    client_us: float
    server_us: float


def hot(pool: Pool, server: int, name: str, seconds: float) -> Round:
    began, before = time.monotonic(), processor_seconds([server])
    shares = pool.starmap(decided, [(name, seconds)] * PROCESSES, chunksize=1)
    took, in_server = time.monotonic() - began, processor_seconds([server]) - before
    admitted, in_clients = map(sum, zip(*shares, strict=True))
    return Round(admitted / took, in_clients / admitted * 1e6, in_server / admitted * 1e6)


def passed(pool: Pool, name: str) -> int:
    return sum(share.admitted for share in pool.map(spent, [name] * PROCESSES, chunksize=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contender in a round")
    options = parser.parse_args()
    results: dict[str, list[Round]] = {name: [] for name in NAMES}
    fork = get_context("fork")
    with (
        TemporaryDirectory() as folder,
        storage(Path(folder)) as uri,
        fork.Pool(PROCESSES, begin, (uri, fork.Barrier(PROCESSES))) as pool,
    ):
        server = storage_from_string(uri).get_connection().info("server")["process_id"]
        exact = {name: passed(pool, name) for name in NAMES}
        for name in NAMES:
            hot(pool, server, name, 0.5)
        for _ in range(options.rounds):
            for name in NAMES:
                results[name].append(hot(pool, server, name, options.seconds))
    report(results, exact)


def report(results: dict[str, list[Round]], exact: dict[str, int]) -> None:
    bare = results[BARE]
    best_bare = max(each.per_second for each in bare)
    title = f"best of {len(bare)} rounds (median)"
    of = f"of {PROCESSES * THREADS * CALLS:,}"
    print(
        f"{title:26} {'decisions/s':>17} {'of bare':>14} {of + ' pass':>14}"
        f" {'client µs':>10} {'server µs':>10}"
    )
    for name, rounds in results.items():
        rates = [each.per_second for each in rounds]
        pairs = zip(rounds, bare, strict=True)
        ratio = statistics.median(each.per_second / other.per_second for each, other in pairs)
        shown = f"{max(rates):7.0f} ({statistics.median(rates):7.0f})"
        print(
            f"{name:26} {shown:>17} {max(rates) / best_bare:7.0%} ({ratio:4.0%})"
            f" {exact[name]:14,} {min(each.client_us for each in rounds):10.1f}"
            f" {min(each.server_us for each in rounds):10.1f}"
        )
    print(f"must: exactly {SCARCE:,} pass; ours >= 75 % of bare")


if __name__ == "__main__":
    main()
