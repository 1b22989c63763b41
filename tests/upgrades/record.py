"""The stored state of a revision, as a file: `python -m tests.upgrades.record REVISION`.

Run it for each release, with that as REVISION below, and commit the file: the next version must
read it. It needs the history of git, so the tests read the file instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import redis

from tests import servers

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).parent
#: The recorded revision.
REVISION: Final = "81a8acf"
RECORDED: Final = HERE / f"state_{REVISION}.json"
SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
LEASE: Final = 120 * SECOND
#: 2025-11-24 16:00:00 UTC
START: Final = 1_764_000_000 * SECOND

LIMITS: Final[dict[str, dict[str, Any]]] = {
    "token-bucket": {"amount": 30, "period_us": MINUTE, "strategy": "token-bucket", "burst": 10},
    "tokens": {"amount": 6000, "period_us": MINUTE, "strategy": "token-bucket", "unit": "tokens"},
    "sliding-window": {"amount": 10, "period_us": MINUTE, "strategy": "sliding-window"},
    "counter": {"amount": 10, "period_us": MINUTE, "strategy": "sliding-window-counter"},
    "fixed-window": {"amount": 10, "period_us": MINUTE, "strategy": "fixed-window"},
    "budget": {
        "amount": 5_000_000,
        "period_us": 30 * 86_400 * SECOND,
        "strategy": "fixed-window",
        "anchor": "month",
        "unit": "usd",
    },
    "slots": {"amount": 60, "period_us": SECOND, "strategy": "concurrency", "unit": "calls"},
    "block": {"amount": 1, "period_us": SECOND, "strategy": "block"},
    "quota": {"amount": 1, "period_us": SECOND, "strategy": "reported"},
    "surge": {
        "amount": 200,
        "period_us": MINUTE,
        "strategy": "surge",
        "unit": "usd",
        "multiple": 3,
    },
}


def _admit(cost: int = 1, after: int = 0, hold: int | None = None) -> dict[str, Any]:
    lease = None if hold is None else [hold, LEASE]
    return {"do": "admit", "cost": cost, "now_us": START + after, "hold": lease}


def _change(verb: str, *numbers: object, cost: int = 1, after: int = 0) -> dict[str, Any]:
    words = {"do": "change", "cost": cost, "now_us": START + after}
    return {**words, "verb": verb, "numbers": list(numbers)}


#: What made the state of each limit.
PAST: Final[dict[str, list[dict[str, Any]]]] = {
    "token-bucket": [_admit(7), _admit(2, SECOND)],
    "tokens": [
        _admit(1000, hold=1),
        _admit(400, hold=2),
        _admit(2000, hold=3),
        _change("settle", 1, LEASE, 1500, cost=1000, after=SECOND),
        _change("renew", 2, LEASE, 150, cost=400, after=SECOND),
    ],
    "sliding-window": [_admit(3), _admit(4, 10 * SECOND)],
    "counter": [_admit(6), _admit(3, 70 * SECOND)],
    "fixed-window": [_admit(3), _admit(4, 10 * SECOND), _change("adjust", START + MINUTE, -2)],
    "budget": [
        _admit(1_000_000, hold=1),
        _admit(400_000, hold=2),
        _change("settle", 1, LEASE, 4_000_000, cost=1_000_000, after=SECOND),
    ],
    "slots": [*(_admit(hold=each) for each in range(1, 51)), _change("settle", 7, LEASE, 0)],
    "block": [_change("block", 600 * SECOND, "closed")],
    "quota": [_change("report", 1000, 900, MINUTE), _admit(50, SECOND)],
    "surge": [
        *(_admit(10, minute * 2 * MINUTE, hold=minute + 1) for minute in range(4)),
        *(_change("settle", n + 1, LEASE, 10, cost=10, after=n * 2 * MINUTE) for n in range(4)),
    ],
}
#: When each is asked, in microseconds after START, and for which costs.
ASKED: Final = tuple((s * SECOND, cost) for s in (11, 71, 200, 500, 700) for cost in (1, 5, 2500))


class Version:
    """A worker of the tree."""

    def __init__(self, tree: Path, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), url],
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, **words: Any) -> Any:
        """The answer to an operation on the bucket of the limit of this name."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(
            json.dumps({"key": f"{{{name}}}", "limit": LIMITS[name], **words}) + "\n"
        )
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def answers(self, name: str) -> list[list[object]]:
        """Whether each cost that is asked fits, what remains, and the wait."""
        return [
            self.run(name, do="admit", take=False, cost=cost, now_us=START + after)[:3]
            for after, cost in ASKED
        ]

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def versions(url: str, *trees: Path) -> Iterator[list[Version]]:
    """A worker of each tree, beside each other."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Version(tree, url))) for tree in trees]


def tree_of(revision: str, directory: Path) -> Path:
    """The files of a revision."""
    words = ["git", "archive", "--output", str(directory / "tree.tar"), revision]
    subprocess.run(words, cwd=ROOT, check=True)
    shutil.unpack_archive(directory / "tree.tar", directory, filter="data")
    return directory


def dump(client: redis.Redis) -> dict[str, dict[str, Any]]:
    """All that is stored: strings, and sorted sets with their scores."""
    stored: dict[str, dict[str, Any]] = {}
    for key in sorted(client.keys()):
        value: Any
        if client.type(key) == b"zset":
            value = [
                [member.hex(), score]
                for member, score in client.zrange(key, 0, -1, withscores=True)
            ]
        else:
            value = client.get(key).hex()
        stored[key.decode()] = {"value": value, "lives_ms": client.pttl(key)}
    return stored


def load(client: redis.Redis, stored: dict[str, dict[str, Any]]) -> None:
    """Store what `dump` returned."""
    for key, each in stored.items():
        if isinstance(each["value"], list):
            client.zadd(key, {bytes.fromhex(member): score for member, score in each["value"]})
        else:
            client.set(key, bytes.fromhex(each["value"]))
        client.pexpire(key, each["lives_ms"])


DATABASE: Final = """
import sys
from datetime import UTC, datetime
from chatapp.accounts.store import Accounts
from chatapp.database import migration
from chatapp.database.connection import Database
from chatapp.ledger import table
from tests.chatapp.ledger.calls import begun, finished
database = Database(sys.argv[1])
migration.upgrade(database)
accounts = Accounts(database)
accounts.create_team("research", limits={"team-usd-month": "100 usd/month"})
key = accounts.create_key("alice", plan="pro", default_plan="starter", team="research",
                          limits={"key-usd-day": "2 usd/day"}, models=["gpt-*"])
table.write(database, [finished(begun(team="research", tags={"project": "a"})), begun(user="bob")])
database.close()
print(key.text)
"""


def record(revision: str) -> None:
    """Write the state that the revision leaves, and what it answers itself."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.standalone())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "tree").mkdir()
        tree = tree_of(revision, directory / "tree")
        (version,) = stack.enter_context(versions(server.uri, tree))
        for name, operations in PAST.items():
            for each in operations:
                version.run(name, **each)
        client = stack.enter_context(server.client())
        stored = dump(client)
        answers = {name: version.answers(name) for name in PAST}
        made = subprocess.run(
            [sys.executable, "-c", DATABASE, f"sqlite:///{directory / 'chatapp.db'}"],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
            check=True,
            capture_output=True,
            text=True,
        )
        with contextlib.closing(sqlite3.connect(directory / "chatapp.db")) as connection:
            database = list(connection.iterdump())
        facts = {
            "revision": revision,
            "stored": stored,
            "answers": answers,
            "database": database,
            "key": made.stdout.strip(),
        }
        file = HERE / f"state_{revision}.json"
        file.write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
