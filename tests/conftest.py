"""Fixtures that every test may ask for: real servers, started once a session and only if asked."""

from __future__ import annotations

import atexit
import compileall
import gc
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from weakref import WeakSet

import hypothesis
import pytest
import redis

from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.nodes import Nodes
from ratelimit_ext.records.overrides import Overrides
from ratelimit_ext.records.recorder import Recorder
from ratelimit_ext.settlements import journal
from ratelimit_ext.settlements.queue import settlements
from ratelimit_ext.web import storage
from tests import servers

#: What a run takes: `--tier fast` the folders and files of "fast", `--tier long` those of "long",
#: else all but those of "long". What is marked as slow is of "long" in any folder. A path on the
#: command line is run in any case.
TIERS = {
    # The application in this process. Servers of limits, upstreams and webhooks are beside it.
    "fast": (
        *("architecture", "core", "docs", "metrics", "mutants", "operators", "policy", "promise"),
        *("records", "settlements", "simulate", "simulator", "strategies"),
        *("web/declarations", "web/flask_limiter", "web/request", "web/test_blocks.py"),
        *("web/test_bound_limit.py", "web/test_components.py", "web/test_errors.py"),
        *("web/test_events.py", "web/test_extension.py", "web/test_identities.py"),
        *("chatapp/accounts", "chatapp/alerts", "chatapp/calls", "chatapp/catalogue"),
        *("chatapp/cli", "chatapp/estimates", "chatapp/upstreams"),
    ),
    # What takes long, or the machine for itself.
    "long": (
        *("benchmarks", "compat", "faults", "fuzz"),
        *("e2e/clients", "e2e/load", "e2e/money", "e2e/operators", "e2e/page"),
    ),
}
#: Folders and files that take longest, in this order. They are begun first: else one process would
#: end the run alone with one of them. They start processes, and wait.
SLOWEST = (
    *("architecture/test_checks.py", "e2e", "chatapp/start", "web/outage"),
    *("engine/test_cluster.py", "chatapp/application/upstreams", "chatapp/application/limits"),
    *("chatapp/web/requests", "web/flask_limiter", "chatapp/blueprints/test_openapi.py"),
)
HERE = Path(__file__).parent
DAY_S = 86_400
WRITES_NOTHING = sys.dont_write_bytecode
_tests = itertools.count()

pytest_plugins = ["pytester"]  # the fixtures for users' tests are tested in a run of their own

# No test asserts a time, and a machine may be slow.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


# Servers and tests share the processors: a call that waits for one of them is no outage. Tests of
# the deadline set their own.
os.environ.setdefault("RATELIMIT_DEADLINE_SECONDS", "5")


def pytest_addoption(parser: pytest.Parser) -> None:
    tiers = [*TIERS, "change", "named"]
    parser.addoption("--tier", choices=tiers, help="the tests that TIERS in this file names")


def pytest_configure(config: pytest.Config) -> None:
    """A path on the command line is run, whichever tier it is of."""
    # What pytest makes of test files is kept, also where Python is to write no bytecode: each
    # process would spend half of its collection on that.
    sys.dont_write_bytecode = False
    if config.option.tier is None:
        is_named = config.args_source is config.ArgsSource.ARGS
        config.option.tier = "named" if is_named else "change"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, without an import, what is of another tier. A slow test can be in any file."""
    tier = config.option.tier
    if tier in ("named", "long") or not collection_path.name.startswith("test_"):
        return None
    is_listed = _is_of("long" if tier == "change" else tier, collection_path)
    return None if is_listed == (tier != "change") else True


@cache
def _is_of(tier: str, path: Path) -> bool:
    return any(path.is_relative_to(HERE / each) for each in TIERS[tier])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests, or all but these and the long tier; and begin with the slowest."""
    tier = config.option.tier
    if tier != "named":
        chosen, others = [], []
        for item in items:
            is_long = bool(item.get_closest_marker("slow")) or _is_of("long", item.path)
            (chosen if is_long == (tier == "long") else others).append(item)
        items[:] = chosen
        config.hook.pytest_deselected(items=others)
    if tier == "change":
        items.sort(key=lambda item: _rank(item.path))


