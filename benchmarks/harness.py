"""What every benchmark shares: scale, session, alternating rounds, the form of a result."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import redis

from benchmarks.servers import ROOT

T = TypeVar("T")
Relation = Literal["at most", "at least", "exactly"]
Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Scale:
    """How much work a run does."""

    name: str
    rounds: int
    seconds: float  # of load per contender and round
    calls: int  # per contender and round, where calls are counted
    users: int
    keys: tuple[int, ...]
    live: int  # calls in a sliding window
    in_flight: int
    connections: tuple[int, int, int]  # one, some, and enough for any gateway
    gateway_s: float  # no further round begins that would end later
    streams: tuple[int, ...]
    stream_s: float  # how long one lasts


FULL = Scale(
    name="full",
    rounds=15,
    seconds=2,
    calls=400,
    users=50_000,
    keys=(100, 1_000, 10_000, 100_000, 1_000_000),
    live=20_000,
    in_flight=1_000,
    connections=(1, 16, 400),
    gateway_s=600,
    streams=(50, 250, 500, 1_000, 2_000),
    stream_s=10,
)
QUICK = replace(
    FULL,
    name="quick",
    rounds=5,
    seconds=1,
    calls=200,
    users=12_500,  # a power of two less than in full: hash tables are as full
    keys=(100, 1_000, 10_000, 100_000),
    gateway_s=40,
    streams=(50, 250),
)
# Shows only that the programs work.
TINY = Scale(
    name="tiny",
    rounds=1,
    seconds=0.1,
    calls=5,
    users=20,
    keys=(10, 100),
    live=600,
    in_flight=20,
    connections=(1, 4, 8),
    gateway_s=0,
    streams=(4,),
    stream_s=0.5,
)
SCALES = {scale.name: scale for scale in (FULL, QUICK, TINY)}


@dataclass
class Session:
    """One benchmark's run, with a storage server of its own."""

    scale: Scale
    uri: str  # as `limits` takes it
    client: redis.Redis
    folder: Path
    gateways: dict[str, str] = field(default_factory=dict)  # commands of others, by name
    skipped: list[str] = field(default_factory=list)
    load: float = field(default_factory=lambda: os.getloadavg()[0])  # when it began

    @property
    def server(self) -> tuple[str, str]:
        """The storage server's product and version."""
        info = self.client.info("server")
        if "valkey_version" in info:
            return "valkey", info["valkey_version"]
        return "redis", info["redis_version"]


# -- results ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure that the project promises, and what was measured."""

    what: str
    value: float
    relation: Relation
    target: float
    unit: str = ""
    median: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the best round is as promised, and the median: one round may be a mistake."""
        measured = [self.value] if self.median is None else [self.value, self.median]
        if any(map(math.isnan, measured)):
            return False
        if self.relation == "exactly":
            return all(each == self.target for each in measured)
        if self.relation == "at most":
            return max(measured) <= self.target
        return min(measured) >= self.target


@dataclass(frozen=True)
class Plot:
    """Bars by name, or with `x` lines by series and place on the logarithmic x axis."""

    title: str
    unit: str
    bars: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, float]] = field(default_factory=dict)
    x: str = ""


@dataclass(frozen=True)
class Result:
    """What a benchmark found. Each row is a mapping from the columns' titles."""

    title: str
    notes: str
    rows: list[Row]
    figures: list[Figure]
    plot: Plot
    rounds: dict[str, dict[str, list[float]]] = field(default_factory=dict)


# -- rounds ----------------------------------------------------------------------------------------


def alternate(
    contenders: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    within_s: float = math.inf,
    warm_up: Collection[str] | None = None,
) -> dict[str, list[T]]:
    """One measurement of each contender per round, after one that does not count of those in
    `warm_up`, or of all.

    The speed of a machine changes within seconds; contenders of one round share it. After the
    first round, none begins that would end later than `within_s` if it takes as long as the last.
    """
    results: dict[str, list[T]] = {name: [] for name in contenders}
    begin = time.monotonic()
    for name in contenders if warm_up is None else warm_up:
        contenders[name]()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            round_begin = time.monotonic()
            for name, measure in contenders.items():
                results[name].append(measure())
            now = time.monotonic()
            if now - begin + now - round_begin > within_s:
                break
    finally:
        gc.enable()
    return results


class Rounds:
    """A measurement of several contenders in several rounds.

    The best round counts, because other processes can only slow a contender down.
    """

    def __init__(self, values: dict[str, list[float]], better: Literal["lower", "higher"]) -> None:
        self.values = values
        self._best = min if better == "lower" else max

    def best(self, name: str) -> float:
        return self._best(self.values[name])

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])

    def figure(
        self,
        what: str,
        name: str,
        base: str,
        relation: Relation,
        target: float,
        *,
        over: str | None = None,
    ) -> Figure:
        """A promise on the ratio of two contenders."""
        best, median = self.ratio(name, base, over=over)
        return Figure(what, best, relation, target, "×", median)

    def ratio(self, name: str, base: str, *, over: str | None = None) -> tuple[float, float]:
        """A contender's ratio to another, of the best rounds and as the median of all rounds;
        with `over`, of what both add to a third. NaN if the other has nothing, or adds nothing."""
        lists = [self.values[each] for each in (name, base)]
        floor = self.values[over] if over else [0.0] * len(lists[0])
        best = (self.best(name), self.best(base), self.best(over) if over else 0.0)
        first, *rounds = [
            (mine - least) / (theirs - least) if theirs > least else math.nan
            for mine, theirs, least in (best, *zip(*lists, floor, strict=True))
        ]
        return first, math.nan if any(map(math.isnan, rounds)) else statistics.median(rounds)


def columns(
    found: Mapping[str, Sequence[tuple[float, ...]]], *better: Literal["lower", "higher"]
) -> list[Rounds]:
    """One Rounds for each value of a measurement."""
    return [
        Rounds({name: [each[i] for each in values] for name, values in found.items()}, direction)
        for i, direction in enumerate(better)
    ]


def document(
    name: str, result: Result, session: Session, *, pinned: bool = False
) -> dict[str, Any]:
    """A result as JSON has it."""
    product, version = session.server
    figures = [{**asdict(figure), "reached": figure.reached} for figure in result.figures]
    return {
        "benchmark": name,
        "title": f"{result.title}, all on one CPU" if pinned else result.title,
        "pinned": pinned,
        "notes": result.notes,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": session.scale.name,
        "revision": revision(),
        "server": {"product": product, "version": version},
        "machine": {**machine(), "load": round(session.load, 2)},
        "versions": versions(),
        "skipped": session.skipped,
        "figures": figures,
        "rows": result.rows,
        "rounds": result.rounds,
    }


def revision() -> str:
    """The commit, with + if the code has changed since; empty outside a checkout."""
    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", "benchmarks", "chatapp", "ratelimit_ext")
    return commit + ("+" if commit and changed.returncode else "")


def git(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def machine() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpus.read_text().splitlines() if cpus.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Python's, and those of the installed packages that take part."""
    packages = ("flask", "flask-limiter", "limits", "redis", "hiredis", "gunicorn", "openai")
    found = {"python": platform.python_version()}
    for package in (*packages, "throttled-py", "pyrate-limiter"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def stem(found: dict[str, Any]) -> str:
    """The name of a result's files. A pinned result is beside the other one."""
    pinned = ".pinned" if found.get("pinned") else ""
    return f"{found['benchmark']}{pinned}.{found['server']['product']}"


def save(folder: Path, found: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem(found)}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path
