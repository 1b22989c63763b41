"""Reservations: any strategy, with the estimates of calls that are not over yet.

The cost of a call to a language model is known at its end. Its estimate is taken at admission and
noted as a *hold*: its id, how much, and until when. Settling replaces the estimate by the real
cost, once: the hold is gone, and a second settlement finds nothing. If the call is not settled in
time, because its worker died, the lease ends and the next access to the bucket gives back what was
not spent, as of the instant at which the lease ended. The hold itself is remembered for ten more
minutes, so that a slow worker can still settle, or renew: that takes the unspent part again.

A hold that *keeps* its estimate counts it as spent until a renewal names the cost so far: a call of
a dead worker was made, and costs that.

A request may reach the storage after its worker gave it up and released its hold. The release
leaves an expired hold of nothing, and an admission under an id that is known holds nothing.

A budget's calls *claim* a part of what it has left (:class:`~ratelimit_ext.core.charge.Claim`), and
hold what they get, so that those in flight together spend no more than the budget. The only call
in flight may spend all that is left, and holds less. If that one may have been billed unseen, its
settlement leaves a *mark*: until the charge no longer matters, every call is one beside others.

A refund goes to the window that the hold was charged to, or nowhere if that is over. What a call
cost beyond its hold is carried into the window that is open when it settles.
"""

from __future__ import annotations

from ratelimit_ext.strategies.strategy import Layer


class Reservations(Layer):
    """A strategy over another. It keeps more, and answers the same."""

    SAME = (*Layer.SAME, "parameters")
    letter = "h"
    verbs = ("settle", "release", "renew", "resume")
