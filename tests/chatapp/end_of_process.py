"""The end of a process, as an application sees it, at the end of a test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from chatapp import per_process

Call = Callable[[], object]


class _AtExit:
    """In place of `atexit`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def register(self, call: Call) -> None:
        self.calls.append(call)

    def unregister(self, call: Call) -> None:
        if call in self.calls:
            self.calls.remove(call)


@contextmanager
def end_of_process() -> Iterator[None]:
    """What applications begin within the block, such as threads that write, ends with it, and not
    with the test run: it would keep the applications, and log in later tests."""
    exit_ = _AtExit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(per_process, "atexit", exit_)
        yield
        for call in reversed(exit_.calls.copy()):
            call()
