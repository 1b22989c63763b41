"""A real server in virtual time: it decides by the instant it is told, and so do its expiries."""

from __future__ import annotations

from typing import Any

import redis

from ratelimit_ext.engine.memory import Buckets


class VirtualClient:
    """What `RedisEngine` needs of a client, with every bucket kept from the server's own clock.

    Each script runs in a transaction that takes its buckets' time to live away again and notes it
    in `ttl_ms`: -2 where the bucket was dropped, -1 where the script did not write. With
    ``expires``, a bucket is gone once the virtual clock has passed it, as on the real one.
    """

    def __init__(self, client: redis.Redis, *, expires: bool = True) -> None:
        self.client = client
        self.ttl_ms: dict[str, int] = {}
        self._expires = expires
        self._expiry_us: dict[str, int] = {}

    def evalsha(self, sha: str, number: int, *rest: Any) -> Any:
        return self._run("EVALSHA", sha, number, rest)

    def eval(self, text: str, number: int, *rest: Any) -> Any:
        return self._run("EVAL", text, number, rest)

    def delete(self, *keys: str) -> Any:
        return self.client.delete(*keys)

    def _run(self, command: str, script: str, number: int, rest: tuple[Any, ...]) -> Any:
        keys, now_us = rest[:number], rest[number]
        gone = [key for key in keys if self._expiry_us.get(key, now_us + 1) <= now_us]
        pipeline = self.client.pipeline(transaction=True)
        if gone:
            pipeline.delete(*gone)
        pipeline.execute_command(command, script, number, *rest)
        for key in keys:
            pipeline.pttl(key)
            pipeline.persist(key)
        replies = pipeline.execute()[bool(gone) :]
        for key, ttl_ms in zip(keys, replies[1::2], strict=True):
            self.ttl_ms[key] = ttl_ms
            if ttl_ms != -1 and self._expires:
                self._expiry_us[key] = now_us + ttl_ms * 1000
        return replies[0]


class KeptBuckets(Buckets):
    """Memory without expiry: what a bucket means must not depend on when it is thrown away."""

    def get(self, key: str, now_us: int) -> Any:
        state, _ = self._states.get(key, (None, 0))
        return state

    def expiry_us(self, key: str) -> int | None:
        """Until when the bucket would be kept; ``None`` where it was dropped."""
        return self._states[key][1] if key in self._states else None

    def sweep(self, now_us: int) -> None:
        """Never."""
