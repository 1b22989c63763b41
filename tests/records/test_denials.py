"""Denials are remembered, within bounds, and `flask ratelimit why` explains them."""

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result

from ratelimit_ext import client_ip
from ratelimit_ext.records import denials as module
from ratelimit_ext.records import recorder as writer
from ratelimit_ext.records.denials import COUNT_S, KEEP_S, MOST_RECORDS, DenialRecord
from ratelimit_ext.records.recorder import Recorder
from ratelimit_ext.records.store import require_store
from tests.clocks import Clock
from tests.records.site import Down, Site, remembering
from tests.records.test_override_store import no_more_threads
from tests.servers import eventually
from tests.web.calls import serve, statuses
from tests.web.conftest import Maker, asked_key


def limited(make: Maker, uri: str, **how: Any) -> Site:
    """An application with limits of 2 an hour, of tokens and of dollars, that remembers denials."""
    site = app, limiter = remembering(make, uri, **how)
    serve(app, limiter.limit("2/hour", name="calls", key_func=asked_key, strategy="sliding-window"))
    tokens = limiter.limit("9/hour", name="tokens", unit="tokens", cost=lambda: 10)
    serve(app, tokens, path="/large")
    serve(app, limiter.limit("1 usd/day", name="budget", cost=0.75), path="/paid")
    return site


def why(site: Site, *words: str, status: int = 0) -> Result:
    return site.run("why", *words, status=status)


def flushed(site: Site) -> None:
    """As the thread does."""
    site.recorder.flush(all_of_them=True)


def test_a_denial_is_explained(make: Maker, redis_uri: str) -> None:
    """By another process: when, by which limit, how much was used, when the next call is free, and
    how many followed. `--json` has the same in figures, and the request's id has it, too."""
    worker, console = limited(make, redis_uri, request_id=lambda: "req_7"), limited(make, redis_uri)
    assert worker.hit(6) == [200, 200, 429, 429, 429, 429]
    assert why(console, "ann").stderr == "ann was not denied in the last 1 d.\n"
    flushed(worker)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    sentence = (
        rf"{time} denied by 'calls' \(2 per 1 hour\) at view: 2 used, next free at {time} "
        rf"\(request req_7\); 3 more like this until {time}\n"
    )
    assert re.fullmatch(sentence, why(console, "ann").stdout)
    assert why(console, "req_7").stdout == why(console, "ann").stdout
    (shown,) = json.loads(why(console, "ann", "--json").stdout)
    assert (shown["limit"], shown["count"], shown["remaining"], shown["capacity"]) == (
        *("calls", 4, 0, 2),
    )
    assert 3500 < shown["retry_after"] <= 3600
    assert why(console, "bob").stderr == "bob was not denied in the last 1 d.\n"


def test_a_burst_is_named(make: Maker, redis_uri: str) -> None:
    """As in the answer to the caller: 30 a minute would not explain that 2 are used up."""
    site = app, limiter = remembering(make, redis_uri)
    serve(app, limiter.limit("30/minute", name="pace", burst=2, strategy="token-bucket"))
    assert site.hit(3) == [200, 200, 429]
    flushed(site)
    shown = why(site, "ann").stdout
    assert "denied by 'pace' (30 per 1 minute, 2 at once) at view: 2 used, next free" in shown


def test_what_can_never_pass_and_money_are_explained(make: Maker, redis_uri: str) -> None:
    """In the limit's own unit."""
    site = limited(make, redis_uri)
    assert site.hit(1, "/large") == [400]
    assert site.hit(2, "/paid") == [200, 429]
    flushed(site)
    shown = why(site, "ann").stdout
    assert "the call costs 10 tokens, more than it can ever hold\n" in shown
    assert "denied by 'budget' (1 usd per 1 day) at paid: 0.75 usd used, next free at" in shown


@pytest.mark.parametrize("key_func", [lambda: "*", lambda: "all"], ids=["everyone", "shared"])
@pytest.mark.usefixtures("clock")  # denials do not expire
def test_a_denial_by_a_shared_limit_is_of_its_callers(
    make: Maker, redis_uri: str, monkeypatch: pytest.MonkeyPatch, key_func: Any
) -> None:
    """Also one that a worker repeats from memory, and beside a denial by the caller's own limit.
    Beyond a number of callers, they are one entry."""
    site = app, limiter = limited(make, redis_uri)
    serve(
        app,
        limiter.limit("9/hour", name="own"),
        limiter.limit("3/day", name="all", key_func=key_func),
        path="/shared",
    )
    monkeypatch.setattr(module, "MOST_CALLERS", 3)
    assert site.hit(9, "/shared") == [200] * 3 + [429] * 6
    cached: list[bool] = []
    limiter.listen(lambda event: cached.append(event.cached))
    for name in ("bob", "bob", "eve", "dan", "joe"):
        assert site.hit(1, "/shared", name) == [429]
    assert cached == [True] * 5
    flushed(site)
    assert "denied by 'all' (3 per 1 day) at shared: 3 used" in why(site, "bob").stdout
    (found,) = json.loads(why(site, "bob", "--json").stdout)
    assert (found["identity"], found["callers"], found["count"]) == (key_func(), ["bob"], 2)
    assert why(site, "joe").stdout == ""
    of_all = json.loads(why(site, key_func(), "--json").stdout)
    assert [(each["callers"], each["count"]) for each in of_all] == [
        (["ann"], 6),
        (["bob"], 2),
        (["eve"], 1),
        ([], 2),
    ]


