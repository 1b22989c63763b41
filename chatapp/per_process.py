"""A thing that each process makes for itself: a client, a thread, whatever a fork would break."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A client made at its first use, once in each process.

    Sockets and locks that a fork copies are shared by accident; so nothing is opened before
    gunicorn has forked, and a child never uses what its parent opened.
    """

    def __init__(self, create: Callable[[], T]) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        """This process's client; safe from any thread."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), self._create())
            return self._made[1]
