"""A worker of one version: `python worker.py REDIS_URL`, with the version's tree as PYTHONPATH.

Each line of its input is an operation in JSON, each line of its output the answer. It uses only
names of `ratelimit_ext` that the versions have in common, and the instant that it is given.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import redis

from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.guards import block

#: In the recorded revision it has another name.
new_block: Any = vars(block).get("new_block") or vars(block)["NewBlock"]


class Change(NamedTuple):
    """What engines of all versions read of a change."""

    charge: Charge
    hold: Hold
    verb: str
    numbers: tuple[int, ...]


class Worker:
    """What the operations do. The verdict of an admission is kept by its hold, to be settled."""

    def __init__(self, client: Any) -> None:
        self.engine = RedisEngine(client, redis.RedisError)

    def admit(
        self, charge: Charge, now_us: int, hold: list[int] | None = None, *, take: bool = True
    ) -> list[object]:
        """Whether it fits, what remains, the wait in milliseconds, and the receipt."""
        decision = self.engine.admit(
            [charge], take=take, hold=NO_HOLD if hold is None else Hold(*hold), now_us=now_us
        )
        (verdict,) = decision.verdicts
        return [verdict.allowed, verdict.remaining, verdict.retry_after_ms, verdict.receipt]

    def change(self, charge: Charge, now_us: int, verb: str, numbers: list[Any]) -> int:
        """How many changes were applied: 0 or 1."""
        change: Any = Change(charge, NO_HOLD, verb, tuple(numbers))
        match verb:
            case "settle" | "renew":
                hold, amount = Hold(*numbers[:2]), numbers[2]
                first = hold.id if verb == "settle" else charge.cost
                change = Change(charge, hold, verb, (first, amount))
            case "block":
                change = new_block(charge, *numbers)
        return self.engine.settle([change], now_us=now_us)


def main(url: str) -> None:
    worker = Worker(redis.Redis.from_url(url))
    for line in sys.stdin:
        words = json.loads(line)
        charge = Charge(Limit(**words.pop("limit")), words.pop("key"), words.pop("cost", 1))
        answer = getattr(worker, words.pop("do"))(charge, **words)
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main(sys.argv[1])