def test_a_block_is_explained(make: Maker, redis_uri: str) -> None:
    """By its reason; one without an end says so."""
    site = app, limiter = limited(make, redis_uri)
    app.add_url_rule("/door", "door", limiter.limit("unless blocked", name="stop")(lambda: "ok"))
    with app.app_context():
        limiter.operators.block("stop", "ann")
    assert site.hit(1, "/door") == [403]
    flushed(site)
    assert "denied by 'stop' (unless blocked) at door: blocked, no end\n" in why(site, "ann").stdout


@pytest.mark.parametrize("uri", ["memory://", "redis"])
def test_a_hammering_caller_is_a_count(
    make: Maker, redis_uri: str, redis_client: redis.Redis, clock: Clock, uri: str
) -> None:
    """The denials of half a minute are an entry. A pause of more than a minute begins another."""
    site = limited(make, redis_uri if uri == "redis" else uri)
    for _ in range(3):
        site.hit(4)
        clock.forward(COUNT_S)
        flushed(site)
    (found,) = site.recorder.denials.read()
    assert (found.count, found.until - found.at) == (10, 2 * COUNT_S)
    clock.forward(2 * COUNT_S + 1)
    site.hit(1)
    flushed(site)
    assert [each.count for each in site.recorder.denials.read()] == [10, 1]
    latest = site.recorder.denials.read(clock.now_s - 5)
    assert [each.count for each in latest] == [1]
    if uri == "redis":
        assert redis_client.xlen("LIMITS:denials:{operators}") == 4


def test_a_burst_is_counted_at_the_next_write(make: Maker, redis_uri: str) -> None:
    """Its denials so far are the first entry, those that follow are another after half a minute."""
    site = limited(make, redis_uri)
    site.hit(6)
    assert [each.count for each in site.recorder.denials.read()] == [4]
    site.hit(3)
    assert [each.count for each in site.recorder.denials.read()] == [4]
    flushed(site)
    assert [each.count for each in site.recorder.denials.read()] == [7]


def test_a_denial_costs_the_request_no_round_trip(make: Maker, redis_uri: str) -> None:
    """Denials are written together, by one command that the request does not send. Another writes
    the counts of decisions."""
    site = limited(make, redis_uri)
    with redis.Redis.from_url(redis_uri) as client:
        site.hit(3)
        client.config_resetstat()
        for number in range(20):
            site.hit(3, key=f"caller-{number}")
        assert "cmdstat_xadd" not in client.info("commandstats")
        assert "cmdstat_eval" not in client.info("commandstats")
        flushed(site)
        stats = client.info("commandstats")
        assert (stats["cmdstat_eval"]["calls"], stats["cmdstat_xadd"]["calls"]) == (2, 21)


def test_a_flood_of_callers_is_bounded_and_counted(
    make: Maker, redis_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers can invent identities: a process counts some of them, and the number of the others.
    `why` says that there were others."""
    site = limited(make, redis_uri)
    monkeypatch.setattr(module, "MOST_RUNS", 20)
    for number in range(25):
        site.hit(3, key=f"invented-{number}")
    assert len(site.recorder.denials._runs) == 20
    flushed(site)
    assert sum(1 for each in site.recorder.denials.read() if each.limit) == 20
    assert why(site, "invented-3").stdout.count("denied by 'calls'") == 1
    assert why(site, "invented-22").stderr == (
        "invented-22 was not denied in the last 1 d.\n"
        "In the last 1 d, 5 more denials, of all callers, were not kept.\n"
    )


def test_the_record_has_a_ceiling(
    make: Maker, redis_uri: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most about 10,000 of the largest entries: less than 16 MB, gone after two days."""
    site = limited(make, redis_uri)
    long = "ü" * module.LONGEST_TEXT
    largest = DenialRecord(
        *(1e9 / 3, 1e9 / 3, 10**6, long[:64], long[:64], long, "input_tokens"),
        *(10**12, 10**12, 10**12, 10**12, long, "storage-unavailable", "closed", long),
        ["x" * 64] * module.MOST_NAMES,
    )
    for _ in range(11):
        site.recorder.denials.write([largest] * 1000)
    stream = "LIMITS:denials:{operators}"
    assert MOST_RECORDS <= redis_client.xlen(stream) <= MOST_RECORDS + 100
    assert redis_client.memory_usage(stream, samples=0) < 16_000_000
    assert KEEP_S - 60 < redis_client.ttl(stream) <= KEEP_S
    old = f"{(int(redis_client.time()[0]) - KEEP_S - 60) * 1000}-0"
    redis_client.delete(stream)
    redis_client.xadd(stream, {"d": json.dumps({"at": 1, "until": 1})}, id=old)
    site.recorder.denials.write([largest])
    assert redis_client.xlen(stream) == 1


def test_an_outage_keeps_what_fits(make: Maker, redis_uri: str) -> None:
    """Denials are written when the storage is back."""
    site = limited(make, redis_uri)
    site.hit(3)
    store = site.recorder.denials.store
    site.recorder.denials.store = Down()  # type: ignore[assignment]
    for _ in range(3):
        flushed(site)
    assert len(site.recorder.denials._unsent) == 1
    site.recorder.denials.store = store
    flushed(site)
    assert [each.limit for each in site.recorder.denials.read()] == ["calls"]
    assert not site.recorder.denials._unsent


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("ann", "--since", "soon"),
            "'soon' is not a length of time; write it as 90s, 15m, 2h or 7d",
        ),
        (("ann", "--since", "0h"), "'0h' is not from 1s to 2d"),
        (("ann", "--since", "9d"), "'9d' is not from 1s to 2d"),
    ],
)
def test_a_wrong_period_is_one_sentence(
    make: Maker, redis_uri: str, words: tuple[str, ...], error: str
) -> None:
    """What was found, and what is allowed."""
    assert why(limited(make, redis_uri), *words, status=2).stderr.splitlines()[-1].endswith(error)


