"""Line: any strategy, with requests that wait for their turn.

A request that does not fit leaves a *ticket*, which takes nothing. It comes again when it is its
turn, and is decided then as any other. A request fits if it does beside the costs of all that come
first: those of higher classes, and of its own class those that have waited longer, or with members
those whose turn is earlier. So starts never exceed the limit, whatever leaves the line, changes or
is settled meanwhile. One that fits and waits for another limit leaves the line until it asks again,
so that others go first.

The wait of a ticket is known: the costs before it have to leak away. It grows only if higher
classes come or more is charged, and shrinks if others leave: then the next one is woken, if that
is earlier than it knows, and it wakes the next. A ticket whose worker has died ends soon after its
turn. One that is lost, with the storage's data or in an outage, is left again: it gets its former
place, because it says for how long its request has waited.

The tickets lie beside the strategy's state, so that a release that knows no line reads it.

Not for: budgets, whose money does not come back soon.

>>> from ratelimit_ext.core.charge import Charge, Hold
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> limit, engine = Limit(60, 60_000_000, "token-bucket", burst=1, wait=5_000_000), MemoryEngine()
>>> first, *others = [
...     engine.admit([Charge(limit, "b")], hold=Hold(number, 0, 0), now_us=0).verdicts[0]
...     for number in (1, 2, 3)
... ]
>>> first.allowed, [each.retry_after_us for each in others]
(True, [1000000, 2000000])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Layer

#: A request looks again this long after its turn, or after its last look, or its ticket ends.
LOOK_US: Final = 5_000_000


def pause_us(denials: Iterable[Verdict], waited_us: int) -> int | None:
    """Return the microseconds after which a waiting request looks again unless it is woken;
    ``None`` if one of the limits that deny it does not let it wait any longer.

    When a slot becomes free is not known: a lease may end, or the storage may lose the ticket."""
    pauses_us = [0]
    for denial in denials:
        charge, wait_us, longest_us = denial.charge, denial.retry_after_us, denial.charge.limit.wait
        if is_slot := charge.limit.traits.ends_with_calls:
            wait_us = 1
        if wait_us is None or longest_us is None or denial.reason != "limit" or charge.meta:
            return None
        left_us = longest_us - waited_us
        if wait_us > left_us:
            return None
        pauses_us.append(min(left_us, LOOK_US) if is_slot else wait_us)
    return max(pauses_us)


class Line(Layer):
    """A strategy over another, which answers the same while no request waits."""

    SAME = (*Layer.SAME, "longest_wait_us")
    letter = "l"
    verbs = ("leave",)

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """With the longest wait, and the number of higher classes."""
        return *self._strategy.parameters(limit, now_us), limit.wait or 0, limit.part.rank
