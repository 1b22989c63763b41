"""Two hundred threads of a batch job against five people, on one bucket of a real server."""

import threading
import time
from collections import Counter

from flask import Flask, request

from ratelimit_ext import DecisionEvent, Event, Limiter
from tests.servers import Server

AMOUNT, BURST, KEEP = 6000, 100, 40  # 100 a second
BATCH, PEOPLE = 200, 5
LASTS_S = 5.0
PAUSE_S = 0.25  # of a person; together they need 20 a second
RETRY_S = 0.1  # of the job, which asks for 2,000 a second
ROUNDED = 0.01  # of a call


def test_people_are_never_refused_because_of_a_job(redis_server: Server) -> None:
    """And the job gets all that is left: it is only refused if that is not enough, by the times of
    the server's decisions, however slow the machine is."""
    app = Flask("example")
    limiter = Limiter(lambda: "all", app=app, storage_uri=redis_server.uri, key_prefix="keep")
    asked: Counter[tuple[str, int]] = Counter()
    decided: list[tuple[int, str, bool]] = []

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

    @limiter.listen
    def note(event: Event) -> None:
        if isinstance(event, DecisionEvent) and not event.cached:
            decided.append((event.decision.now_us, request.headers["X-Class"], event.admitted))

    app.test_client().get("/", headers={"X-Class": "batch"})
    begin = time.monotonic()

    def call(name: str, pause_s: float) -> None:
        client = app.test_client()
        while time.monotonic() < begin + LASTS_S:
            asked[name, client.get("/", headers={"X-Class": name}).status_code] += 1
            time.sleep(pause_s)

    threads = [threading.Thread(target=call, args=("interactive", PAUSE_S)) for _ in range(PEOPLE)]
    threads += [threading.Thread(target=call, args=("batch", RETRY_S)) for _ in range(BATCH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked["interactive", 429] == 0
    assert asked["interactive", 200] > PEOPLE
    assert asked["batch", 429] > 0
    decided.sort()
    level, at_us, refused = float(BURST), decided[0][0], 0
    for now_us, name, is_admitted in decided:
        level = min(BURST, level + (now_us - at_us) / 1_000_000 * AMOUNT / 60)
        at_us = now_us
        if is_admitted:
            level -= 1
            assert level > (KEEP if name == "batch" else 0) - ROUNDED
        else:
            assert level < KEEP + 1 + ROUNDED
            refused += 1
    assert refused > 0
