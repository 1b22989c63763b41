"""A loop and those who share a budget with it, on a real server."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest
from flask import Flask, request

from ratelimit_ext import Limiter
from tests.servers import Server

PEOPLE = [f"person {number}" for number in range(24)]
AMOUNT, LASTS_S = 300, 6.0
SHARE = AMOUNT // 25
#: Of the loop, which asks for twice the budget.
PAUSE_S = 0.01


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


def call(app: Flask, name: str) -> None:
    app.test_client().get("/", headers={"X-User": name})


def run(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("fair", [True, False])
def test_a_team_and_a_loop(redis_server: Server, fair: bool) -> None:
    """Each of 24 people gets what they ask for, up to their share, and nothing stays unused;
    without shares the loop takes what they need."""
    app, admitted = fair_app(redis_server.uri, AMOUNT, f"team-{fair}", fair=fair)
    chance, asked = random.Random(26), {}
    begin = time.monotonic()

    def loop() -> None:
        while time.monotonic() < begin + LASTS_S + 1:  # the window began a little later
            call(app, "loop")
            time.sleep(PAUSE_S)

    def person(times: list[float], name: str) -> None:
        for at_s in times:
            time.sleep(max(0.0, begin + at_s - time.monotonic()))
            call(app, name)

    threads = [threading.Thread(target=loop)]
    for name in PEOPLE:
        asked[name] = chance.randrange(SHARE // 2, SHARE + 1)
        times = sorted(chance.uniform(0.05, 0.9 * LASTS_S) for _ in range(asked[name]))
        threads.append(threading.Thread(target=person, args=(times, name)))
    run(*threads)
    got = Counter(admitted)
    least = min(got[name] / asked[name] for name in PEOPLE)
    print(f"fair={fair}: least {least:.2f}, unused {AMOUNT - got.total()}, loop {got['loop']}")  # noqa: T201
    assert got.total() <= AMOUNT
    assert (least >= 0.95) == fair
    assert got.total() >= 0.98 * AMOUNT


@pytest.mark.parametrize("fair", [True, False])
def test_ten_users_of_whom_one_has_fifty_threads(redis_server: Server, fair: bool) -> None:
    """Jain's index of what each of them got. All of them ask for more than a tenth."""
    app, admitted = fair_app(redis_server.uri, 200, f"ten-{fair}", fair=fair)
    users = [*(f"user {number}" for number in range(9)), *["greedy"] * 50]
    begin = time.monotonic()

    def caller(name: str) -> None:
        while time.monotonic() < begin + LASTS_S:
            call(app, name)
            time.sleep(0.8 if name == "greedy" else 0.2)

    run(*(threading.Thread(target=caller, args=(name,)) for name in reversed(users)))
    got = Counter(admitted)
    index = got.total() ** 2 / (10 * sum(units**2 for units in got.values()))
    print(f"fair={fair}: Jain's index {index:.3f}, {sorted(got.values())}")  # noqa: T201
    assert (index >= 0.95) == fair
