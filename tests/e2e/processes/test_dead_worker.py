"""A worker is killed in the middle of fifty streams: they cost their estimates, everywhere, and
everything is recorded."""

import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from tests.chatapp.upstream_server import Stream, UpstreamServer, Wait, openai_chunks, openai_error
from tests.e2e.command import run
from tests.gunicorn_master import Master, gunicorn
from tests.servers import eventually

pytestmark = pytest.mark.slow

STREAMS = 50
# Longer than fifty streams take to begin on a busy machine: a silent stream does not renew its
# lease. The test does not wait for its end: the server frees the holds of a dead worker at once.
LEASE_S = 60
ASKED = {"message": "ping", "model": "gpt-5.4-mini", "stream": True}
CONTENT = {"Content-Type": "application/json"}
WHOLE = {"calls": 500, "tokens": 200_000, "at-once": 50, "usd-hour": 20.0, "usd-day": 60.0}
# Room for fifty calls of one address. A second refills 2 tokens: what comes back was given back.
POLICY = """
version = 1

[[application]]
limit = "6000/minute"
burst = 1000
strategy = "token-bucket"
key = "ip"

[groups.counts]
limits = []

[groups.calls]
plans = true

[[plans.starter.limits]]
name = "calls"
limit = "500/day"
strategy = "sliding-window"
key = "user"

[[plans.starter.limits]]
name = "tokens"
limit = "200000/day"
strategy = "token-bucket"
unit = "tokens"
key = "user"

[[plans.starter.limits]]
name = "at-once"
limit = "50 in flight"
key = "user"

[[plans.starter.limits]]
name = "usd-hour"
limit = "20 usd/hour"
strategy = "fixed-window"
key = "user"

[[plans.starter.limits]]
name = "usd-day"
limit = "60 usd/day"
strategy = "fixed-window"
key = "user"
"""


@dataclass(frozen=True)
class Death:
    """What was observed. ``held`` and ``after`` are the rest of each limit before the kill and
    once its holds are freed, ``storages`` the runs of the storage server that answered then;
    ``calls`` is the ledger, and ``check``, ``spend`` and ``restore`` are the outputs of its
    commands."""

    held: dict[str, float]
    after: dict[str, float]
    storages: tuple[str, str]
    calls: list[sqlite3.Row]
    check: subprocess.CompletedProcess[str]
    spend: subprocess.CompletedProcess[str]
    restore: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamServer]:
    """A provider whose streams stop after their first word."""
    with UpstreamServer.running() as server:
        server.script(*[Stream([*openai_chunks()[:2], Wait()]) for _ in range(STREAMS)])
        yield server


@pytest.fixture(scope="module")
def death(provider: UpstreamServer, tmp_path_factory: pytest.TempPathFactory) -> Death:
    """One worker that has all of the streams is killed; the master starts another."""
    return died(provider, tmp_path_factory.mktemp("death"), STREAMS)


def died(
    provider: UpstreamServer,
    directory: Path,
    streams: int,
    *,
    slug: str = "gpt-5.4-mini",
    **more: str,
) -> Death:
    """Kill the worker of so many streams of this model; ``more`` are settings."""
    database, policy = directory / "chatapp.db", directory / "policy.toml"
    policy.write_text(POLICY)
    settings = {
        "DATABASE_URL": f"sqlite:///{database}",
        "RATELIMIT_POLICY_FILE": str(policy),
        "RATELIMIT_LEASE_SECONDS": str(LEASE_S),
        **provider.variables,
        **more,
    }
    with gunicorn(
        "wsgi:app", directory, workers=1, GUNICORN_THREADS=str(streams + 6), **settings
    ) as master:
        first_storage = run_of(storage_uri(master))
        connections = [begun(master) for _ in range(streams)]
        held = left(master)
        # The ledger's thread may be 50 ms behind: calls that began later than that a kill takes.
        eventually(lambda: [call["slug"] for call in kept(database)] == [slug] * streams)
        (worker,) = master.workers()
        os.kill(worker, signal.SIGKILL)
        for connection in connections:
            connection.close()
        eventually(lambda: left(master)["at-once"] == WHOLE["at-once"])
        return Death(
            held=held,
            after=left(master),
            storages=(first_storage, run_of(storage_uri(master))),
            calls=kept(database),
            **{
                words[-1]: run(
                    directory,
                    *("flask", "--app", "wsgi", "chat", *words, "--json"),
                    RATELIMIT_STORAGE_URI=storage_uri(master),
                    **{**settings, "RATELIMIT_LEASE_SECONDS": "0.001"},  # it need not wait
                )
                for words in (("ledger", "check"), ("ledger", "restore"), ("spend",))
            },
        )


def begun(master: Master) -> http.client.HTTPConnection:
    """The connection of a stream whose first word has arrived."""
    connection = master.begin("/chat", ASKED)
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline() == b"event: delta\n"
    return connection


def left(master: Master) -> dict[str, float]:
    """The rest of each limit of the caller's plan."""
    limits = master.request("/usage").body["limits"]
    return {limit["name"]: limit["remaining"] for limit in limits if limit["name"] in WHOLE}


