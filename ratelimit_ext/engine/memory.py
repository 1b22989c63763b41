"""The engine that keeps its buckets in this process: for tests, the fallback and one worker.

It runs the same Lua as a server, in LuaJIT, or in Lua 5.1 where there is no LuaJIT. ``world.lua``
is what the scripts see of a server.

Not for: several workers. Each of them would have its own limits.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Final, TypeAlias

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.errors import ConfigurationError, StorageFull
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.arguments import TEXTS, Arguments, Script, hold_words
from ratelimit_ext.engine.engine import Marker
from ratelimit_ext.engine.verdicts import Reply, applied, key_of, merged
from ratelimit_ext.engine.wake_ups import wake_ups

#: The buckets of a process, in about 100 MB. Beyond them it is full, like a server with maxmemory.
MOST_BUCKETS: Final = 200_000
#: How many calls pass between two looks for expired buckets.
SWEEP_EVERY: Final = 1024
#: Where our buckets are kept in a stock memory storage, so that its ``reset`` drops them.
_OWN: Final = "ratelimit_ext"

NO_LUA: Final = (
    "Limits in memory need the library lupa, which cannot be imported (%s). Install it with: pip "
    "install lupa. It has wheels for Linux, macOS and Windows; elsewhere pip needs a C compiler."
)
#: A bucket outside of memory: all of it, and when it expires. ``None``: no bucket.
Kept: TypeAlias = tuple[bytes, int] | None


class UnreadableBucket(ValueError):
    """A state that no engine has made."""


class _Lua:
    """The Lua of this process. Lua runs one call at a time, and lets other threads run meanwhile,
    so every use of it is under :attr:`lock`. A fork waits until no call runs."""

    def __init__(self) -> None:
        self.lock: Final = threading.RLock()
        self.error: type[Exception] = Exception
        self._functions: dict[str, Callable[..., Any]] = {}
        if hasattr(os, "register_at_fork"):  # where processes fork
            release = self.lock.release
            os.register_at_fork(
                before=self.lock.acquire, after_in_parent=release, after_in_child=release
            )

    @cached_property
    def world(self) -> Any:
        """What ``world.lua`` returns: functions by their names."""
        implementation = _implementation()
        self.error = implementation.LuaError
        runtime = implementation.LuaRuntime(
            encoding="latin-1", register_eval=False, register_builtins=False
        )
        return runtime.execute(TEXTS["world"])

    def function(self, script: Script) -> Callable[..., Any]:
        function = self._functions.get(script.function)
        if function is None:
            library = script.library.partition("\n")[2]
            function = self._functions[script.function] = self.world.load(library, script.function)
        return function


def _implementation() -> Any:
    """Return LuaJIT, or Lua 5.1 in its place. Imported only where Lua is needed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("lupa.luajit21")
    try:
        return importlib.import_module("lupa.lua51")
    except ImportError as error:
        raise ConfigurationError(NO_LUA % error) from error


_lua: Final = _Lua()


def load_lua() -> None:
    """Load Lua now: in an outage there may be no file descriptor left to read it. Raises
    ``ConfigurationError`` without the library."""
    with _lua.lock:
        assert _lua.world


class Buckets:
    """Buckets by name, until they expire: at most so many, of which those that have expired are
    dropped once in so many calls. ``ring`` is called with the ids of those whose turn it may be."""

    def __init__(
        self,
        *,
        most: float | None = None,
        sweep_every: int = SWEEP_EVERY,
        ring: Callable[[int], object] = wake_ups.wake,
    ) -> None:
        self.lock: AbstractContextManager[Any] = _lua.lock
        self._world_words = most or MOST_BUCKETS, sweep_every, ring

    @cached_property
    def _world(self) -> Any:
        return _lua.world.new_world(*self._world_words)

    def evaluate(
        self, script: Script, keys: Sequence[str], now_us: int, *words: Any
    ) -> Sequence[Any]:
        words = (*words, *[None] * 8)[:8]
        with _lua.lock:
            function = _lua.function(script)
            # As a float, since it may be beyond the integers of C.
            reply: Any = function(self._world, float(now_us), *words, *map(str.encode, keys))
        if isinstance(reply, tuple):
            return reply
        return () if reply is None else (reply,)

    def drop(self, keys: Sequence[str]) -> int:
        """Forget these buckets; returns how many there were."""
        with _lua.lock:  # one by one: Lua takes 8,000 arguments at most
            return sum([_lua.world.clear(self._world, key.encode()) for key in keys])

    def named(self, prefix: str) -> list[str]:
        with _lua.lock:
            names = list(_lua.world.names(self._world, prefix.encode()).values())
        return [name.encode("latin-1").decode() for name in names]

    def take_out(self, keys: Sequence[str]) -> list[Kept]:
        """Remove buckets, and return what :meth:`put_back` takes."""
        with _lua.lock:
            found = _lua.world.take_out(self._world, *map(str.encode, keys)) if keys else ()
        texts = zip(found[::2], found[1::2], strict=True)
        return [(text.encode("latin-1"), expiry_us) if text else None for text, expiry_us in texts]

    def put_back(self, kept: Iterable[tuple[str, Kept]]) -> None:
        """Put buckets back, by their names. Raises :class:`UnreadableBucket`."""
        words = [word for key, each in kept if each is not None for word in (key.encode(), *each)]
        with _lua.lock:
            try:
                _lua.world.put_back(self._world, *words)
            except _lua.error as error:
                raise UnreadableBucket(f"not the state of a bucket: {error}") from error


