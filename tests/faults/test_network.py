"""The storage is well, but its replies arrive late, in pieces, or not at all."""

from collections.abc import Iterator
from functools import partial

import pytest

from tests.engine import replies
from tests.engine.relay import Deliver, Relay, whole
from tests.faults import traffic
from tests.faults.conftest import Record, Start
from tests.faults.load import Load
from tests.servers import Server

#: Fewer than there are requests at once, when each takes 30 ms.
POOL = '{"max_connections": 1}'


@pytest.fixture
def relay(storage: Server) -> Iterator[Relay]:
    """The network between the workers and the storage."""
    with Relay(storage.port) as relay:
        yield relay


def carried_by(relay: Relay, deliver: Deliver, start: Start, **options: str) -> Load:
    """The load while replies are carried so."""
    uri = f"redis://127.0.0.1:{relay.port}"
    cause = partial(setattr, relay, "deliver", deliver)
    with start(uri, **options) as master, traffic.around(master, cause) as load:
        load.run(traffic.FAULT_S)
        relay.deliver = whole
    return load


@pytest.mark.fault(
    breaks="Each reply takes 30 ms",
    to_do="Move Redis nearer: each request takes a round trip longer.",
)
def test_slow(relay: Relay, start: Start, record: Record) -> None:
    """Within the deadline the storage decides everything."""
    load = carried_by(relay, replies.late(0.03), start, **traffic.PATIENT)
    traffic.assert_unnoticed(load)
    record(load)


@pytest.mark.fault(breaks="Each reply takes 0.4 s", to_do="As if Redis hung.")
def test_slower_than_the_deadline(relay: Relay, start: Start, record: Record) -> None:
    """A request waits for the deadline, not for the reply."""
    load = carried_by(relay, replies.late(0.4), start)
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(breaks="Replies drip, a byte every 20 ms", to_do="As if Redis hung.")
def test_dripping(relay: Relay, start: Start, record: Record) -> None:
    """The deadline is for the whole reply: each byte begins no new one. A worker may not know of
    one charge that is on its way when it begins to decide."""
    load = carried_by(relay, replies.dripping(relay, 0.02), start)
    traffic.assert_bridged(load, most=traffic.AMOUNT + 2)
    record(load)


@pytest.mark.fault(
    breaks="Connections are reset in the middle of replies",
    to_do="Look at the network, and at proxies before Redis.",
)
def test_reset(relay: Relay, start: Start, record: Record) -> None:
    """A call whose reply is lost is not sent again: it may have been charged."""
    load = carried_by(relay, replies.cut, start)
    traffic.assert_bridged(load)
    record(load)


@pytest.mark.fault(
    breaks="The pool of connections is exhausted (`max_connections`)",
    to_do="Nothing: requests wait for a connection. Raise `max_connections` to `GUNICORN_THREADS`.",
)
def test_exhausted_pool(relay: Relay, start: Start, record: Record) -> None:
    """A request waits for a free connection, and the storage decides everything."""
    options = {"RATELIMIT_STORAGE_OPTIONS": POOL, **traffic.PATIENT}
    load = carried_by(relay, replies.late(0.03), start, **options)
    traffic.assert_unnoticed(load)
    record(load)
