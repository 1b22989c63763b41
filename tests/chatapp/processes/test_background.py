"""The background thread: requests never wait for it, memory is bounded, losses are reported."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from chatapp.background import BackgroundSender, Patience

WAIT_S = 10
NEVER_S = 3600
BATCH = 500
Sender = BackgroundSender[str, str]


class Receiver:
    """Keeps what it gets; can be slow, unavailable, or refuse one key."""

    def __init__(self) -> None:
        self.sent: list[dict[str, str]] = []
        self.lost: list[tuple[str, str]] = []
        self.failures = 0
        self.refused: str | None = None
        self.attempts = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def send(self, values: Mapping[str, str]) -> bool:
        accepts = not self.failures and self.refused not in values
        self.failures -= self.failures > 0
        self.attempts.release()
        assert self.gate.wait(WAIT_S)
        if accepts:
            self.sent.append(dict(values))
        return accepts

    def lose(self, key: str, value: str) -> None:
        self.lost.append((key, value))

    def was_asked(self) -> bool:
        """Wait until `send` was called once more."""
        return self.attempts.acquire(timeout=WAIT_S)


Make = Callable[..., Sender]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def make(receiver: Receiver) -> Iterator[Make]:
    """Makes senders to the receiver; without arguments, one that sends only when flushed."""
    made = []

    def sender(
        send: Callable[[Mapping[str, str]], bool] = receiver.send,
        *,
        linger_s: float = NEVER_S,
        batch: int = BATCH,
        most: int = 10_000,
        **patience: float,
    ) -> Sender:
        made.append(
            BackgroundSender(
                "test",
                send,
                merge=lambda earlier, later: earlier + later,
                lose=receiver.lose,
                batch=batch,
                most=most,
                linger_s=linger_s,
                patience=Patience(
                    **{"first_s": NEVER_S, "longest_s": NEVER_S, "at_end_s": 0.2} | patience
                ),
            )
        )
        return made[-1]

    yield sender
    receiver.gate.set()
    for each in made:
        each.close()


def test_values_arrive(receiver: Receiver, make: Make) -> None:
    """All of them, soon, without a flush, in batches."""
    sender = make(linger_s=0)
    values = {str(number): "x" for number in range(1200)}
    for key, value in values.items():
        sender.put(key, value)
    assert sender.flush(WAIT_S)
    assert [pair for batch in receiver.sent for pair in batch.items()] == list(values.items())
    assert max(map(len, receiver.sent)) <= BATCH
    assert sender.flush(0)  # nothing is left
    assert receiver.lost == []


def test_values_of_a_key_are_merged(receiver: Receiver, make: Make) -> None:
    """While they wait, each key's apart, and every batch within one round."""
    sender = make(batch=1)
    for letter in "abc":
        sender.put("one", letter)
        sender.put("two", letter.upper())
    assert receiver.sent == []
    assert sender.flush(WAIT_S)
    assert receiver.sent == [{"one": "abc"}, {"two": "ABC"}]


def test_a_slow_receiver_slows_no_caller(receiver: Receiver, make: Make) -> None:
    """`put` and `unsent` return while a send hangs; until it ends, its values are unsent."""
    sender = make()
    receiver.gate.clear()
    sender.put("one", "a")
    sender.flush(0)
    assert receiver.was_asked()
    sender.put("one", "b")
    sender.put("one", "c")
    assert sender.unsent("one") == "abc"
    assert sender.unsent("two") is None
    assert not sender.flush(0)
    receiver.gate.set()
    assert sender.flush(WAIT_S)
    assert sender.unsent("one") is None
    assert receiver.sent == [{"one": "a"}, {"one": "bc"}]


def test_what_does_not_arrive_is_sent_again(receiver: Receiver, make: Make) -> None:
    """Merged with later values, when the receiver is available again."""
    sender = make()
    receiver.failures = 1
    sender.put("one", "a")
    sender.flush(0)
    assert receiver.was_asked()
    sender.put("one", "b")
    assert sender.unsent("one") == "ab"
    assert sender.flush(WAIT_S)
    assert receiver.sent == [{"one": "ab"}]


