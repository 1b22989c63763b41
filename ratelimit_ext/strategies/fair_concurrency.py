"""Fair concurrency: calls in flight whose free slots the members of a group share.

A call that finds no slot waits in line. The next slot is for a member with the fewest running
calls. Several such members have a turn each, one after the other in a ring: first the one behind
the member whose call has begun last. So fifty calls of one member count as one beside the calls of
others, and a call that takes long keeps its own member waiting first. The calls of one member begin
in the order in which they came.

The receipt of a running call is the number of its member, and that of a call in line is
:data:`WAITS` more: so those that run come first.

Not for: identities that a caller can invent. Each of them would have its turns.

>>> from ratelimit_ext.core.limit import Limit
>>> slots = FairConcurrency()
>>> two = slots.parameters(Limit(2, 1_000_000, "concurrency", unit="calls", fair=True), 0)
>>> slots.check(1, 0, 1, two)[0], slots.check(2, 0, 1, two)[0]
(True, False)
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any, Final

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.concurrency import Concurrency, Parameters
from ratelimit_ext.strategies.strategy import Answer

#: More than the number of any member. Also more than the time in microseconds, which calls have as
#: receipts that came before the limit was fair: they count as running. Lua is exact up to 2**53.
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

    def parameters(self, limit: Limit, now_us: int) -> Parameters:
        """With the receipt of a call of its member."""
        place = limit.member + (WAITS if limit.is_ahead else 0)
        return *super().parameters(limit, now_us), place

    def check(self, state: int | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: calls in flight, 0, the receipt."""
        calls, place = _known(state), parameters[3]
        return calls + cost <= parameters[0], (int(calls), 0, place), (calls, place)

    def take(self, state: Any, now_us: int, cost: int, parameters: Parameters) -> Slots:
        calls: Slots = state[0]
        return Slots.of(calls + cost, calls.last)

    def receipt(self, state: Any, now_us: int) -> int:
        place: int = state[1]
        return place

    def adjust(
        self, state: int | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> Slots:
        calls = _known(state)
        return Slots.of(calls + delta, calls.last)

    def begin(
        self, call: Any, calls: Sequence[Any], amount: int, state: int | None
    ) -> tuple[int, Any] | None:
        """A call that another engine has admitted, or that came before the limit was fair, is not
        known to wait: it begins as if there were no members."""
        if call.receipt < WAITS:
            return super().begin(call, calls, amount, state)
        found = turns(calls, amount, state)
        if call not in found:
            return None
        member = call.receipt - WAITS
        # Only the first moves the ring: if a later one begins before it, it is still the first.
        return member, Slots.of(state or 0, member) if call is found[0] else state


def turns(calls: Sequence[Any], amount: int, state: int | None) -> list[Any]:
    """Return the calls in line whose turn it is, the first one first."""
    running, waiting = Counter[int](), defaultdict[int, deque[Any]](deque)
    for call in sorted(calls, key=lambda each: (each.deadline, each.id)):  # a lease begins with it
        if call.receipt < WAITS:
            running[call.receipt] += 1
        else:
            waiting[call.receipt - WAITS].append(call)
    found, last = [], _known(state).last
    for _ in range(amount - running.total()):
        if not waiting:
            break
        last = min(waiting, key=lambda each: (running[each], (each - last - 1) % WAITS))
        found.append(waiting[last].popleft())
        running[last] += 1
        if not waiting[last]:
            del waiting[last]
    return found


def _known(state: int | None) -> Slots:
    return state if isinstance(state, Slots) else Slots(state or 0)
