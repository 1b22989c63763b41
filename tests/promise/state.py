"""What a release leaves behind, as files: `python -m tests.promise.state` writes those of this one.

Run it for each release and commit the folder, which has the version as its name. The next release
must read it: test_state.py does so for each folder.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import redis
from flask import Flask, request

from chatapp import POLICY_FILE, PROVIDERS_FILE
from chatapp.accounts.admin_keys import AdminKeys
from chatapp.accounts.store import Accounts
from chatapp.database import migration
from chatapp.database.connection import Database
from chatapp.ledger import table
from ratelimit_ext import Limiter
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Claim, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.key import Naming, bucket_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine, Workers
from ratelimit_ext.engine.entry import Entry
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.outage import OutageEngine
from ratelimit_ext.engine.outage_store import FORMAT, outage_path
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.settlements.journal import Journal
from ratelimit_ext.strategies.guards.block import new_block
from ratelimit_ext.strategies.guards.quota import quota_report
from tests import servers
from tests.chatapp.ledger.calls import begun, finished

HERE: Final = Path(__file__).parent
SECOND: Final = 1_000_000
MINUTE, DAY = 60 * SECOND, 86_400 * SECOND
#: 2027-01-15 08:00:00 UTC
START: Final = 1_800_000_000 * SECOND
LEASE: Final = 120 * SECOND
STORAGE: Final = "redis://limits.example:6379/0"
OUTAGE: Final = Limit(10, DAY, name="outage", on_failure="local")
#: How many calls of OUTAGE were admitted while the storage was down.
DURING: Final = 4

LIMITS: Final = {
    "token-bucket": Limit(30, MINUTE, "token-bucket", burst=10, name="pace"),
    "tokens": Limit(6000, MINUTE, "token-bucket", unit="tokens", name="tokens"),
    "line": Limit(30, MINUTE, "token-bucket", burst=2, name="line", wait=10 * SECOND),
    "sliding-window": Limit(10, MINUTE, "sliding-window", name="sliding"),
    "counter": Limit(10, MINUTE, "sliding-window-counter", name="counter"),
    "fixed-window": Limit(10, MINUTE, name="fixed"),
    "unnamed": Limit(10, MINUTE, "token-bucket", burst=12),
    "keep": Limit(100, MINUTE, name="keep", keep=(("interactive", 40), ("batch", 0))),
    "session": Limit(10, 30 * MINUTE, "session", name="session"),
    "budget": Limit(
        *(5_000_000, 30 * DAY, "fixed-window"), unit="usd", anchor="month", name="budget"
    ),
    "team": Limit(100, DAY, name="team", fair=True, anchor="day", timezone="Europe/Berlin"),
    "slots": Limit(60, SECOND, "concurrency", unit="calls", name="slots"),
    "fair-slots": Limit(4, SECOND, "concurrency", unit="calls", name="fair", fair=True),
    "shadow": Limit(5, MINUTE, name="fixed", mode="shadow"),
    "block": Limit(1, SECOND, "block", name="switch"),
    "quota": Limit(1, SECOND, "reported", name="quota"),
    "surge": Limit(200, MINUTE, "surge", unit="usd", multiple=3, name="surge"),
}
#: When each is asked, in seconds after START, and for which costs.
ASKED: Final = tuple((s, cost) for s in (2, 11, 71, 200, 700, 90_000) for cost in (0, 1, 5, 2500))


class Past:
    """The calls that each release begins with, on an engine at instants after START."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def charges(self, name: str, cost: int = 1, **more: Any) -> list[Charge]:
        """Those of a call, with the keys that the extension gives to the buckets."""
        limit, naming = LIMITS[name], Naming("LIMITS", "", "fixed-window")
        key = bucket_key(naming.prefix(limit, f"state/{name}"), "user:a b")
        found = [Charge(limit, key, cost, **more)]
        if limit.has_shares:
            member = naming.prefix(limit.share(), f"state/{name}")
            found.append(Charge(limit.share(), f"{member}member{key[key.rfind('{') :]}", cost))
        if limit.fair and not limit.has_shares:
            found = [Charge(limit.of_member("member"), key, cost)]
        return found

    def admit(
        self, name: str, cost: int = 1, at_s: float = 0, hold: Hold = NO_HOLD, **more: Any
    ) -> Decision:
        charges = self.charges(name, cost, **more)
        return self.engine.admit(charges, hold=hold, now_us=START + round(at_s * SECOND))

    def change(self, at_s: float, *changes: Change) -> None:
        self.engine.settle(changes, now_us=START + round(at_s * SECOND))

    def make(self) -> None:
        """Leave something in the bucket of each limit."""
        self.admit("token-bucket", 7)
        self.admit("token-bucket", 2, 1)
        first, second = Hold(1, LEASE), Hold(2, LEASE)
        tokens, renewed = self.admit("tokens", 1000, 0, first), self.admit("tokens", 400, 0, second)
        self.admit("tokens", 2000, 0, Hold(3, LEASE))
        self.change(1, Change.settle(tokens.verdicts[0], first, 1500))
        self.change(1, Change.renew(renewed.verdicts[0], second, 150))
        for number in range(4):
            self.admit("line", 1, 0.5, Hold(10 + number, MINUTE, 0))
        for name, later in (("sliding-window", 10), ("counter", 70), ("session", 10)):
            self.admit(name, 3)
            self.admit(name, 4, later)
        spent = self.admit("fixed-window", 3)
        self.admit("fixed-window", 4, 10)
        self.change(11, Change.adjust(spent.verdicts[0], -2))
        self.admit("unnamed", 5)
        self.admit("shadow", 3)
        self.admit("keep", 30)
        paid = self.admit("budget", 1_000_000, 0, first)
        self.admit("budget", 400_000, 0, second, claim=Claim(400_000, 500_000, 900_000, 2_000_000))
        self.change(1, Change.settle(paid.verdicts[0], first, 4_000_000))
        for number in range(3):
            self.admit("team", 10, number)
        slots = [self.admit("slots", 1, 0, Hold(n, LEASE)).verdicts[0] for n in range(1, 51)]
        self.change(0, Change.settle(slots[6], Hold(7, LEASE), 0))
        for number in range(1, 4):
            self.admit("fair-slots", 1, 0, Hold(number, LEASE))
        for number in range(4):
            hold = Hold(20 + number, LEASE)
            surge = self.admit("surge", 10, 120 * number, hold).verdicts[0]
            self.change(120 * number, Change.settle(surge, hold, 10))
        [block], [quota] = self.charges("block"), self.charges("quota")
        self.change(0, new_block(block, 600 * SECOND, "closed"))
        self.change(0, quota_report(quota, 1000, 900, MINUTE))
        self.admit("quota", 50, 1)

    def answers(self, name: str) -> list[list[object]]:
        """Whether each cost that is asked fits, what remains, and the wait, of each bucket."""
        return [
            [
                fact
                for each in self.engine.admit(
                    self.charges(name, cost), take=False, now_us=START + after_s * SECOND
                ).verdicts
                for fact in (each.allowed, each.remaining, each.retry_after_us)
            ]
            for after_s, cost in ASKED
        ]


