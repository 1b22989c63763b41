"""Upgrades: the state of the recorded revision is read, and its workers run beside those of today.

What each release changes is on docs/operate/upgrades.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers import Server
from tests.upgrades.record import (
    LEASE,
    LIMITS,
    MINUTE,
    PAST,
    RECORDED,
    REVISION,
    ROOT,
    SECOND,
    START,
    Version,
    load,
    tree_of,
    versions,
)

STATE: dict[str, Any] = json.loads(RECORDED.read_text())
#: Of these, a worker of the recorded revision reads a new bucket of this version as a full one.
UNREAD = ("token-bucket", "tokens")
#: What one call costs, and how many fit.
CALLS = {
    "token-bucket": (1, 10),
    "tokens": (600, 10),
    "sliding-window": (1, 10),
    "counter": (1, 10),
    "fixed-window": (1, 10),
    "budget": (500_000, 10),
    "slots": (1, 60),
}


@pytest.fixture(scope="module")
def worker(redis_server: Server) -> Iterator[Version]:
    """A worker of this version."""
    with versions(redis_server.uri, ROOT) as (version,):
        yield version


@pytest.fixture
def present(worker: Version, redis_client: redis.Redis) -> Version:
    """A worker of this version on an empty storage."""
    return worker


@pytest.mark.parametrize("name", PAST)
def test_the_recorded_state_is_read(redis_client: redis.Redis, present: Version, name: str) -> None:
    """For half a minute to many, each cost gets the answer that the recorded revision gives it."""
    load(redis_client, STATE["stored"])
    assert present.answers(name) == STATE["answers"][name]


@pytest.mark.parametrize("name", PAST)
def test_the_recorded_state_is_carried_on(
    redis_client: redis.Redis, present: Version, name: str
) -> None:
    """The storage then has what it has if this version had made all of it."""
    for each in PAST[name]:
        present.run(name, **each)
    latest = max(each["now_us"] for each in PAST[name])
    expected = present.answers(name)
    redis_client.flushall()
    load(redis_client, STATE["stored"])
    present.run(name, do="admit", take=True, cost=0, now_us=latest)
    assert present.answers(name) == expected


def has_history() -> bool:
    """Whether git has the recorded revision: a shallow clone, or an archive, does not."""
    words = ["git", "cat-file", "-e", f"{REVISION}^{{commit}}"]
    found = shutil.which("git") and subprocess.run(
        words, cwd=ROOT, capture_output=True, check=False
    )
    return bool(found) and found.returncode == 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the recorded revision."""
    if not has_history():
        pytest.skip(f"git has no {REVISION} here: run `git fetch --unshallow`")
    return tree_of(REVISION, tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def former(recorded: Path, redis_server: Server) -> Iterator[Version]:
    """A worker of the recorded revision."""
    with versions(redis_server.uri, recorded) as (version,):
        yield version


@pytest.fixture
def both(former: Version, present: Version) -> list[Version]:
    """A worker of the recorded revision and one of this version, on one empty storage."""
    return [former, present]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("swapped", [False, True])
def test_both_versions_admit_the_amount_together(
    both: list[Version], name: str, swapped: bool
) -> None:
    """Not one call more or less. But a new token bucket that this version has begun is a full one
    to the recorded revision, once: then this version keeps to the format of the other."""
    cost, fitting = CALLS[name]
    admitted = 0
    for number, worker in zip(
        range(4 * fitting), cycle(reversed(both) if swapped else both), strict=False
    ):
        hold = [number + 1, LEASE] if "unit" in LIMITS[name] else None
        allowed, *_ = worker.run(name, do="admit", cost=cost, now_us=START, hold=hold)
        admitted += allowed
    assert admitted == fitting + (name in UNREAD and swapped)


@pytest.mark.parametrize("name", UNREAD)
def test_a_bucket_is_read_by_both_until_it_is_unused(both: list[Version], name: str) -> None:
    """Then this version stores its pace, too, which the other cannot read."""
    former, present = both
    first, each, capacity = {"tokens": (3000, 100, 6000), "token-bucket": (5, 1, 10)}[name]

    def left(worker: Version, cost: int, seconds: int) -> int:
        hold = [1 + seconds, LEASE] if cost and name == "tokens" else None
        now_us = START + seconds * SECOND
        answer = worker.run(name, do="admit", cost=cost, now_us=now_us, hold=hold)
        return int(answer[1])

    left(former, first, 0)
    for seconds in range(1, 9):
        assert left(present, each, seconds) == left(former, 0, seconds) < capacity
    left(present, each, 1200)
    assert left(former, 0, 1200) == capacity


@pytest.mark.parametrize("name", ["budget", "slots"])
@pytest.mark.parametrize("swapped", [False, True])
def test_one_version_settles_what_the_other_admitted(
    both: list[Version], name: str, swapped: bool
) -> None:
    """A call of 3 dollars that cost 1, and one whose worker died: that is refunded after its
    lease."""
    first, second = reversed(both) if swapped else both
    cost, actual = {"budget": (3_000_000, 1_000_000), "slots": (1, 0)}[name]
    amount = LIMITS[name]["amount"]
    first.run(name, do="admit", cost=cost, now_us=START, hold=[1, LEASE])
    words = {"cost": cost, "verb": "settle", "numbers": [1, LEASE, actual]}
    assert second.run(name, do="change", now_us=START + SECOND, **words) == 1
    assert first.run(name, do="change", now_us=START + SECOND, **words) == 0
    first.run(name, do="admit", cost=cost, now_us=START + SECOND, hold=[2, LEASE])
    look = {"do": "admit", "take": False, "cost": 0}
    assert second.run(name, **look, now_us=START + MINUTE)[1] == amount - actual - cost
    assert second.run(name, **look, now_us=START + 2 * LEASE)[1] == amount - actual


@pytest.mark.parametrize("swapped", [False, True])
def test_a_block_of_one_version_holds_in_the_other(both: list[Version], swapped: bool) -> None:
    """A key that is revoked during an upgrade is refused by all workers."""
    first, second = reversed(both) if swapped else both
    words = {"verb": "block", "numbers": [MINUTE, "blocked"]}
    assert first.run("block", do="change", now_us=START, **words) == 1
    for worker in (first, second):
        allowed, _, wait_ms, _ = worker.run("block", do="admit", now_us=START + SECOND)
        assert (allowed, wait_ms) == (False, 59_000)


@pytest.mark.parametrize("name", ["tokens", "token-bucket"])
def test_both_versions_change_a_bucket_without_an_error(both: list[Version], name: str) -> None:
    """Each reads, charges and settles what the other has left; nothing fails, and this version
    denies within a period at most."""
    hold = [1, LEASE] if name == "tokens" else None
    for worker in (*both, *both):
        worker.run(name, do="admit", cost=7, now_us=START, hold=hold)
        verb, numbers = ("settle", [1, LEASE, 9]) if hold else ("adjust", [0, 2])
        worker.run(name, do="change", cost=7, verb=verb, numbers=numbers, now_us=START)
    for worker in both:
        assert worker.run(name, do="admit", cost=1, now_us=START + MINUTE)[0]
