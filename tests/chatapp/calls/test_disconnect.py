"""Disconnects are noticed while nothing is written to the client."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from chatapp.calls import disconnect as disconnects
from chatapp.calls.disconnect import IS_SUPPORTED, Disconnect, DisconnectWatch
from tests.servers import eventually

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="only Linux tells of it")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are watched soon."""
    monkeypatch.setattr(disconnects, "YOUNG_S", 0.01)


@contextmanager
def watching(
    watch: DisconnectWatch, connection: socket.socket, gone: Callable[[], object]
) -> Iterator[None]:
    """As a call, from its begin to its end."""
    number = watch.begin(connection, gone)
    try:
        yield
    finally:
        watch.end(number)


def test_a_short_call_wakes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first one after a pause does, and none of them is registered."""
    monkeypatch.setattr(disconnects, "YOUNG_S", 60)
    alarms: list[int] = []
    write = os.eventfd_write
    monkeypatch.setattr(os, "eventfd_write", lambda *to: (alarms.append(1), write(*to)))
    watch = DisconnectWatch()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(100):
            with watching(watch, ours, list):
                assert not watch._watched
    assert len(alarms) == 1


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n"], ids=["nothing", "data"])
def test_a_client_that_closes_has_disconnected(sent: bytes) -> None:
    """It is noticed at once, and once; data before it, such as the end of TLS, does not hide it."""
    gone = threading.Event()
    ours, theirs = socket.socketpair()
    with ours, watching(DisconnectWatch(), ours, gone.set):
        theirs.sendall(sent)
        theirs.close()
        assert gone.wait(60)


def test_a_client_that_sends_its_next_request_is_connected() -> None:
    """The data stays in the socket for the server."""
    gone = threading.Event()
    ours, theirs = socket.socketpair()
    with ours, theirs, watching(DisconnectWatch(), ours, gone.set):
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        assert not gone.wait(0.2)
        assert ours.recv(100) == b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize("before", [True, False], ids=["before", "while"])
def test_a_client_that_leaves_after_its_next_request(*, before: bool) -> None:
    """The data that came while the call was watched, or before, is no disconnect and hides none."""
    gone, watch = threading.Event(), DisconnectWatch()
    ours, theirs = socket.socketpair()
    with ours, watching(watch, ours, gone.set):
        if before:
            theirs.sendall(b"GET / HTTP/1.1\r\n")
        eventually(lambda: watch._watched)
        if not before:
            theirs.sendall(b"GET / HTTP/1.1\r\n")
        assert not gone.wait(0.1)
        theirs.close()
        assert gone.wait(30)


def test_a_look_tells_data_from_a_disconnect() -> None:
    """It needs no thread."""
    ours, theirs = socket.socketpair()
    disconnect = Disconnect(ours)
    try:
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        assert not disconnect.has_happened
        theirs.close()
        assert disconnect.has_happened
    finally:
        disconnect.close()
        ours.close()


def test_after_the_block_nothing_is_noticed() -> None:
    """The number of a closed connection is reused."""
    gone = threading.Event()
    watch = DisconnectWatch()
    ours, theirs = socket.socketpair()
    with watching(watch, ours, gone.set):
        eventually(lambda: watch._watched)
    ours.close()
    theirs.close()
    other, theirs = socket.socketpair()
    with other, theirs, watching(watch, other, gone.set):
        assert not gone.wait(0.1)


def test_each_call_on_a_connection_is_watched() -> None:
    """Also if the one before it lasted until it was registered, and nothing happens in between."""
    earlier, gone, watch = threading.Event(), threading.Event(), DisconnectWatch()
    ours, theirs = socket.socketpair()
    with ours:
        for _ in range(3):
            with watching(watch, ours, earlier.set):
                eventually(lambda: watch._watched)
        with watching(watch, ours, gone.set):
            theirs.close()
            assert gone.wait(60)
    assert not earlier.is_set()


def test_an_exception_in_a_callback_does_not_end_the_watch() -> None:
    """The next disconnect is noticed."""

    failed, gone = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise RuntimeError("oops")

    watch = DisconnectWatch()
    for shown, happened in ((fail, failed), (gone.set, gone)):
        ours, theirs = socket.socketpair()
        with ours, watching(watch, ours, shown):
            theirs.close()
            assert happened.wait(60)


def test_a_connection_that_was_closed_here_does_not_end_the_watch() -> None:
    """Its socket is still watched, as another thread has closed it."""
    gone, watch = threading.Event(), DisconnectWatch()
    ours, theirs = socket.socketpair()
    closed = socket.socket()
    closed.close()
    with ours, watching(watch, ours, gone.set):
        number = ours.fileno()
        eventually(lambda: watch._watched)
        watch._watched[number] = (closed, gone.set)
        theirs.close()
        assert not gone.wait(0.1)
    ours, theirs = socket.socketpair()
    with ours, watching(watch, ours, gone.set):
        theirs.close()
        assert gone.wait(60)


def test_the_callback_may_be_set_later() -> None:
    """It is called at once if the client has already disconnected."""
    for early in (False, True):
        ours, theirs = socket.socketpair()
        ended = threading.Event()
        disconnect = Disconnect(ours)
        assert not disconnect.wait(0.01)
        if early:
            disconnect.on_disconnect(ended.set)
        theirs.close()
        assert disconnect.wait(60)
        assert disconnect.has_happened
        if not early:
            disconnect.on_disconnect(ended.set)
        assert ended.wait(60)
        disconnect.close()
        disconnect.close()
        ours.close()


def test_without_a_connection_no_disconnect_is_noticed() -> None:
    """Not every server passes the connection on."""
    disconnect = Disconnect(None)
    assert not disconnect.wait(0.01)
    disconnect.close()
