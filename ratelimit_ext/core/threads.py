"""Threads in the background, and what a forked child does without them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakSet


class Forgets(Protocol):
    def forget(self) -> None:
        """Start over, in a forked child: threads and locks have stayed in the parent."""
        ...


_logger = logging.getLogger("ratelimit_ext")
_forgetful: Final[WeakSet[Forgets]] = WeakSet()


def forget_in_child(owner: Forgets) -> None:
    """Let the object forget in each child that this process forks."""
    _forgetful.add(owner)


def forget_all() -> None:
    for owner in tuple(_forgetful):
        try:
            owner.forget()
        except Exception:  # the others do nevertheless
            _logger.exception("After a fork, %r could not start over", owner)


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=forget_all)


def start_thread(name: str, work: Callable[..., object], *words: object) -> threading.Thread | None:
    """Start a thread that ends with the process. ``None`` if there can be no more threads, or the
    interpreter ends: the next caller tries."""
    thread = threading.Thread(target=work, args=words, name=f"ratelimit-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
