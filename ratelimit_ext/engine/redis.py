"""The engine that all workers share: Redis or Valkey, one script call a decision."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from ratelimit_ext.core import clock
from ratelimit_ext.core.charge import NO_HOLD, Change, Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import StorageFull, StorageUnavailable
from ratelimit_ext.core.key import HOLDS, holds_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.connection import ScriptConnections
from ratelimit_ext.engine.engine import ONCE_US
from ratelimit_ext.engine.names import SCAN_COUNT, stored_names
from ratelimit_ext.engine.scripts import Script, composed
from ratelimit_ext.engine.verdicts import Reply, merged, sent_cost
from ratelimit_ext.strategies import strategy_of
from ratelimit_ext.strategies.strategy import Strategy

#: Workers that return to the server within this time of each other return together.
NOTE_MS: Final = 2000
RECOVERY: Final = (files("ratelimit_ext.engine") / "recovery.lua").read_text("utf-8")

#: For how many limits an engine keeps the words.
MOST_WORDS: Final = 4096


class RedisEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` over a redis-py (or valkey-py) client.

    ``errors`` are the client's exceptions for a storage that cannot serve; ``prefix`` begins every
    key. The server's clock decides. Windows of the calendar are computed here, by that clock as of
    its last reply.
    """

    gives_back: Final = True

    def __init__(
        self,
        client: Any,
        errors: type[Exception] | tuple[type[Exception], ...],
        *,
        prefix: str = "LIMITS",
    ) -> None:
        self._client = client
        self._note = f"{prefix}:recovery"
        self._connections = ScriptConnections(client)
        self._errors = errors
        #: By how much the server's clock is ahead of this one.
        self._ahead_us = 0
        self._words: dict[int, tuple[Strategy, str, Limit]] = {}
        #: The same for a charge of a limit and a cost, up to its hold.
        self._ready: dict[tuple[int, int], tuple[Strategy, str, Limit]] = {}

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        """See :meth:`Engine.admit`. One EVALSHA for any number of charges."""
        if not charges:
            return Decision(admitted=True, now_us=self._read_clock(now_us), verdicts=())
        charges = merged(charges)
        strategies, words = [], []
        for charge in charges:
            limit, _, cost, is_meta, _ = charge
            known = None if is_meta else self._ready.get((id(limit), cost))
            if known is None:
                strategy, parameters, _ = self._prepared(limit, now_us)
                stated = f'"{strategy.code}","{_part(charge)}",{sent_cost(charge)}{parameters}'
                known = strategy, stated, limit
                if not is_meta and limit.anchor is None:
                    if len(self._ready) >= MOST_WORDS:
                        self._ready.clear()
                    self._ready[id(limit), cost] = known
            strategies.append(known[0])
            words.append(f"{known[1]},{hold.id},{hold.lease_us}" if limit.held else known[1])
        reply = self._evaluate(
            composed("admit", tuple(strategies)),
            [charge.key for charge in charges],
            "" if now_us is None else now_us,
            "1" if take else "0",
            _json_list(words),
        )
        if now_us is None:
            self._ahead_us = reply[0] - clock.now_us()
        if reply[1] < 0:
            raise StorageFull(charges[-reply[1] - 1].key)
        return Reply(charges, reply, take=take)

    def settle(
        self,
        changes: Sequence[Change],
        *,
        once: str | None = None,
        once_for_us: int = ONCE_US,
        now_us: int | None = None,
    ) -> int:
        """See :meth:`Engine.settle`. One EVALSHA."""
        if not changes:
            return 0
        strategies, words = [], []
        for change in changes:
            limit, hold = change.charge.limit, change.hold
            strategy, parameters, _ = self._prepared(limit, now_us)
            strategy.check_change(change)
            strategies.append(strategy)
            numbers = change.numbers
            own = f",{hold.id},{hold.lease_us}" if limit.held else ""
            stated = "".join([f",{number}" for number in numbers])
            words.append(
                f'"{strategy.code}","{change.verb}",{len(numbers)}{stated}{parameters}{own}'
            )
        keys = [change.charge.key for change in changes]
        arguments = ["" if now_us is None else now_us, _json_list(words)]
        if once is not None:
            keys.append(once)
            arguments.append(once_for_us)
        return sum(self._evaluate(composed("settle", tuple(strategies)), keys, *arguments))

    def clear(self, keys: Sequence[str]) -> int:
        """See :meth:`Engine.clear`."""
        if not keys:
            return 0
        try:
            dropped = int(self._client.delete(*keys))
            self._client.delete(*map(holds_key, keys))
        except self._errors as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error
        return dropped

    def reset(self, prefix: str) -> int:
        """See :meth:`Engine.reset`. By SCAN and UNLINK, so that the server is not blocked."""
        dropped = 0
        try:
            batch: list[Any] = []
            for key in stored_names(self._client, prefix):
                batch.append(key)
                dropped -= key.endswith(HOLDS)
                if len(batch) == SCAN_COUNT:
                    dropped += self._client.unlink(*batch)
                    batch.clear()
            return dropped + (self._client.unlink(*batch) if batch else 0)
        except self._errors as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error

    def probe(self) -> int:
        """See :meth:`~ratelimit_ext.engine.breaker.Storage.probe`. A full server serves, too."""
        try:
            return int(self._client.eval(RECOVERY, 1, self._note, NOTE_MS))
        except self._errors as error:
            if "maxmemory" in str(error):
                return NOTE_MS * 1000
            raise StorageUnavailable(f"the storage failed: {error}") from error

    def _prepared(self, limit: Limit, now_us: int | None) -> tuple[Strategy, str, Limit]:
        """The strategy, and its own arguments as they follow other words of a script.

        They are kept, except with an anchor, whose windows depend on now. The key is the limit's
        ``id``, as hashing a limit takes longer than the rest of this; the entry holds the limit, so
        that no other gets its ``id``.
        """
        known = self._words.get(id(limit))
        if known is None:
            strategy = strategy_of(limit)
            now = 0 if limit.anchor is None else self._read_clock(now_us)
            parameters = "".join([f",{each}" for each in strategy.parameters(limit, now)])
            known = (strategy, parameters, limit)
            if limit.anchor is None:
                if len(self._words) >= MOST_WORDS:
                    self._words.clear()
                self._words[id(limit)] = known
        return known

    def _read_clock(self, now_us: int | None) -> int:
        return clock.now_us() + self._ahead_us if now_us is None else now_us

    def _evaluate(self, script: Script, keys: list[str], *arguments: int | str) -> Any:
        try:
            try:
                reply = self._connections.run(script, keys, arguments)
                if reply is None:
                    reply = self._client.evalsha(script.sha, len(keys), *keys, *arguments)
            except self._errors as error:
                # By name: the class is redis-py's or valkey-py's. Nothing was executed, so a retry
                # cannot charge twice. EVAL also loads the script.
                if type(error).__name__ != "NoScriptError":
                    raise
                reply = self._client.eval(script.text, len(keys), *keys, *arguments)
        except self._errors as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error
        return reply


def _json_list(words: list[str]) -> str:
    """All words of a script as one argument; each item is JSON without brackets."""
    return f"[{','.join(words)}]"


def _part(charge: Charge) -> str:
    """The charge's part as in admit.lua: enforced, shadow, or meta with its triggers."""
    enforced = charge.limit.mode == "enforce"
    if charge.meta:
        triggers = ",".join(str(position + 1) for position in charge.on_denial)
        return ("m" if enforced else "n") + triggers
    return "e" if enforced else "s"
