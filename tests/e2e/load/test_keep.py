"""Two hundred threads of a batch job against five people, on one bucket of a real server."""

from __future__ import annotations

import threading
import time
from collections import Counter

from flask import Flask, request

from ratelimit_ext import Limiter
from tests.servers import Server

AMOUNT, BURST, KEEP = 6000, 100, 40  # 100 a second
BATCH, PEOPLE = 200, 5
LASTS_S = 5.0
PAUSE_S = 0.25  # of a person; together they need 20 a second
RETRY_S = 0.1  # of the job, which asks for 2,000 a second


def test_people_are_never_refused_because_of_a_job(redis_server: Server) -> None:
    """And the job gets all that is left."""
    app = Flask("example")
    limiter = Limiter(lambda: "all", app=app, storage_uri=redis_server.uri, key_prefix="keep")
    asked: Counter[tuple[str, int]] = Counter()
    admitted_at: list[float] = []

    @app.get("/")
    @limiter.limit(
        f"{AMOUNT}/minute",
        strategy="token-bucket",
        burst=BURST,
        name="model",
        keep={"interactive": KEEP},
        priority=lambda: request.headers["X-Class"],
    )
    def view() -> str:
        return "ok"

    app.test_client().get("/", headers={"X-Class": "batch"})
    begin = time.monotonic()

    def call(name: str, pause_s: float) -> None:
        client = app.test_client()
        while time.monotonic() < begin + LASTS_S:
            status = client.get("/", headers={"X-Class": name}).status_code
            asked[name, status] += 1
            if status == 200:
                admitted_at.append(time.monotonic())
            time.sleep(pause_s)

    threads = [threading.Thread(target=call, args=("interactive", PAUSE_S)) for _ in range(PEOPLE)]
    threads += [threading.Thread(target=call, args=("batch", RETRY_S)) for _ in range(BATCH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = max(admitted_at) - begin
    print(dict(asked), f"{took_s:.2f} s")  # noqa: T201
    assert asked["interactive", 429] == 0
    assert asked["interactive", 200] > PEOPLE
    rate = AMOUNT / 60 * took_s
    left = rate + BURST - KEEP - asked["interactive", 200]
    assert 0.99 * left - 1 <= asked["batch", 200] <= rate + BURST - asked["interactive", 200]
