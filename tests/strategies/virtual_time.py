"""A real server in virtual time, expiries and outages included."""

from collections.abc import Sequence
from typing import Any

import redis

from ratelimit_ext.core.key import beside
from ratelimit_ext.engine.arguments import Script
from ratelimit_ext.engine.connection import NEVER
from ratelimit_ext.engine.memory import Buckets
from ratelimit_ext.engine.nodes import NodeCall

#: Later than any instant.
NEVER_US = 2**53


class VirtualClient:
    """What `RedisEngine` needs of a client, with every bucket kept from the server's own clock.

    Each script runs in a transaction that takes its buckets' time to live away again and notes when
    it is over on the virtual clock: from then on the bucket is gone.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        #: When each bucket expires.
        self.expiry_us: dict[str, int] = {}
        #: What happens to each call: ``refused`` before the server runs it, its reply ``lost``.
        self.outage = ""

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[int | str]) -> Any:
        """By FCALL, if it takes the place of an engine's `ScriptConnections`."""
        rest = (*keys, *arguments)
        try:
            return self._run("FCALL", script.function, len(keys), rest)
        except redis.ResponseError as error:
            if not str(error).endswith("Function not found"):
                raise
            self.client.function_load(script.library, replace=True)
            return self._run("FCALL", script.function, len(keys), rest)

    def ask(self, method: Any, *words: Any) -> Any:
        """As an engine's `ScriptConnections`."""
        return method(*words)

    def evalsha(self, sha: str, number: int, *rest: Any) -> Any:
        return self._run("EVALSHA", sha, number, rest)

    def eval(self, text: str, number: int, *rest: Any) -> Any:
        return self._run("EVAL", text, number, rest)

    def delete(self, *keys: str) -> Any:
        return self.client.delete(*keys)

    def scan(self, cursor: int, **options: Any) -> Any:
        return self.client.scan(cursor, **options)

    def unlink(self, *keys: str) -> Any:
        return self.client.unlink(*keys)

    def flush(self) -> None:
        """Every bucket is gone."""
        self.client.flushdb()
        self.expiry_us.clear()

    def _run(self, command: str, script: str, number: int, rest: tuple[Any, ...]) -> Any:
        if self.outage == "refused":
            raise redis.ConnectionError("refused")
        keys, now_us = rest[:number], rest[number]
        gone = [key for key in keys if self.expiry_us.get(key, now_us + 1) <= now_us]
        pipeline = self.client.pipeline(transaction=True)
        lines = [beside(key)[1] for key in keys]
        over = [line for line in lines if self.expiry_us.get(line, now_us + 1) <= now_us]
        if gone or over:
            pipeline.delete(*gone, *[beside(key)[0] for key in gone], *over)
        pipeline.execute_command(command, script, number, *rest)
        for key in keys:
            pipeline.pttl(key)
            for other in beside(key):
                pipeline.pttl(other)
            pipeline.persist(key)
            for other in beside(key):
                pipeline.persist(other)
        replies = pipeline.execute()[bool(gone or over) :]
        for ttl_ms, of_holds in zip(replies[1::6], replies[2::6], strict=True):
            # Both are stored together, by a server whose clock may tick in between.
            assert of_holds == -2 or abs(ttl_ms - of_holds) <= 50
        self._note(keys, replies[1::6], now_us)
        self._note(lines, replies[3::6], now_us)
        if self.outage == "lost":
            raise redis.ConnectionError("the reply is lost")
        return replies[0]

    def _note(self, names: Sequence[str], lifetimes_ms: Sequence[int], now_us: int) -> None:
        for name, ttl_ms in zip(names, lifetimes_ms, strict=True):
            if ttl_ms == -2:
                self.expiry_us.pop(name, None)
            elif ttl_ms != -1:  # or it was not written
                self.expiry_us[name] = now_us + ttl_ms * 1000


class OpenBuckets(Buckets):
    """Memory that shows when a bucket expires."""

    def expiry_us(self, key: str) -> int | None:
        """Until when the bucket is kept; ``None`` if no bucket is kept."""
        return self._world.expiries[key] if self._world["values"][key] is not None else None


class KeptBuckets(OpenBuckets):
    """Memory without expiry: what a bucket means must not depend on when it is thrown away."""

    def evaluate(
        self, script: Script, keys: Sequence[str], now_us: int, *words: Any
    ) -> Sequence[Any]:
        reply = super().evaluate(script, keys, now_us, *words)
        for key in keys:
            self._world.expiries[key] = NEVER_US
        return reply


class VirtualNodes:
    """What `ClusterEngine` needs of a cluster, in virtual time: each call on one server, alone."""

    errors = redis.RedisError

    def __init__(self, client: VirtualClient) -> None:
        self.client = client
        #: How many rounds of calls there were, and in each of them how many calls.
        self.rounds: list[int] = []

    def masters(self) -> list[redis.Redis]:
        return [self.client.client]

    def deadline(self, share: float = 1.0) -> float:
        """Never, as time is virtual."""
        return NEVER

    def run(self, calls: Sequence[NodeCall], until: float) -> None:
        self.rounds.append(len(calls))
        for call in calls:
            if call.script is None:
                call.reply = self.client.client.execute_command(*call.words)
                continue
            number, *rest = call.words
            call.reply = self.client.run(call.script, rest[:number], rest[number:])