def test_it_retries_without_further_values(receiver: Receiver, make: Make) -> None:
    """After pauses, as long as the patience lasts."""
    sender = make(linger_s=0, first_s=0.001, longest_s=0.002)
    receiver.failures = 5
    sender.put("one", "a")
    assert all(receiver.was_asked() for _ in range(6))
    assert sender.flush(WAIT_S)
    assert receiver.sent == [{"one": "a"}]


def test_after_the_patience_values_are_lost(receiver: Receiver, make: Make) -> None:
    """They are reported, and later values are sent again."""
    sender = make(linger_s=0, first_s=0.001, longest_s=0.002, whole_s=0.05)
    receiver.failures = 1_000_000
    sender.put("one", "a")
    assert sender.flush(WAIT_S)
    assert receiver.lost == [("one", "a")]
    receiver.failures = 0
    sender.put("two", "b")
    assert sender.flush(WAIT_S)
    assert receiver.sent == [{"two": "b"}]


def test_values_without_room_are_lost(receiver: Receiver, make: Make) -> None:
    """Memory is bounded; a key that waits has room for its next value."""
    sender = make(most=2)
    for key in ("one", "two", "three", "one"):
        sender.put(key, key[0])
    assert receiver.lost == [("three", "t")]
    assert sender.flush(WAIT_S)
    assert receiver.sent == [{"one": "oo", "two": "t"}]


def test_a_refused_key_does_not_block_the_others(receiver: Receiver, make: Make) -> None:
    """It is sent again after them."""
    sender = make(batch=1)
    receiver.refused = "one"
    sender.put("one", "a")
    sender.put("two", "b")
    for _ in range(2):
        sender.flush(0)
        assert receiver.was_asked()
    receiver.refused = None
    assert sender.flush(WAIT_S)
    assert receiver.sent == [{"two": "b"}, {"one": "a"}]


def test_an_exception_does_not_end_the_thread(
    receiver: Receiver, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it once, the values are reported as lost, and the next ones are sent."""

    def send(values: Mapping[str, str]) -> bool:
        if not caplog.records:
            raise RuntimeError("unforeseen")
        return receiver.send(values)

    sender = make(send, linger_s=0)
    with caplog.at_level(logging.ERROR):
        sender.put("one", "a")
        assert sender.flush(WAIT_S)
        sender.put("two", "b")
        assert sender.flush(WAIT_S)
    assert (receiver.lost, receiver.sent) == ([("one", "a")], [{"two": "b"}])
    assert len(caplog.records) == 1


def test_the_end_sends_what_waits(receiver: Receiver, make: Make) -> None:
    """All batches, at once; later values are lost, and a second end changes nothing."""
    sender = make()
    for number in range(BATCH + 1):
        sender.put(str(number), "x")
    sender.close()
    assert [len(batch) for batch in receiver.sent] == [BATCH, 1]
    sender.put("late", "x")
    sender.close()
    assert receiver.lost == [("late", "x")]


def test_the_end_retries_within_its_time(receiver: Receiver, make: Make) -> None:
    """A short outage at the end of the process loses nothing; a long one is reported."""
    sender = make(first_s=0.001, longest_s=0.001)
    receiver.failures = 3
    sender.put("one", "a")
    sender.close()
    assert (receiver.sent, receiver.lost) == ([{"one": "a"}], [])
    sender = make(first_s=0.001, longest_s=0.001, batch=1)
    receiver.failures = 1_000_000
    sender.put("two", "b")
    sender.put("three", "c")
    sender.close()
    assert sorted(receiver.lost) == [("three", "c"), ("two", "b")]


def test_the_end_without_time_tries_once(receiver: Receiver, make: Make) -> None:
    """The values that an unavailable receiver does not take are lost."""
    sender = make(batch=1, at_end_s=0)
    receiver.failures = 1_000_000
    sender.put("one", "a")
    sender.put("two", "b")
    sender.close()
    assert receiver.was_asked()
    assert not receiver.attempts.acquire(blocking=False)
    assert receiver.lost == [("one", "a"), ("two", "b")]


def test_the_end_does_not_wait_forever(receiver: Receiver, make: Make) -> None:
    """A receiver that hangs does not keep the process; its values are reported as lost."""
    sender = make(at_end_s=0)
    receiver.gate.clear()
    sender.put("one", "a")
    sender.close()
    assert receiver.was_asked()
    assert receiver.lost == [("one", "a")]
    assert not sender.flush(0)  # it still hangs
