"""The engine that all workers share: Redis or Valkey, one script call a decision."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, Final

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import StorageFull, StorageUnavailable
from ratelimit_ext.core.key import beside, is_beside
from ratelimit_ext.engine.arguments import TEXTS, Arguments, Script, hold_words
from ratelimit_ext.engine.connection import ScriptConnections
from ratelimit_ext.engine.engine import Marker
from ratelimit_ext.engine.sentinel import MasterWatch
from ratelimit_ext.engine.verdicts import Reply, applied, key_of, merged

#: Workers that return to the server within this time of each other return together.
NOTE_MS: Final = 2000
#: How many names one SCAN step looks at, and how many are deleted at once.
SCAN_COUNT: Final = 1000
#: Behind the number of holds in a bucket's string (1 byte) and beside it (3), and two instants
#: (7 each): the id of the first hold (6), 0 for the mark of an unseen call. See reservations.lua.
_HEAD: Final = slice(18, 24)


class RedisEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` over a redis-py (or valkey-py) client.

    ``errors`` are the client's exceptions for a storage that cannot serve; ``prefix`` begins every
    key. The server's clock decides.
    """

    def __init__(
        self,
        client: Any,
        errors: type[Exception] | tuple[type[Exception], ...],
        *,
        prefix: str = "LIMITS",
    ) -> None:
        self._client = client
        self._note = f"{prefix}:recovery"
        pool = getattr(client, "connection_pool", None)
        if hasattr(pool, "sentinel_manager"):
            MasterWatch(pool)
        self._connections = ScriptConnections(client)
        self._errors = errors
        self._arguments = Arguments()

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        if not charges:
            return Decision(admitted=True, now_us=self._arguments.read_clock(now_us), verdicts=())
        charges = merged(charges)
        script, *lists = self._arguments.admission(charges, now_us)
        keys, taken = list(map(key_of, charges)), "1" if take else "0"
        now, held = "" if now_us is None else now_us, hold_words(hold) if hold.id else ()
        reply = self._evaluate(script, keys, now, taken, *lists, *held)
        if now_us is None:
            self._arguments.ahead_us = reply[0] - clock.now_us()
        if reply[1] < 0:
            raise StorageFull(charges[-reply[1] - 1].key)
        return Reply(charges, reply, take=take)

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        if not changes:
            return 0
        script, *lists = self._arguments.settlement(changes, now_us)
        keys = [change.charge.key for change in changes]
        arguments = ["" if now_us is None else now_us, *lists]
        if once is not None:
            keys.append(once.key)
            arguments.append(once.for_us)
        return applied(changes, self._evaluate(script, keys, *arguments))

    def clear(self, keys: Sequence[str]) -> int:
        if not keys:
            return 0
        try:
            dropped = int(self._connections.ask(self._client.delete, *keys))
            self._connections.ask(self._client.delete, *chain(*map(beside, keys)))
        except self._errors as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error
        return dropped

    def reset(self, prefix: str) -> int:
        """See :meth:`Engine.reset`. By SCAN and UNLINK, so that the server is not blocked."""
        dropped, names = 0, stored_names(self._client, prefix)
        try:
            while batch := list(islice(names, SCAN_COUNT)):
                dropped += self._client.unlink(*batch) - sum(map(is_beside, batch))
        except self._errors as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error
        return dropped

    def probe(self) -> int:
        """See :meth:`StorageEngine.probe`. A full server serves, too."""
        try:
            with self._connections.deadline():
                self._client.ping()  # if its answers are too late, it must not begin a recovery
            with self._connections.deadline():
                return int(self._client.eval(TEXTS["recovery"], 1, self._note, NOTE_MS))
        except self._errors as error:
            if "maxmemory" in str(error):
                return NOTE_MS * 1000
            raise StorageUnavailable(f"the storage failed: {error}") from error

    def _evaluate(self, script: Script, keys: list[str], *arguments: int | str) -> Any:
        client, lines = self._client, self._connections
        try:
            try:
                reply = lines.run(script, keys, arguments)
                if reply is None:
                    reply = lines.ask(client.evalsha, script.sha, len(keys), *keys, *arguments)
            except self._errors as error:
                # By name: the class is redis-py's or valkey-py's. Nothing was executed, so a retry
                # cannot charge twice. EVAL also loads the script.
                if type(error).__name__ != "NoScriptError":
                    raise
                reply = lines.ask(client.eval, script.text, len(keys), *keys, *arguments)
        except self._errors as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error
        return reply


# -- the names of buckets, for commands: no request looks for names -----------------------------


def stored_names(
    client: Any, prefix: str, *, ask: Callable[[Callable[[], Any]], Any] = operator.call
) -> Iterator[str]:
    """Yield the names that begin with the prefix, by SCAN, which does not block the server; on a
    cluster, of all masters. One may come twice. ``ask`` calls each step: it may repeat one that
    failed. Raises the client's errors."""
    pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
    masters = getattr(client, "get_primaries", None)
    for options in [{}] if masters is None else [{"target_nodes": node} for node in masters()]:
        step, cursor = partial(client.scan, match=pattern, count=SCAN_COUNT, **options), 0
        while True:
            reply, names = ask(partial(step, cursor))
            yield from [n if isinstance(n, str) else n.decode("utf-8", "replace") for n in names]
            cursor = sum(reply.values()) if options else reply  # of one node
            if not cursor:
                break


def held_calls(client: Any, keys: Sequence[str]) -> list[int]:
    """Return how many calls hold an estimate in each of these buckets, whose limits reserve, in one
    round trip. Raises the client's errors."""
    with client.pipeline(transaction=False) as commands:
        for key in keys:
            commands.getrange(key, 0, _HEAD.stop - 1)
        heads = list(map(_bytes, commands.execute()))
    counts = [int.from_bytes(raw[1:4], "little") + sum(raw[:1]) for raw in heads]
    marks = [sum(raw[:1]) > 0 and raw[_HEAD] == bytes(6) for raw in heads]
    return [count - mark for count, mark in zip(counts, marks, strict=True)]


def _bytes(raw: str | bytes) -> bytes:
    return raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape")
