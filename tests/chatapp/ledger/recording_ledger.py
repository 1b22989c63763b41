"""A ledger that only remembers."""

import threading

from chatapp.ledger.call import Call


class RecordingLedger:
    """Records calls; `finished` waits until a number of them is over."""

    def __init__(self) -> None:
        self.begun: list[Call] = []
        self._finished: list[Call] = []
        self._changed = threading.Condition()

    def begin(self, call: Call) -> None:
        self.begun.append(call)

    def finish(self, call: Call) -> None:
        with self._changed:
            self._finished.append(call)
            self._changed.notify_all()

    def billed(self) -> Call:
        """The only call that is over, once there is one. It has a usage."""
        [call] = self.finished()
        assert call.usage is not None
        return call

    def finished(self, count: int = 1) -> list[Call]:
        """The calls that are over, once there are that many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._finished) >= count, timeout=10)
            return list(self._finished)
