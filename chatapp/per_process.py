"""A client or a thread that each process makes for itself, because a fork would break it."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Kept, because asking the system takes a system call.
_process_id = os.getpid()


def _note_fork() -> None:
    global _process_id  # noqa: PLW0603
    _process_id = os.getpid()


os.register_at_fork(after_in_child=_note_fork)


class PerProcess(Generic[T]):
    """A thing made at its first use, once in each process.

    Sockets, locks and threads do not survive a fork; so nothing is opened before gunicorn has
    forked. ``close`` is called at the end of a process with what that process made.
    """

    def __init__(
        self, create: Callable[[], T], *, close: Callable[[T], object] | None = None
    ) -> None:
        self._create = create
        self._close = close
        self._lock = threading.Lock()
        self._made: tuple[int, T] | None = None
        # A fork copies this, and what atexit has registered.
        self._ends_with_process = False

    def get(self) -> T:
        """This process's thing; safe from any thread."""
        made = self._made
        if made is not None and made[0] == _process_id:
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != _process_id:
                self._made = (_process_id, self._create())
                if self._close is not None and not self._ends_with_process:
                    atexit.register(self.close)
                    self._ends_with_process = True
            return self._made[1]

    def close(self) -> None:
        """Close what this process made, if it made anything."""
        made = self._made
        if self._close is not None and made is not None and made[0] == _process_id:
            self._close(made[1])
            atexit.unregister(self.close)  # which would keep it
            self._ends_with_process = False
