"""What all providers share: waits read from headers, and a client per process."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from chatapp.per_process import PerProcess
from chatapp.retry_after import retry_after_s


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1" + "0" * 400}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}, None),
    ],
)
def test_a_wait_is_a_positive_number_or_none(headers: dict[str, str], wait_s: float | None) -> None:
    """Whatever a provider sends, what comes out can be waited for."""
    assert retry_after_s(headers) == wait_s


@pytest.mark.parametrize("zone", [UTC, None])
def test_a_wait_may_be_a_date(zone: object) -> None:
    """A date counts from now, as UTC where it names no zone."""
    date = (datetime.now(UTC) + timedelta(seconds=30)).replace(tzinfo=zone)  # type: ignore[arg-type]
    wait_s = retry_after_s({"retry-after": format_datetime(date)})
    assert wait_s is not None
    assert 28 < wait_s <= 30


def test_many_threads_share_one_client() -> None:
    """A client is made once, however many ask for it at the same moment."""
    made: list[object] = []
    start = threading.Barrier(16)

    def create() -> object:
        made.append(object())
        return made[-1]

    client: PerProcess[object] = PerProcess(create)
    seen: list[object] = []

    def ask() -> None:
        start.wait()
        seen.append(client.get())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert seen == made * 16


def test_a_forked_child_makes_its_own_client() -> None:
    """A child never speaks over the sockets that its parent opened."""
    client: PerProcess[object] = PerProcess(object)
    ours = client.get()
    child = os.fork()
    if child == 0:
        os._exit(0 if client.get() is not ours else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.get() is ours