def storage_uri(master: Master) -> str:
    """The URI of the embedded server that the log named last."""
    return re.findall(r"embedded server, (\S+)", master.log)[-1]


def run_of(uri: str) -> str:
    """The id of the server's current run, which changes at a restart."""
    with redis.Redis.from_url(uri.removeprefix("redis+")) as client:
        return str(client.info("server")["run_id"])


def kept(database: Path) -> list[sqlite3.Row]:
    """Every call in the ledger."""
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM calls").fetchall()


def test_all_of_them_were_held(death: Death) -> None:
    """Before the kill every slot was taken, and more dollars than the estimates were reserved, as
    the calls ran beside each other."""
    assert death.held["at-once"] == 0
    for name in ("usd-hour", "usd-day"):
        assert round((WHOLE[name] - death.held[name]) * 1e6) > cost_of(death) > 0
    assert death.held["tokens"] < WHOLE["tokens"] - STREAMS * 1000


def test_the_calls_cost_their_estimates(death: Death) -> None:
    """To the micro-dollar, as in the ledger; slots, and what was held beyond, are back."""
    assert death.after["at-once"] == WHOLE["at-once"]
    for name in ("usd-hour", "usd-day"):
        assert round((WHOLE[name] - death.after[name]) * 1e6) == cost_of(death), name
    tokens = sum(c["estimated_input_tokens"] + c["estimated_output_tokens"] for c in death.calls)
    assert 0 <= death.after["tokens"] - (WHOLE["tokens"] - tokens) < 1000  # a second refills two
    assert death.storages[0] == death.storages[1], "the storage was started again"


def cost_of(death: Death) -> int:
    """What the ledger has, in micro-dollars."""
    return sum(call["cost_micro_usd"] for call in death.calls)


def test_the_calls_were_made(death: Death) -> None:
    """Limits in calls keep counting them, because the provider was called."""
    assert death.after["calls"] == WHOLE["calls"] - STREAMS


def test_the_ledger_has_every_call(death: Death) -> None:
    """Unfinished, with the expected tokens and price, marked as estimated, without a usage."""
    assert len(death.calls) == STREAMS
    assert {call["status"] for call in death.calls} == {"unfinished"}
    for call in death.calls:
        assert (call["user"], call["model"]) == ("ip:127.0.0.1", "gpt-5.4-mini")
        assert call["estimated_input_tokens"] > 0
        assert call["estimated_output_tokens"] > 0
        assert call["cost_micro_usd"] > 0
        assert call["estimated"]
        assert call["input_tokens"] is call["output_tokens"] is None


def test_the_check_names_every_call(death: Death) -> None:
    """Only as calls of a dead worker: limits and ledger agree on what they cost."""
    assert death.check.returncode == 1
    found = json.loads(death.check.stdout)
    assert found["limits"] == "limits of 1 user compared"
    assert [each["cost_usd"] for each in found["spent"]] == [cost_of(death) / 1e6]
    problems = "\n".join(found["problems"])
    for call in death.calls:
        assert f"{call['id']} of ip:127.0.0.1" in problems
    said = "is unfinished: its worker died; its cost is an estimate"
    assert problems.count(said) == len(found["problems"]) == STREAMS


def test_the_other_commands_have_the_same_number(death: Death) -> None:
    """`chat spend` sums it, and `chat ledger restore` finds nothing that the limits lack."""
    assert [row["cost_usd"] for row in json.loads(death.spend.stdout)] == [cost_of(death) / 1e6]
    assert_limits_lack_nothing(death)


def assert_limits_lack_nothing(death: Death) -> None:
    """Not a micro-dollar. A bucket refills two tokens a second from the admission on, which is a
    moment before the ledger's time of the call."""
    lacking = {
        each["limit"]: each["usage"][2] for each in json.loads(death.restore.stdout)["limits"]
    }
    assert lacking.pop("tokens", 0) < 10
    assert lacking == {}


def test_a_call_of_a_fallback_costs_its_estimate(tmp_path: Path) -> None:
    """Of the dearer model that was called in the end: the same in the ledger and in the limits, for
    a call alone and for one beside it."""
    hangs = Stream([*openai_chunks()[:2], Wait()])
    with UpstreamServer.running() as server:
        server.script(*[openai_error(500, code="server_error"), hangs] * 2)
        fallbacks = json.dumps({"gpt-5.4-mini": "gpt-5.4"})
        once = {"CHATAPP_PROVIDER_ATTEMPTS": "1", "CHATAPP_FALLBACK_MODELS": fallbacks}
        death = died(server, tmp_path, 2, slug="gpt-5.4", **once)
    assert [call["model"] for call in death.calls] == ["gpt-5.4-mini"] * 2
    prices = catalogue.load()
    for call in death.calls:
        usage = Usage(call["estimated_input_tokens"], call["estimated_output_tokens"])
        assert call["cost_micro_usd"] == prices.price("gpt-5.4", usage)
    test_the_calls_cost_their_estimates(death)
    assert_limits_lack_nothing(death)
