"""The sender's thread: never in anybody's way, and what it keeps is bounded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping

import pytest

from chatapp.estimates.histogram import MOST_CALLS
from chatapp.estimates.sender import Sender

WAIT_S = 10
NEVER_S = 3600


class Server:
    """Keeps calls by model and bucket; can be slow, away, or dislike one of the models."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[int, int]]] = []
        self.is_away = False
        self.dislikes: str | None = None
        self.attempts = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def send(self, slug: str, calls: Mapping[int, int]) -> bool:
        takes_it = not self.is_away and slug != self.dislikes
        self.attempts.release()
        assert self.gate.wait(WAIT_S)
        if takes_it:
            self.sent.append((slug, dict(calls)))
        return takes_it

    def was_asked(self) -> bool:
        """Wait until it was asked once more."""
        return self.attempts.acquire(timeout=WAIT_S)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def sender(server: Server) -> Iterator[Sender]:
    """One that sends what waits when a test says so, and not before."""
    sender = Sender(server.send, every_s=NEVER_S)
    yield sender
    server.gate.set()
    sender.close()


def test_calls_arrive(server: Server) -> None:
    """Soon, without anybody asking."""
    sender = Sender(server.send, every_s=0)
    sender.note("gpt-4o", 3)
    assert server.was_asked()
    assert sender.flush(WAIT_S)
    assert server.sent == [("gpt-4o", {3: 1})]
    sender.close()


def test_calls_of_a_model_arrive_together(server: Server, sender: Sender) -> None:
    """However many they are, and in whatever order; each model's are apart."""
    for bucket in [3, 7, 3] * 100:
        sender.note("gpt-4o", bucket)
        sender.note("gpt-4.1", bucket + 1)
    assert server.sent == []
    assert sender.flush(WAIT_S)
    assert server.sent == [("gpt-4o", {3: 200, 7: 100}), ("gpt-4.1", {4: 200, 8: 100})]
    assert sender.flush(0)  # there is nothing more


def test_a_slow_server_slows_nobody(server: Server, sender: Sender) -> None:
    """`note` and `unsent` come back while a call is on its way; until it is there, it is unsent."""
    server.gate.clear()
    sender.note("gpt-4o", 3)
    sender.flush(0)
    assert server.was_asked()
    sender.note("gpt-4o", 3)
    sender.note("gpt-4o", 4)
    assert sender.unsent("gpt-4o") == {3: 2, 4: 1}
    assert sender.unsent("gpt-4.1") == {}
    assert not sender.flush(0)
    server.gate.set()
    assert sender.flush(WAIT_S)
    assert sender.unsent("gpt-4o") == {}
    assert server.sent == [("gpt-4o", {3: 1}), ("gpt-4o", {3: 1, 4: 1})]


def test_what_does_not_arrive_is_sent_again(server: Server, sender: Sender) -> None:
    """With what was noted meanwhile, when the server is back."""
    server.is_away = True
    sender.note("gpt-4o", 3)
    sender.flush(0)
    assert server.was_asked()
    sender.note("gpt-4o", 4)
    assert sender.unsent("gpt-4o") == {3: 1, 4: 1}
    server.is_away = False
    assert sender.flush(WAIT_S)
    assert server.sent == [("gpt-4o", {3: 1, 4: 1})]


def test_it_tries_again_by_itself(server: Server) -> None:
    """Nobody has to note anything for what waits to be sent."""
    server.is_away = True
    sender = Sender(server.send, every_s=0)
    sender.note("gpt-4o", 3)
    assert all(server.was_asked() for _ in range(3))
    server.is_away = False
    assert sender.flush(WAIT_S)
    assert server.sent == [("gpt-4o", {3: 1})]
    sender.close()


def test_an_outage_is_bounded(server: Server, sender: Sender) -> None:
    """Of each model the last thousand calls are kept, whether they were tried or not; who is asked
    seldom loses nothing to who is asked often."""
    server.is_away = True
    for _ in range(MOST_CALLS):
        sender.note("gpt-4o", 1)
    sender.note("gpt-4.1", 5)
    sender.flush(0)
    assert server.was_asked()
    for _ in range(MOST_CALLS - 1):
        sender.note("gpt-4o", 2)
    assert sender.unsent("gpt-4o") == {1: 1, 2: MOST_CALLS - 1}
    server.is_away = False
    assert sender.flush(WAIT_S)
    assert dict(server.sent) == {"gpt-4.1": {5: 1}, "gpt-4o": {1: 1, 2: MOST_CALLS - 1}}


def test_one_models_trouble_is_not_the_others(server: Server, sender: Sender) -> None:
    """What is refused goes to the end of the row."""
    server.dislikes = "gpt-4o"
    sender.note("gpt-4o", 3)
    sender.note("gpt-4.1", 3)
    sender.flush(0)
    assert server.was_asked()
    sender.flush(0)
    assert server.was_asked()
    server.dislikes = None
    assert sender.flush(WAIT_S)
    assert server.sent == [("gpt-4.1", {3: 1}), ("gpt-4o", {3: 1})]


def test_a_failure_of_ours_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is raised, the log has it once, and the next call is sent."""
    sent: list[str] = []

    def send(slug: str, calls: Mapping[int, int]) -> bool:
        if not caplog.records:
            raise RuntimeError("unforeseen")
        sent.append(slug)
        return True

    sender = Sender(send, every_s=0)
    with caplog.at_level(logging.ERROR):
        sender.note("gpt-4o", 3)
        assert sender.flush(WAIT_S)
        sender.note("gpt-4.1", 3)
        assert sender.flush(WAIT_S)
    assert sent == ["gpt-4.1"]
    assert len(caplog.records) == 1
    sender.close()


def test_the_end_sends_what_waits(server: Server, sender: Sender) -> None:
    """However little time has passed; an end that comes twice is one."""
    sender.note("gpt-4o", 3)
    sender.note("gpt-4.1", 3)
    sender.close()
    assert server.sent == [("gpt-4o", {3: 1}), ("gpt-4.1", {3: 1})]
    sender.close()


def test_the_end_asks_a_server_that_is_away_once(server: Server, sender: Sender) -> None:
    """What it does not take is lost: the process ends."""
    server.is_away = True
    sender.note("gpt-4o", 3)
    sender.note("gpt-4.1", 3)
    sender.close()
    assert server.was_asked()
    assert not server.attempts.acquire(blocking=False)


def test_the_end_does_not_wait_for_ever(server: Server) -> None:
    """A server that hangs does not keep the process."""
    sender = Sender(server.send, every_s=NEVER_S, at_end_s=0.05)
    server.gate.clear()
    sender.note("gpt-4o", 3)
    sender.close()
    assert server.was_asked()
    assert not sender.flush(0)  # it hangs yet
    server.gate.set()