@cache
def _rank(path: Path) -> int:
    ranks = (n for n, each in enumerate(SLOWEST) if path.is_relative_to(HERE / each))
    return next(ranks, len(SLOWEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many more as there are processors: many tests wait, for servers and their ends."""
    return (os.cpu_count() or 1) * 3 // 2


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile what the processes of tests import: each would do it itself, in half of its time, if
    none may write what it has compiled."""
    if not hasattr(session.config, "workerinput"):
        for package in ("ratelimit_ext", "chatapp"):
            compileall.compile_dir(HERE.parent / package, quiet=2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What all tests share stays until the end. Else the garbage collector would look at every
    module and every test again and again. An application is some ten thousand objects."""
    gc.disable()
    collected = yield
    sys.dont_write_bytecode = WRITES_NOTHING
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)
    gc.enable()
    return collected


def pytest_sessionfinish() -> None:
    """Applications of tests leave nothing for a next process: they would wait for servers that have
    ended. That a process leaves its outages is tested with processes."""
    atexit.unregister(storage._leave)


@pytest.fixture(autouse=True, scope="module")
def what_a_file_leaves_is_not_searched_again() -> Iterator[None]:
    """What its tests have imported and cached stays, too."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Server]:
    """One real server for the session: `.uri`, `.unix_uri`, `.client()`, `.pid`."""
    with servers.standalone() as server:
        yield server


@pytest.fixture
def redis_client(redis_server: servers.Server) -> Iterator[redis.Redis]:
    """A client of `redis_server`, which is emptied first."""
    with redis_server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def redis_uri(redis_client: redis.Redis, redis_server: servers.Server) -> str:
    """The address of `redis_server`, which is emptied first."""
    return redis_server.uri


@pytest.fixture
def own_server() -> Iterator[servers.Server]:
    """A server that the test may break."""
    with servers.standalone() as server:
        yield server


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[servers.Cluster]:
    """A real cluster of three masters: `.uri`, `.nodes`, `.client()`."""
    with servers.cluster() as cluster:
        yield cluster


@pytest.fixture
def sentinel_server() -> Iterator[servers.SentinelTrio]:
    """A real master, replica and sentinel, new for each test: a failover cannot be undone."""
    with servers.sentinel() as trio:
        yield trio


@pytest.fixture(autouse=True)
def a_day_does_not_end_with_the_test() -> None:
    """Budgets of days and months, and reports of today, begin afresh at midnight UTC: a test of the
    last minute waits for it. What midnight changes is tested in virtual time."""
    servers.eventually(lambda: DAY_S - time.time() % DAY_S > 60, within_s=90)


@pytest.fixture(autouse=True)
def nothing_in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications in this process read overrides and write denials when a test says so: their
    threads' commands would be among those that tests count. Those of gunicorn have the threads."""
    monkeypatch.setattr(Overrides, "in_background", False)
    monkeypatch.setattr(Recorder, "in_background", False)


@pytest.fixture(autouse=True)
def no_file_of_an_earlier_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a process leaves for its successor is found by storage, and tests use an address of a
    storage that is down again and again."""
    own = tmp_path_factory.getbasetemp() / f"settlements-{next(_tests)}"
    monkeypatch.setattr(journal, "DEFAULT_DIRECTORY", str(own))


@pytest.fixture(autouse=True)
def no_storage_is_waited_for_after_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The threads that look for the return of a storage or a node would live until their
    application is collected, and what they log would be in the output of later tests. These would
    also wait for what is queued for it."""
    looking = WeakSet[Breaker | Nodes]()
    wake, start = Breaker.wake, Nodes._start
    monkeypatch.setattr(Breaker, "wake", lambda each: looking.add(each) or wake(each))
    monkeypatch.setattr(Nodes, "_start", lambda each: looking.add(each) or start(each))
    yield
    for each in looking:
        if each._thread is not None:
            each._look_again = lambda: None
    for number in list(settlements._waiting):
        settlements._remove(number)


@pytest.fixture(autouse=True)
def only_what_this_test_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """`caplog` has no line of an earlier test's thread that has not yet ended."""
    earlier = {each for each in threading.enumerate() if each.name.startswith("ratelimit-")}

    def is_of_this_test(_: logging.LogRecord) -> bool:
        return threading.current_thread() not in earlier

    caplog.handler.addFilter(is_of_this_test)
    yield
    caplog.handler.removeFilter(is_of_this_test)
