"""What calls hold is free again although no worker settles them."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.gunicorn_master import Master
from tests.faults import traffic
from tests.faults.conftest import Record, Start
from tests.faults.load import NO_ANSWER, Request, ask
from tests.servers import Server, eventually

CALLS = 5
CALLER = {"X-Caller": "with calls"}


def in_flight(master: Master) -> int:
    """How many calls the storage counts, with the one that asks."""
    headers = master.request("/slots", headers=CALLER).headers
    return int(headers["x-ratelimit-limit"]) - int(headers["x-ratelimit-remaining"])


@pytest.mark.fault(
    breaks="A worker is killed while it has calls that hold a slot",
    to_do="Nothing: another worker releases what they held. Their clients have to ask again.",
)
def test_slots_of_a_killed_worker(storage: Server, start: Start, record: Record) -> None:
    """Long before their leases end, which are two minutes."""
    with start(storage.uri, **traffic.PATIENT) as master, ThreadPoolExecutor(CALLS) as pool:
        with traffic.around(master) as load:
            calls = [
                pool.submit(ask, master.port, Request("", "/long", CALLER)) for _ in range(CALLS)
            ]
            eventually(lambda: in_flight(master) == CALLS + 1)
            for worker in master.workers():
                os.kill(worker, signal.SIGKILL)
            eventually(master.is_serving)
            eventually(lambda: in_flight(master) == 1)
        assert {call.result()[0] for call in calls} == {NO_ANSWER}
    record(load, counted=f"{CALLS} of {CALLS} slots are free again")
