"""One hot key: decisions per second of 4 processes of 8 threads, and whether the count is exact."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier

from benchmarks import peers
from benchmarks.engine import DAY_US, decider
from benchmarks.harness import Figure, Plot, Result, Rounds, Session, alternate

PROCESSES, THREADS = 4, 8
SCARCE = 0.75  # of the calls are admitted
AMPLE = 10**9
BARE = "bare GET and INCRBY"
STRATEGIES = ("token-bucket", "sliding-window")

GET_AND_INCRBY = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used >= tonumber(ARGV[1]) then return 0 end
redis.call('INCRBY', KEYS[1], 1)
return 1
"""


def bare(uri: str, amounts: Mapping[str, int]) -> peers.Hit:
    client = peers.client_of(uri)
    sha = client.script_load(GET_AND_INCRBY)
    return lambda key: client.evalsha(sha, 1, key, amounts["day"]) == 1


def ours(strategy: str, uri: str, amounts: Mapping[str, int]) -> peers.Hit:
    # A month: as good as nothing refills meanwhile.
    return decider(peers.client_of(uri), strategy, amounts["day"], period_us=30 * DAY_US)


HITS: dict[str, Callable[[str, Mapping[str, int]], peers.Hit]] = {
    BARE: bare,
    **{f"ratelimit_ext, {strategy}": partial(ours, strategy) for strategy in STRATEGIES},
    **peers.HITS,
}


# -- what each process does ------------------------------------------------------------------------


class Worker:
    """What a process keeps from round to round."""

    def __init__(self, uri: str, start: Barrier, names: list[str], scarce: int) -> None:
        self.start = start
        self.threads = ThreadPoolExecutor(THREADS)
        self.scarce = {name: HITS[name](uri, {"day": scarce}) for name in names}
        self.ample = {name: HITS[name](uri, {"day": AMPLE}) for name in names}

    def admitted(self, calls: Callable[[int], int]) -> int:
        """How many calls of all threads were admitted, once all processes are ready."""
        self.start.wait(30)
        return sum(self.threads.map(calls, range(THREADS)))


_worker: Worker


def begin(uri: str, start: Barrier, names: list[str], scarce: int) -> None:
    global _worker  # noqa: PLW0603 - the only place where a pool's initializer can leave it
    # It ends the pool. The parent's handler would wait for the main thread, which may wait too.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _worker = Worker(uri, start, names, scarce)


def count(name: str, calls: int) -> int:
    """Each thread calls a fixed number of times; not all of the calls fit."""
    hit = _worker.scarce[name]
    return _worker.admitted(lambda _: sum(hit(f"scarce {name}") for _ in range(calls)))


def decide(name: str, seconds: float) -> int:
    """Each thread calls for some seconds and is always admitted."""
    hit = _worker.ample[name]

    def calls(_: int) -> int:
        until, admitted = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            if not hit(f"ample {name}"):
                raise RuntimeError(f"{name} denied a call of a limit that is not exhausted")
            admitted += 1
        return admitted

    return _worker.admitted(calls)


# -- the run ---------------------------------------------------------------------------------------


def run(session: Session) -> Result:
    names = list(peers.installed(HITS, session))
    calls = session.scale.calls
    total = PROCESSES * THREADS * calls
    scarce = int(total * SCARCE)
    fork = get_context("fork")
    arguments = (session.uri, fork.Barrier(PROCESSES), names, scarce)
    with fork.Pool(PROCESSES, begin, arguments) as pool:
        passed = {name: in_all(pool, count, name, calls) for name in names}
        seconds = session.scale.seconds
        contenders = {name: partial(per_second, pool, name, seconds) for name in names}
        rates = Rounds(alternate(contenders, session.scale.rounds), "higher")
    figures = []
    for strategy in STRATEGIES:
        name = f"ratelimit_ext, {strategy}"
        what = f"one hot key, {strategy}"
        rate = f"{what}: decisions/s, relative to the bare script's"
        figures += [
            Figure(f"{what}: calls admitted", passed[name], "exactly", scarce),
            rates.figure(rate, name, BARE, "at least", 0.75),
        ]
    return Result(
        title="One hot key",
        notes=(
            f"{PROCESSES} processes of {THREADS} threads decide on one key as fast as they can, "
            "without the cache of denials. Clients and server share the machine."
        ),
        rows=[
            {
                "contender": name,
                "decisions/s": rates.best(name),
                "median": rates.median(name),
                "of the bare script": rates.ratio(name, BARE)[0],
                f"admitted: {total:,} calls on {scarce:,}": passed[name],
            }
            for name in names
        ],
        figures=figures,
        plot=Plot("Decisions per second", "decisions/s", {n: rates.best(n) for n in names}),
        rounds={"decisions/s": rates.values},
    )


def in_all(pool: Pool, function: Callable[..., int], *arguments: object) -> int:
    """The sum over one call in each process: each waits for the others before it begins."""
    return sum(pool.starmap(function, [arguments] * PROCESSES, chunksize=1))


def per_second(pool: Pool, name: str, seconds: float) -> float:
    began = time.monotonic()
    admitted = in_all(pool, decide, name, seconds)
    return admitted / (time.monotonic() - began)