def test_what_cannot_be_answered_is_one_sentence(make: Maker, redis_uri: str) -> None:
    """An identity that no limit counts, denials that are not remembered, the memory of workers."""
    site = Site(*make(storage_uri=redis_uri, application_limits=["5/hour"], key_func=client_ip))
    error = "Error: Denials are not remembered; call limiter.remember_denials() in the application."
    assert why(site, "10.0.0.1", status=1).stderr.strip() == error
    site.limiter.remember_denials()
    error = "Error: No limit counts 'zoe'. `flask ratelimit show` lists all."
    assert why(site, "zoe", status=1).stderr.strip() == error
    site = limited(make, "memory://")
    assert "memory of each worker" in why(site, "ann", status=1).stderr


def test_identities_are_printed_without_control_characters(make: Maker, redis_uri: str) -> None:
    """Callers choose them, and the text of a limit may be theirs."""
    site = limited(make, redis_uri)
    record = DenialRecord(
        at=module.clock.now_us() / 1e6, until=1e11, identity="ann", limit="a\x1b[2J"
    )
    site.recorder.denials.write([record])
    flushed(site)
    assert "\x1b" not in why(site, "ann").stdout


def test_a_process_without_file_descriptors_writes_too(
    make: Maker, redis_uri: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has had the scripts since the start."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    site = limited(make, redis_uri)
    site.hit(3)
    require_store(site.recorder.denials.store, "denials").latest("denials", 1)  # it connects
    monkeypatch.setattr(Path, "open", refused)
    flushed(site)
    assert redis_client.xlen("LIMITS:denials:{operators}") == 1


def test_the_thread_writes_and_a_fork_starts_over(
    make: Maker, redis_uri: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread for each process, from its first denial on; what was gathered before a fork is
    written once."""
    monkeypatch.setattr(Recorder, "in_background", True)
    monkeypatch.setattr(writer, "EVERY_S", 0.05)
    site = limited(make, redis_uri)
    site.hit(3)
    eventually(lambda: redis_client.xlen("LIMITS:denials:{operators}") == 1)
    site.hit(1, key="bob")
    child = os.fork()
    if child == 0:
        recorder = site.recorder
        os._exit(len(recorder.denials._runs) + recorder._is_started)
    assert os.waitpid(child, 0)[1] == 0


def test_the_thread_is_started_as_soon_as_there_is_room_for_one(
    make: Maker, redis_uri: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was gathered until then is written, too."""
    monkeypatch.setattr(Recorder, "in_background", True)
    monkeypatch.setattr(writer, "EVERY_S", 0.05)
    site = limited(make, redis_uri)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        site.hit(3)
    site.hit(1)
    eventually(lambda: redis_client.xlen("LIMITS:denials:{operators}") == 1)


def test_records_of_a_newer_release_are_read(
    make: Maker, redis_uri: str, redis_client: Any
) -> None:
    """What this one does not know of them is left out: workers of both write during an update."""
    site = limited(make, redis_uri)
    statuses(site.app, "/", 3)
    flushed(site)
    (stream,) = redis_client.keys("*denials*")
    ((_, entry),) = redis_client.xrange(stream)
    ((field, text),) = entry.items()
    redis_client.xadd(stream, {field: json.dumps({**json.loads(text), "colour": "red"})})
    assert site.recorder.denials.read()[0].identity


def test_the_last_denials_are_written_at_the_end(make: Maker, redis_uri: str) -> None:
    """Also the counts whose half minute is not over."""
    site = limited(make, redis_uri)
    site.hit(5, key="last")
    try:
        writer._close_all()
    finally:
        writer._ended.clear()
    last = [each for each in site.recorder.denials.read() if each.identity == "last"]
    assert [each.count for each in last] == [3]
