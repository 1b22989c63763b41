"""examples/chat.py under gunicorn with two workers and a storage: each sentence of what a chat
service was to have."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests import servers
from tests.gunicorn_master import ROOT, Answer, Master, served


@pytest.fixture
def chat(
    redis_server: servers.Server, redis_client: redis.Redis, tmp_path: Any
) -> Iterator[Master]:
    """The example, as its first lines say, on an empty storage."""
    port = servers.free_port()
    with served(
        ["gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", "chat:app"],
        port=port,
        log=tmp_path / "log",
        variables={"REDIS": redis_server.uri, "PYTHONPATH": str(ROOT)},
        directory=ROOT / "examples",
    ) as master:
        yield master


def times(chat: Master, count: int, path: str, body: object = None, **headers: str) -> list[Answer]:
    """So many requests at once, which both workers share."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(chat.request, path, body, headers=sent) for _ in range(count)]
    return [each.result() for each in calls]


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(each.status for each in answers)


def left(answers: list[Answer], name: str) -> int:
    """The least that was left of a limit."""
    shown = [re.search(rf'"{name}";r=(\d+)', each.headers["ratelimit"]) for each in answers]
    return min(int(found[1]) for found in shown if found)


def test_a_chat_service_has_three_layers_and_three_strategies(
    chat: Master, redis_client: redis.Redis
) -> None:
    """By address, by user or API key, and by plan; from decorators on routes and from the file by
    blueprint; exact over both workers; a clear 429 with an exact wait."""
    assert len(chat.workers()) == 2
    first, began_s = chat.request("/models/", headers={"X-User": "first"}), time.monotonic()
    at_first = left([first], "ip")

    # Layer 2, a token bucket by blueprint: ten at once, whichever worker, then one in two seconds.
    ada = times(chat, 10, "/chat/", {}, X_User="ada")
    assert statuses(ada) == {200: 10}
    while ada[-1].status == 200:  # what came back while a slow machine asked
        ada += times(chat, 4, "/chat/", {}, X_User="ada")
    admitted = statuses(ada)[200]
    assert admitted <= 10 + (time.monotonic() - began_s) / 2
    refused = ada[-1]
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 2000
    assert int(refused.headers["retry-after"]) == math.ceil(wait_ms / 1000)
    assert refused.body["error"].startswith(
        "Rate limit 'user' exceeded: 30 per 1 minute, 10 at once. Try again in "
    )
    assert (refused.body["code"], refused.body["policy"]) == ("rate_limited", "user")
    assert refused.headers["x-ratelimit-limit"] == "10"

    # A denied call counts nowhere: only the others are gone of the plan's hundred a day.
    assert left(ada, "plan") == 100 - admitted

    # A sliding window by a decorator on one route, beside what the file says of its blueprint.
    asked_s = time.monotonic()
    summaries = times(chat, 5, "/chat/summary", {}, X_User="bo")
    assert statuses(summaries) == {200: 3, 429: 2}
    assert (left(summaries, "summary"), left(summaries, "plan")) == (0, 97)
    assert 7 <= left(summaries, "user") <= 7 + (time.monotonic() - asked_s) / 2

    # A fixed window for the other blueprint, where no plan applies.
    listed = times(chat, 7, "/models/", X_User="ada")
    assert statuses(listed) == {200: 5, 429: 2}
    assert "plan" not in listed[0].headers["ratelimit"]

    # An API key is a caller of its own, with the plan of its account.
    bob = times(chat, 3, "/chat/", {}, X_API_Key="key-of-bob", X_User="ada")
    assert statuses(bob) == {200: 3}
    assert left(bob, "plan") == 1997

    # Layer 1: an address passes so many at once, and no call more, whatever its users.
    passed = sum(statuses(each)[200] for each in (ada, summaries, listed, bob))
    crowd: list[Answer] = []
    while not crowd or crowd[-1].status == 200:
        crowd += times(chat, 1, "/chat/", {}, X_User=f"user-{len(crowd)}")
    refilled = 2 * (time.monotonic() - began_s) + 1
    refused = next(each for each in crowd if each.status == 429)
    assert re.fullmatch(
        r"Too many requests from this address\. Try again in (less than )?a second\.",
        refused.body["error"],
    )
    assert at_first <= passed + statuses(crowd)[200] <= at_first + refilled


def test_the_wait_of_a_refusal_is_exact(chat: Master, redis_client: redis.Redis) -> None:
    """A caller who waits `retry-after-ms` passes; before that, the answer is still 429."""
    times(chat, 10, "/chat/", {}, X_User="eve")
    is_refused = False
    while not is_refused:
        asked_s = time.monotonic()
        [first] = times(chat, 1, "/chat/", {}, X_User="eve")
        if first.status == 200:
            continue
        wait_s = int(first.headers["retry-after-ms"]) / 1000
        is_refused = statuses(times(chat, 1, "/chat/", {}, X_User="eve")) == {429: 1}
        # A slow machine may ask when the wait is over.
        assert is_refused or time.monotonic() >= asked_s + wait_s
    time.sleep(wait_s)
    assert statuses(times(chat, 1, "/chat/", {}, X_User="eve")) == {200: 1}


USE_UP = """
from chat import app, limiter
with app.app_context():
    type(limiter.operators.callers).plan = lambda self, identity: "starter"
    for _ in range(100):
        with limiter.charge("plan", "carol"):
            pass
"""


def run(redis_server: servers.Server, *words: str) -> str:
    """What a Python command prints, in the example's directory."""
    variables = {**os.environ, "REDIS": redis_server.uri, "PYTHONPATH": str(ROOT)}
    command, directory = [sys.executable, *words], ROOT / "examples"
    done = subprocess.run(command, cwd=directory, env=variables, check=True, capture_output=True)
    return done.stdout.decode()


def test_a_used_up_day_names_the_next_plan(chat: Master, redis_server: servers.Server) -> None:
    """After a hundred calls of a starter, made by a job that shares the storage: the plan, the next
    one, its price and its address. An SDK does not wait for that."""
    run(redis_server, "-c", USE_UP)
    refused = chat.request("/chat/", {}, headers={"X-User": "carol"})
    assert refused.status == 429
    assert refused.body["error"].startswith(
        "The Starter plan allows 100 calls a day, and they are used up. Upgrade to Pro for 2,000 "
        "calls a day, from $29 a month: https://example.com/plans. Try again in "
    )
    assert refused.headers["x-should-retry"] == "false"
    assert 86_000 < int(refused.headers["retry-after"]) <= 86_400


def test_show_and_check_name_the_places(redis_server: servers.Server) -> None:
    """`flask ratelimit show` has the file and line of each limit and decorator."""
    command = ("-m", "flask", "--app", "chat", "ratelimit")
    checked = run(redis_server, *command, "check")
    assert checked.endswith("chat.toml is valid: 5 limits; plans: starter, pro.\n")
    listed = json.loads(run(redis_server, *command, "show", "--json"))
    shown = {each["endpoint"]: each["limits"] for each in listed}
    own, *of_file = shown["chat.summarise: /chat/summary"]
    assert re.fullmatch(r"chat\.py:\d+", own["source"])
    assert all(re.match(r".*chat\.toml:\d+: ", each["source"]) for each in of_file)
    attached = {each["limit"]: each["attached"] for each in of_file}
    assert attached["user"] is None
    assert re.fullmatch(r"chat\.py:\d+", attached["plan"])
