"""Two hundred threads of a batch job against five people, on one bucket of a real server."""

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
    admitted: list[tuple[float, str]] = []

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
                admitted.append((time.monotonic(), name))
            time.sleep(pause_s)

    threads = [threading.Thread(target=call, args=("interactive", PAUSE_S)) for _ in range(PEOPLE)]
    threads += [threading.Thread(target=call, args=("batch", RETRY_S)) for _ in range(BATCH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked["interactive", 429] == 0
    assert asked["interactive", 200] > PEOPLE
    # While no thread asks, as at the start or when the machine pauses, the bucket may be full:
    # what it would have gained then was there for no one.
    level, at, spilled, people = float(BURST), begin, 0.0, 0
    last = max(at for at, name in admitted if name == "batch")
    for now, name in sorted(each for each in admitted if each[0] <= last):
        level += (now - at) * AMOUNT / 60
        spilled += max(0.0, level - BURST)
        level, at = min(level, BURST) - 1, now
        people += name == "interactive"
    most = (last - begin) * AMOUNT / 60 + BURST - people
    print(dict(asked), f"{last - begin:.2f} s, {spilled:.1f} spilled")  # noqa: T201
    assert 0.99 * (most - KEEP - spilled) - 1 <= asked["batch", 200] <= most