# -- files ---------------------------------------------------------------------------------------


def dump(client: redis.Redis) -> dict[str, Any]:
    """All that is stored, by key: its kind, its value, and for how long it lives."""
    found: dict[str, Any] = {}
    for key in sorted(client.keys()):
        kind, value = client.type(key).decode(), None
        match kind:
            case "string":
                value = client.get(key).hex()
            case "zset":
                pairs = client.zrange(key, 0, -1, withscores=True)
                value = [[member.hex(), score] for member, score in pairs]
            case "hash":
                value = [[a.hex(), b.hex()] for a, b in sorted(client.hgetall(key).items())]
            case "list":
                value = [each.hex() for each in client.lrange(key, 0, -1)]
            case _:
                raise ValueError(f"{key}: {kind}")
        found[key.decode()] = {"kind": kind, "value": value, "lives_ms": client.pttl(key)}
    return found


def load(client: redis.Redis, stored: Mapping[str, Any]) -> None:
    """Store what `dump` returned."""
    for key, each in stored.items():
        value = each["value"]
        match each["kind"]:
            case "string":
                client.set(key, bytes.fromhex(value))
            case "zset":
                client.zadd(key, {bytes.fromhex(member): score for member, score in value})
            case "hash":
                pairs = [(bytes.fromhex(name), bytes.fromhex(data)) for name, data in value]
                client.hset(key, mapping=dict(pairs))
            case "list":
                client.rpush(key, *map(bytes.fromhex, value))
        if each["lives_ms"] > 0:
            client.pexpire(key, each["lives_ms"])


