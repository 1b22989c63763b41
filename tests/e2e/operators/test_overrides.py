"""Commands beside a running gunicorn: they see its limits, and an override acts in every worker."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import flask, run
from tests.gunicorn_master import Master, gunicorn
from tests.servers import eventually

WORKERS = 4
HELLO = {"message": "hello", "user_id": "alice", "model": "offline"}
#: Until an override acts in every worker.
WITHIN_S = 5.0


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """Four workers on the embedded server."""
    with gunicorn(
        "wsgi:app",
        tmp_path,
        workers=WORKERS,
        RATELIMIT_DEADLINE_SECONDS="2",  # on a busy machine, a slow reply is no outage
    ) as running:
        eventually(lambda: len(running.workers()) == WORKERS)
        yield running


def command(tmp_path: Path, *words: str) -> Any:
    """What `flask ratelimit … --json` prints, in a process that finds the embedded server."""
    return json.loads(flask(tmp_path, "ratelimit", *words, "--json"))


def statuses(master: Master, calls: int, *, at_once: int = 1) -> Counter[int]:
    """The statuses of that many calls, each on a new connection: of many at once, each worker gets
    some."""
    with ThreadPoolExecutor(at_once) as pool:
        answers = pool.map(lambda _: master.request("/chat", HELLO), range(calls))
        return Counter(answer.status for answer in answers)


def test_an_override_acts_in_every_worker_within_five_seconds(
    master: Master, tmp_path: Path
) -> None:
    """Lowered, all workers deny; removed, all pass again. `near` and `inspect` show it."""
    assert statuses(master, 8) == {200: 8}
    command(tmp_path, "override", "set", "alice", "plan", "8/day", "--until", "1h")
    time.sleep(WITHIN_S)
    assert statuses(master, 24, at_once=24) == {429: 24}
    near = [state for state in command(tmp_path, "near") if state["limit"] == "plan"]
    assert [(state["identity"], state["share"]) for state in near] == [("user:alice", 1.0)]
    inspected = {state["limit"]: state for state in command(tmp_path, "inspect", "alice")}
    assert (inspected["plan"]["amount"], inspected["plan"]["remaining"]) == (8, 0)
    command(tmp_path, "override", "clear", "alice", "plan")
    time.sleep(WITHIN_S)
    assert statuses(master, 2) == {200: 2}
    assert [e["action"] for e in command(tmp_path, "log")] == ["clear-override", "override"]


def test_commands_without_the_server_say_so(tmp_path: Path) -> None:
    """Its memory is gone, and the memory of a worker cannot be seen."""
    done = run(tmp_path, "flask", "--app", "wsgi", "ratelimit", "top")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The limits are in the memory of each worker (memory://)")


def test_the_check_of_an_invalid_policy_names_its_line(tmp_path: Path) -> None:
    """Also if that policy is the configured one, and the application cannot start with it."""
    file = tmp_path / "policy.toml"
    file.write_text('version = 1\n[[default]]\nlimit = "plenty"\n')
    command = ("flask", "--app", "wsgi", "ratelimit", "check")
    done = run(tmp_path, *command, RATELIMIT_POLICY_FILE=str(file))
    assert done.returncode == 1
    assert "policy.toml:3: default[0].limit: found 'plenty'" in done.stderr
    assert "Traceback" not in done.stderr
