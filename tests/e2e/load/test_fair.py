"""A loop and those who share a budget with it, on a real server in virtual time."""

import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

import pytest
from flask import Flask, request

from ratelimit_ext import Limiter
from ratelimit_ext.engine.redis import RedisEngine
from tests.servers import Server

PEOPLE = [f"person {number}" for number in range(24)]
AMOUNT, LASTS_S = 300, 6.0
SHARE = AMOUNT // 25
#: Of the loop, which asks for twice the budget.
PAUSE_S = 0.01


@dataclass(frozen=True)
class Call:
    """What a request became, and how long after the first."""

    name: str
    at_s: float
    is_admitted: bool


class Clock:
    """What all clocks show, that of the server's scripts included: the time of the current call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began_s = time.time()
        self.now_s = self.began_s
        for name in ("time", "monotonic"):
            monkeypatch.setattr(time, name, lambda: self.now_s)
        evaluate = RedisEngine._evaluate

        def at_present(engine: Any, script: Any, keys: Any, now: Any, *words: Any) -> Any:
            assert now == ""
            return evaluate(engine, script, keys, round(self.now_s * 1e6), *words)

        monkeypatch.setattr(RedisEngine, "_evaluate", at_present)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def fair_app(uri: str, amount: int, prefix: str, *, fair: bool) -> tuple[Flask, list[str]]:
    """An application with one budget for all, and who was admitted in its first window."""
    app, admitted = Flask("example"), []
    limiter = Limiter(lambda: "team", app=app, storage_uri=uri, key_prefix=prefix)
    windows: list[int | None] = []

    @app.get("/")
    @limiter.limit(
        f"{amount} per {LASTS_S:.0f} seconds",
        strategy="fixed-window",
        name="team",
        fair=(lambda: request.headers["X-User"]) if fair else None,
    )
    def view() -> str:
        verdict = limiter.current.verdict("team")
        assert verdict is not None
        windows.append(verdict.receipt)
        if verdict.receipt == windows[0]:
            admitted.append(request.headers["X-User"])
        return "ok"

    return app, admitted


def run(app: Flask, clock: Clock, callers: Iterable[tuple[str, Iterable[float]]]) -> list[Call]:
    """The calls of these callers in the first window, each at its times after the beginning."""
    calls, client = list[Call](), app.test_client()
    for at_s, name in sorted((at_s, name) for name, times in callers for at_s in times):
        clock.now_s = clock.began_s + at_s
        status = client.get("/", headers={"X-User": name}).status_code
        calls.append(Call(name, at_s, status == 200))
    return calls


def every(pause_s: float) -> Iterable[float]:
    return takewhile(lambda at_s: at_s < LASTS_S, (n * pause_s for n in count()))


@pytest.mark.parametrize("fair", [True, False])
def test_a_team_and_a_loop(redis_server: Server, clock: Clock, fair: bool) -> None:
    """Each of 24 people gets what they ask for, up to their share, and nothing stays unused;
    without shares the loop takes what they need."""
    app, admitted = fair_app(redis_server.uri, AMOUNT, f"team-{fair}", fair=fair)
    chance, times = random.Random(26), dict[str, list[float]]()
    for name in PEOPLE:
        number = chance.randrange(SHARE // 2, SHARE + 1)
        times[name] = sorted(chance.uniform(0.05, 0.9 * LASTS_S) for _ in range(number))
    calls = run(app, clock, [("loop", every(PAUSE_S)), *times.items()])
    got = Counter(admitted)
    asked = Counter(call.name for call in calls)
    least = min(got[name] / asked[name] for name in PEOPLE)
    # Where the loop is refused, all is used that anyone may spend by then.
    passed_s = max(each.at_s for each in calls if each.name == "loop" and not each.is_admitted)
    print(f"fair={fair}: least {least:.2f}, unused {AMOUNT - got.total()}, loop {got['loop']}")  # noqa: T201
    assert got.total() <= AMOUNT
    assert (least >= 0.95) == fair
    assert got.total() >= 0.99 * AMOUNT * passed_s / LASTS_S - 1


@pytest.mark.parametrize("fair", [True, False])
def test_ten_users_of_whom_one_has_fifty_threads(
    redis_server: Server, clock: Clock, fair: bool
) -> None:
    """Jain's index of what each of them got of a tenth, or of what they asked for if that is less;
    of what all others left, if that is more."""
    app, admitted = fair_app(redis_server.uri, 200, f"ten-{fair}", fair=fair)
    users = [f"user {number}" for number in range(9)]
    greedy = [("greedy", every(0.8)) for _ in range(50)]
    calls = run(app, clock, [*((name, every(0.2)) for name in users), *greedy])
    got = Counter(admitted)
    asked = Counter(call.name for call in calls)
    parts = [got[name] / min(asked[name], 20) for name in users]
    parts.append(got["greedy"] / max(20, 200 - sum(asked[name] for name in users)))
    index = sum(parts) ** 2 / (10 * sum(part**2 for part in parts))
    print(f"fair={fair}: Jain's index {index:.3f}, {sorted(got.values())}")  # noqa: T201
    assert (index >= 0.95) == fair
