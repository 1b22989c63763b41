"""The server forgets what it was taught, while requests go on."""

from __future__ import annotations

import pytest

from tests.faults import traffic
from tests.faults.conftest import Record, Start
from tests.faults.load import Load
from tests.servers import Server


@pytest.mark.fault(
    breaks="Scripts are flushed, 20 times a second (`SCRIPT FLUSH`)",
    to_do="Nothing: scripts are loaded again.",
)
def test_scripts_are_flushed(storage: Server, start: Start, record: Record) -> None:
    """Every request is decided by the storage, exactly."""
    with start(storage.uri) as master, traffic.load(master) as load, storage.client() as client:
        storage.client()
        load.run(traffic.BEFORE_S)
        with load.fault():
            for _ in range(int(traffic.FAULT_S * 20)):
                client.script_flush()
                load.run(0.05)
        load.run(traffic.AFTER_S)
    assert_unnoticed(load)
    record(load.answers, counted=traffic.counts(load.answers))


@pytest.mark.fault(
    breaks="Functions are flushed, 20 times a second (`FUNCTION FLUSH`)",
    to_do="Nothing: functions are loaded again.",
)
def test_functions_are_flushed(storage: Server, start: Start, record: Record) -> None:
    """Every request is decided by the storage, exactly."""
    with start(storage.uri) as master, traffic.load(master) as load, storage.client() as client:
        load.run(traffic.BEFORE_S)
        with load.fault():
            for _ in range(int(traffic.FAULT_S * 20)):
                client.function_flush()
                load.run(0.05)
        load.run(traffic.AFTER_S)
    assert_unnoticed(load)
    record(load.answers, counted=traffic.counts(load.answers))


def assert_unnoticed(load: Load) -> None:
    """No client saw anything of the fault, and every amount is exact."""
    assert set(load.answers.statuses) == {200, 429}
    assert traffic.counts(load.answers) == "exact"