def application(uri: str) -> tuple[Flask, Limiter]:
    """One with an override, a blocked caller and a list of changes."""
    app = Flask("promise")
    limiter = Limiter(lambda: request.headers["X-Key"], app=app, storage_uri=uri)

    @app.get("/")
    @limiter.limit("2/hour", name="calls")
    @limiter.limit("unless blocked", name="switch")
    def view() -> str:
        return "ok"

    return app, limiter


def storage_of(uri: str, client: redis.Redis) -> dict[str, Any]:
    """What the strategies leave, and what operators have changed."""
    past = Past(RedisEngine(client, redis.RedisError))
    past.make()
    app, limiter = application(uri)
    with app.app_context():
        limiter.operators.override("calls", "ann", "3/hour", reason="a trade fair", by="olga")
        limiter.operators.block("switch", "eve")
    return {"stored": dump(client), "answers": {name: past.answers(name) for name in LIMITS}}


def sql(file: Path) -> str:
    with closing(sqlite3.connect(file)) as connection:
        return "".join(f"{line}\n" for line in connection.iterdump())


def database(file: Path) -> dict[str, str]:
    """Accounts and calls; returns the keys of a user and of an operator."""
    made = Database(f"sqlite:///{file}")
    migration.upgrade(made)
    accounts = Accounts(made)
    accounts.create_team("research", limits={"team-usd-month": "100 usd/month"})
    key = accounts.create_key(
        *("alice",),
        plan="pro",
        default_plan="starter",
        team="research",
        limits={"key-usd-day": "2 usd/day"},
        models=["gpt-*"],
    )
    operator = AdminKeys(made).create("hr", scopes=("read",), team=None, expires_at=None)
    calls = [finished(begun(team="research", tags={"project": "a"})), begun(user="user:bob")]
    table.write(made, calls)
    made.close()
    return {"alice": key.text, "hr": operator.text}


@contextmanager
def outage(file: Path, storage: Engine) -> Iterator[OutageEngine]:
    """A worker that decides without the storage, with this file."""
    worker = OutageEngine(storage, lambda _: "local", Workers(1, 1))
    worker.is_deciding = True
    worker.share(file)
    yield worker
    worker.forget()


def during_outage(file: Path) -> int:
    """Decide some calls; returns the time of the storage."""
    with outage(file, MemoryEngine()) as worker:
        for _ in range(DURING):
            assert worker.admit([Charge(OUTAGE, "outage:{ada}")]).admitted
        return worker._store.run(worker._store.now_us)


def journal(directory: Path) -> list[str]:
    """A settlement that waits, and a call in flight; returns the lines of the file."""
    past = Past(MemoryEngine())
    spent = past.admit("fixed-window", 3).verdicts[0]
    written = Journal(directory, STORAGE)
    until = (START + DAY) / SECOND
    written.append(Entry([Change.adjust(spent, -2)], "LIMITS:once:{user:a b}", LEASE, until))
    written.begin(Hold(1, LEASE), past.charges("slots"))
    [file] = directory.iterdir()
    lines = [cell.rstrip(b"\0w") for cell in cells(file.read_bytes())]
    written.forget()
    return [line.decode() for line in lines]


def cells(data: bytes) -> list[bytes]:
    return [data[at : at + 4096] for at in range(0, len(data), 4096)]


def record(folder: Path) -> None:
    """Write the state of this release."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, servers.standalone() as server:
        work = Path(temporary)
        with server.client() as client:
            facts = storage_of(server.uri, client)
        facts["keys"] = database(work / "chatapp.db")
        outage_file = outage_path(work, STORAGE)
        facts["outage"] = {"format": FORMAT, "now_us": during_outage(outage_file)}
        facts["journal"] = journal(work / "journal")
        (folder / "state.json").write_text(json.dumps(facts) + "\n")
        (folder / "chatapp.sql").write_text(sql(work / "chatapp.db"))
        (folder / "outage.sql").write_text(sql(outage_file))
    for file in (POLICY_FILE, PROVIDERS_FILE):
        (folder / file.name).write_text(file.read_text())


if __name__ == "__main__":
    record(HERE / sys.argv[1])
