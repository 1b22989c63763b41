"""Clients that leave are noticed while nothing is written to them, and no others are."""

from __future__ import annotations

import socket
import threading

import pytest

from chatapp.calls.disconnect import IS_SUPPORTED, Disconnect, DisconnectWatch

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="only Linux tells of it")


def test_a_client_that_closes_is_gone() -> None:
    """At once, and once."""
    gone = threading.Event()
    ours, theirs = socket.socketpair()
    with ours, DisconnectWatch().watching(ours, gone.set):
        theirs.close()
        assert gone.wait(5)


def test_a_client_that_sends_its_next_request_is_not() -> None:
    """What it sent stays where the server will read it."""
    gone = threading.Event()
    ours, theirs = socket.socketpair()
    with ours, theirs, DisconnectWatch().watching(ours, gone.set):
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        assert not gone.wait(0.2)
        assert ours.recv(100) == b"GET / HTTP/1.1\r\n"


def test_whatever_it_sent_before_it_left() -> None:
    """As the farewell of TLS, which is bytes like others to who does not read them."""
    gone = threading.Event()
    ours, theirs = socket.socketpair()
    with ours, DisconnectWatch().watching(ours, gone.set):
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        theirs.close()
        assert gone.wait(5)


def test_after_the_block_nobody_is_told() -> None:
    """The number of a closed connection is soon another's."""
    gone = threading.Event()
    watch = DisconnectWatch()
    ours, theirs = socket.socketpair()
    with watch.watching(ours, gone.set):
        pass
    ours.close()
    theirs.close()
    other, theirs = socket.socketpair()
    with other, theirs, watch.watching(other, gone.set):
        assert not gone.wait(0.1)


def test_a_mistake_in_one_call_does_not_end_the_watch() -> None:
    """The next client is noticed all the same."""

    failed, gone = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise RuntimeError("oops")

    watch = DisconnectWatch()
    for told, happened in ((fail, failed), (gone.set, gone)):
        ours, theirs = socket.socketpair()
        with ours, watch.watching(ours, told):
            theirs.close()
            assert happened.wait(5)


def test_what_ends_with_a_client_may_be_told_later() -> None:
    """At first there is nothing to end; whoever has left by then ends it at once."""
    for early in (False, True):
        ours, theirs = socket.socketpair()
        ended = threading.Event()
        disconnect = Disconnect(ours)
        assert not disconnect.wait(0.01)
        if early:
            disconnect.on_disconnect(ended.set)
        theirs.close()
        assert disconnect.wait(5)
        assert disconnect.has_happened
        if not early:
            disconnect.on_disconnect(ended.set)
        assert ended.wait(5)
        disconnect.close()
        disconnect.close()
        ours.close()


def test_a_client_whom_nobody_knows_never_leaves() -> None:
    """Not every server says which connection a request came by."""
    disconnect = Disconnect(None)
    assert not disconnect.wait(0.01)
    disconnect.close()
