"""Fair concurrency: calls in flight whose free slots the members of a group share.

A call that finds no slot waits in line. The next slot is for a member with the fewest running
calls. Several such members have a turn each, one after the other in a ring: first the one behind
the member whose call has begun last. So fifty calls of one member count as one beside the calls of
others, and a call that takes long keeps its own member waiting first. The calls of one member begin
in the order in which they came.

The receipt of a call is the number of its member.

Not for: identities that a caller can invent. Each of them would have its turns.

>>> from ratelimit_ext.core.limit import Limit
>>> slots = FairConcurrency()
>>> two = slots.parameters(Limit(2, 1_000_000, "concurrency", unit="calls", fair=True), 0)
>>> slots.check(1, 0, 1, two)[0], slots.check(2, 0, 1, two)[0]
(True, False)
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.concurrency import Concurrency, Parameters
from ratelimit_ext.strategies.strategy import Answer

#: What calls in line had more as receipts, until November 2026. Calls from before the limit was
#: fair have the time in microseconds, which is less. Lua is exact up to 2**53.
WAITS: Final = 2**52


class Slots(int):
    """Calls in flight and in line, also for a limit that is no longer fair, and the member whose
    call has begun last after a wait."""

    last: int = 0

    @classmethod
    def of(cls, calls: int, last: int) -> Slots:
        made = cls(max(0, calls))
        made.last = last
        return made


class FairConcurrency(Concurrency):
    code = "fc"
    has_turns = True

    def parameters(self, limit: Limit, now_us: int) -> Parameters:
        """With the number of its member."""
        return *super().parameters(limit, now_us), limit.member

    def check(self, state: int | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: calls in flight, 0, the number of the member."""
        calls, member = _known(state), parameters[2]
        return calls + cost <= parameters[0], (int(calls), 0, member), (calls, member)

    def take(self, state: Any, now_us: int, cost: int, parameters: Parameters) -> Slots:
        calls: Slots = state[0]
        return Slots.of(calls + cost, calls.last)

    def receipt(self, state: Any, now_us: int) -> int:
        member: int = state[1]
        return member

    def adjust(
        self, state: int | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> Slots:
        calls = _known(state)
        return Slots.of(calls + delta, calls.last)

    @staticmethod
    def after(calls: Slots, member: int) -> Slots:
        """Return the calls with the ring moved behind this member."""
        return Slots.of(calls, member)

    @staticmethod
    def turns(tickets: Sequence[Any], running: Mapping[int, int], last: int) -> list[Any]:
        """Return the tickets, those of each class by arrival, in the order of their turns.
        ``running`` counts the calls that run, by member."""
        counts, order = Counter[int](), list[Any]()
        for member, calls in running.items():
            counts[member % WAITS] += calls
        for _, own in groupby(tickets, lambda each: each.rank):
            waiting = defaultdict[int, deque[Any]](deque)
            for each in own:
                waiting[each.member].append(each)
            while waiting:
                # That of no member came before the limit was fair.
                last = min(
                    waiting,
                    key=lambda each: (counts[each] if each else -1, (each - last - 1) % WAITS),
                )
                order.append(waiting[last].popleft())
                counts[last] += 1
                if not waiting[last]:
                    del waiting[last]
        return order


def _known(state: int | None) -> Slots:
    return state if isinstance(state, Slots) else Slots(state or 0)
