"""A loop and those who share a budget with it, on a real server."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, takewhile

import pytest
from flask import Flask, request

from ratelimit_ext import Limiter
from tests.servers import Server

PEOPLE = [f"person {number}" for number in range(24)]
AMOUNT, LASTS_S = 300, 6.0
SHARE = AMOUNT // 25
#: Of the loop, which asks for twice the budget.
PAUSE_S = 0.01


@dataclass(frozen=True)
class Call:
    """What a request became, and when, by the monotonic clock."""

    name: str
    began: float
    ended: float
    is_admitted: bool


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


def run(app: Flask, callers: Iterable[tuple[str, Iterable[float]]]) -> list[Call]:
    """The calls of these callers, each at its times after the beginning, in the order in which they
    ended. A call that is late, as the machine was busy, is made all the same."""
    calls, begin = list[Call](), time.monotonic()

    def caller(name: str, times: Iterable[float]) -> None:
        client = app.test_client()
        for at_s in times:
            time.sleep(max(0.0, begin + at_s - time.monotonic()))
            began = time.monotonic()
            if began > begin + LASTS_S + 1:  # the window began a little later
                return
            status = client.get("/", headers={"X-User": name}).status_code
            calls.append(Call(name, began, time.monotonic(), status == 200))

    threads = [threading.Thread(target=caller, args=each) for each in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls


def in_window(calls: list[Call]) -> list[Call]:
    """Those that surely were in the first window, which began with the first call."""
    until = min(call.began for call in calls) + LASTS_S
    return [call for call in calls if call.ended < until]


def every(pause_s: float) -> Iterable[float]:
    return takewhile(lambda at_s: at_s < LASTS_S + 1, (n * pause_s for n in count()))


@pytest.mark.parametrize("fair", [True, False])
def test_a_team_and_a_loop(redis_server: Server, fair: bool) -> None:
    """Each of 24 people gets what they ask for, up to their share, and nothing stays unused;
    without shares the loop takes what they need."""
    app, admitted = fair_app(redis_server.uri, AMOUNT, f"team-{fair}", fair=fair)
    chance, times = random.Random(26), dict[str, list[float]]()
    for name in PEOPLE:
        number = chance.randrange(SHARE // 2, SHARE + 1)
        times[name] = sorted(chance.uniform(0.05, 0.9 * LASTS_S) for _ in range(number))
    calls = run(app, [("loop", every(PAUSE_S)), *times.items()])
    got = Counter(admitted)
    asked = Counter(call.name for call in in_window(calls))
    least = min(got[name] / asked[name] for name in PEOPLE)
    # Where the loop is refused, all is used that anyone may spend by then.
    refused = [each for each in in_window(calls) if each.name == "loop" and not each.is_admitted]
    passed_s = refused[-1].began - calls[0].ended
    print(f"fair={fair}: least {least:.2f}, unused {AMOUNT - got.total()}, loop {got['loop']}")  # noqa: T201
    assert got.total() <= AMOUNT
    assert (least >= 0.95) == fair
    assert got.total() >= 0.99 * AMOUNT * passed_s / LASTS_S - 1


@pytest.mark.parametrize("fair", [True, False])
def test_ten_users_of_whom_one_has_fifty_threads(redis_server: Server, fair: bool) -> None:
    """Jain's index of what each of them got of a tenth, or of what they asked for if that is less;
    of what all others left, if that is more."""
    app, admitted = fair_app(redis_server.uri, 200, f"ten-{fair}", fair=fair)
    users = [f"user {number}" for number in range(9)]
    greedy = [("greedy", every(0.8)) for _ in range(50)]
    calls = run(app, [*((name, every(0.2)) for name in users), *greedy])
    got = Counter(admitted)
    asked = Counter(call.name for call in in_window(calls))
    parts = [got[name] / min(asked[name], 20) for name in users]
    parts.append(got["greedy"] / max(20, 200 - sum(asked[name] for name in users)))
    index = sum(parts) ** 2 / (10 * sum(part**2 for part in parts))
    print(f"fair={fair}: Jain's index {index:.3f}, {sorted(got.values())}")  # noqa: T201
    assert (index >= 0.95) == fair
