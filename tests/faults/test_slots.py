"""What calls hold is free again although no worker settles them, or their admission comes late."""

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engine.relay import Relay, whole
from tests.faults import traffic
from tests.faults.conftest import Record, Start
from tests.faults.load import NO_ANSWER, Request, ask
from tests.gunicorn_master import Master
from tests.servers import Server, eventually

CALLS = 5
#: At once, so that all are sent before the first deadline is over.
LATE_CALLS = 24
SLOW = {"RATELIMIT_DEADLINE_SECONDS": "1"}
CALLER = {"X-Caller": "with calls"}


def in_flight(master: Master) -> int:
    """How many calls the storage counts, with the one that asks."""
    headers = master.request("/slots", headers=CALLER).headers
    return int(headers["x-ratelimit-limit"]) - int(headers["x-ratelimit-remaining"])


@pytest.mark.fault(
    breaks="A worker is killed while it has calls that hold a slot",
    to_do="Nothing: another worker releases what they held. Their clients have to ask again.",
    before="5 slots stayed taken until the lease ended",
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


@pytest.mark.fault(
    breaks="The network holds requests back until Redis is back and their calls are over",
    to_do="Look at the network, and at proxies before Redis.",
    before="9 of 24 slots stayed taken until the lease ended",
)
def test_late_admissions(storage: Server, start: Start, record: Record) -> None:
    """They arrive after their release, and take no slot."""
    held, arrived, goes_on = list[bytes](), list[bytes](), threading.Event()

    def hold_back(server: socket.socket, request: bytes) -> None:
        if b"slots" not in request:  # connections can be made
            whole(server, request)
            return
        held.append(request)
        goes_on.wait()
        whole(server, request)
        arrived.append(request)

    with (
        Relay(storage.port) as relay,
        start(f"redis://127.0.0.1:{relay.port}", **SLOW) as master,
        ThreadPoolExecutor(LATE_CALLS) as pool,
    ):
        with traffic.around(master) as load:
            relay.forward = hold_back
            slots = Request("", "/slots", CALLER)
            calls = [pool.submit(ask, master.port, slots) for _ in range(LATE_CALLS)]
            assert {call.result()[0] for call in calls} <= {200, 429}
            relay.forward = whole
            eventually(lambda: in_flight(master) == 1)
        assert not arrived
        goes_on.set()
        eventually(lambda: len(arrived) == len(held))
        assert in_flight(master) == 1
    assert len(held) > LATE_CALLS / 4
    record(load, counted=f"{len(held)} requests came late, and no slot stayed taken")
