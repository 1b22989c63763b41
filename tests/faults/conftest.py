"""Fixtures of the scenarios: a storage, the extension in front of it, and the row to record.

A scenario breaks something under load, repairs it, asserts counts and statuses, and records the row
of docs/benchmarks/faults.md::

    @pytest.mark.fault(breaks="The storage is killed", to_do="Start it again.")
    def test_the_storage_is_killed(storage: Server, start: Start, record: Record) -> None:
        with start(storage.uri) as master, traffic.around(master) as load:
            storage.kill()
            load.run(traffic.FAULT_S)
            storage.relaunch()
        traffic.assert_bridged(load)
        record(load)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.faults import traffic
from tests.faults.load import Load
from tests.faults.table import Row
from tests.gunicorn_master import Master, gunicorn

HERE = Path(__file__).parent
Start = Callable[..., AbstractContextManager[Master]]
Record = Callable[..., None]

#: The scenarios of `--tier long`. `pytest tests/faults` has the others, too.
IN_EVERY_RUN = frozenset(
    {
        *("test_killed", "test_stopped", "test_full", "test_functions_are_flushed", "test_reset"),
        *("test_redis_is_killed", "test_the_ledger_is_locked", "test_a_worker_is_killed"),
        *("test_a_worker_is_killed_in_mid_call", "test_reload", "test_sentinel_fails_over"),
        *("test_the_workers_starve", "test_a_storage_that_hangs_is_found"),
        "test_the_hammer_beside_busy_loops",
        *("test_sentinel_replaces_a_living_master", "test_a_failover_that_is_given_up"),
        *("test_a_cluster_master_is_killed", "test_a_lost_reply_charges_once"),
        *("test_nothing_is_lost_in_chaos", "test_the_table_lists_exactly_the_scenarios"),
        "test_every_run_has_what_it_names",
    }
)

#: Requests before the load, as the first ones of a worker take longer.
WARM_UP = 20


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip most scenarios unless they were asked for: all of them take five minutes."""
    if any("faults" in str(argument) for argument in config.invocation_params.args):
        return
    skipped = pytest.mark.skip(reason="`python -m pytest tests/faults` has all scenarios")
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.parent == HERE and name not in IN_EVERY_RUN:
            item.add_marker(skipped)


@pytest.fixture
def storage() -> Iterator[servers.Server]:
    """A server of this scenario's own."""
    with servers.standalone() as server:
        yield server


@pytest.fixture
def durable() -> Iterator[servers.Server]:
    """A storage that keeps each change on disk."""
    with servers.standalone("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts gunicorn with tests/faults/application.py: ``start(uri, workers=3, NAME="value")``,
    where a variable may be a setting of the extension."""

    @contextmanager
    def start(uri: str, **options: Any) -> Iterator[Master]:
        environment = {"RATELIMIT_STORAGE_URI": uri, "RATELIMIT_DEADLINE_SECONDS": "0.1", **options}
        with gunicorn("tests.faults.application:create_app()", tmp_path, **environment) as master:
            for _ in range(WARM_UP):
                master.request("/roomy", headers={"X-Caller": "warm-up"})
            yield master

    return start


@pytest.fixture
def record(request: pytest.FixtureRequest, record_property: Callable[..., None]) -> Record:
    """Records the row of the scenario: ``record(load)``, or ``record(load, counted="…")`` for other
    callers than those of traffic.py."""
    marker = request.node.get_closest_marker("fault")

    def record(load: Load, *, counted: str | None = None) -> None:
        row = Row(
            **marker.kwargs,
            answers=load.answers,
            counted=counted or traffic.counts(load.answers),
            recovery_s=load.recovery_s(traffic.is_degraded),
        )
        record_property("row", row)

    return record