def without_line(text: bytes) -> bytes:
    """Return the text of a kept bucket (``text_of`` in ``world.lua``) without its line, whose
    tickets have the ids of calls, too."""
    begin = ending = 0 if text.startswith(b"v") else 1
    for _ in range(3 * ending):  # the line is the third part
        begin = text.index(b":", ending) + 1
        ending = begin + int(text[ending : begin - 1])
    return text[:begin] + text[ending:]


def kept_in(others: dict[str, Any]) -> Callable[[], Buckets]:
    """Return what finds buckets beside others, whose owner may clear them."""
    return lambda: others.get(_OWN) or others.setdefault(_OWN, Buckets())


class MemoryEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` over :class:`Buckets`.

    ``buckets`` is called at each use, so that their owner may replace them. ``now_us`` replaces the
    process's clock.
    """

    def __init__(
        self,
        buckets: Callable[[], Buckets] | None = None,
        *,
        now_us: Callable[[], int] = lambda: clock.now_us(),  # noqa: PLW0108 - tests replace it
    ) -> None:
        own = Buckets()
        self._buckets = buckets or (lambda: own)
        self._now_us = now_us
        self._arguments = Arguments()

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Reply:
        charges, buckets = merged(charges), self._buckets()
        with buckets.lock:
            now = self._now_us() if now_us is None else now_us
            script, *lists = self._arguments.admission(charges, now)
            taken, keys = "1" if take else "0", [*map(key_of, charges)]
            reply = buckets.evaluate(script, keys, now, taken, *lists, *hold_words(hold))
        if reply[1] < 0:
            raise StorageFull(charges[-reply[1] - 1].key)
        decision = Reply(charges, reply, take=take)
        decision.now_us = now  # a number of Lua is exact only below 2 ** 53
        return decision

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        if not changes:
            return 0
        buckets, keys = self._buckets(), [change.charge.key for change in changes]
        lasts = () if once is None else (once.for_us,)
        if once is not None:
            keys.append(once.key)
        with buckets.lock:
            now = self._now_us() if now_us is None else now_us
            script, *lists = self._arguments.settlement(changes, now)
            reply = buckets.evaluate(script, keys, now, *lists, *lasts)
        return applied(changes, reply)

    def hand_over(self, limit: Limit, key: str) -> list[tuple[Hold, int, int]]:
        """Take the calls in flight out of a bucket, for another engine. Returns the hold of each,
        what it holds, and what is spent of it; a hold whose lease is over has no lease left, so
        that only a settlement can reach it."""
        if not limit.held:
            return []
        buckets = self._buckets()
        with buckets.lock:
            now = self._now_us()
            script, words = self._arguments.alone("hand_over", limit, now)
            (reply,) = buckets.evaluate(script, [key], now, words)
        numbers = map(int, reply.split())
        return [
            (Hold(hold_id, max(1, deadline - now)), amount, spent)
            for hold_id, deadline, amount, spent in zip(*[numbers] * 4, strict=True)
        ]

    def clear(self, keys: Sequence[str]) -> int:
        return self._buckets().drop(keys)

    def reset(self, prefix: str) -> int:
        buckets = self._buckets()
        with buckets.lock:
            return buckets.drop(buckets.named(prefix))
