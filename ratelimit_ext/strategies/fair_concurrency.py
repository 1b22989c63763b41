"""Fair concurrency: calls in flight whose free slots the members of a group share.

A call that finds no slot waits in line. The next slot is for a member with the fewest running
calls. Several such members have a turn each, one after the other in a ring: first the one behind
the member whose call has begun last. So fifty calls of one member count as one beside the calls of
others, and a call that takes long keeps its own member waiting first. The calls of one member begin
in the order in which they came.

If the calls of a line reserve dollars or tokens, the next slot is for a member who has reserved the
least in it: start-time fair queueing. While two members of a class have calls in line, they differ
by one call each at most, in what they reserve. Equal ones have their turns as above. A member is
stored with how much they are ahead of those in line, and no others are: who was away has no credit.
A call counts at least as a 256th of the dearest in line, also if it reserves nothing: so no member
waits for more turns of another. What a call reserved when it began stays: its settlement changes no
turn.

The receipt of a call is the number of its member.

Not for: identities that a caller can invent. Each of them would have its turns.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> from ratelimit_ext.core.charge import new_hold
>>> engine, two = MemoryEngine(), Limit(2, 1_000_000, "concurrency", unit="calls", fair=True)
>>> [engine.admit([Charge(two, "team")], hold=new_hold(1_000_000)).admitted for _ in range(3)]
[True, True, False]
"""

from __future__ import annotations

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.concurrency import Concurrency


class FairConcurrency(Concurrency):
    code = "fc"

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """With the number of its member."""
        return *super().parameters(limit, now_us), limit.part.member
