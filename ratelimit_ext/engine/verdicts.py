"""From a script's reply to a decision, or to what a settlement has changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision, Left, Verdict
from ratelimit_ext.strategies import strategy_of
from ratelimit_ext.strategies.strategy import MOST_USED

#: The bucket of a charge; `map` calls it without a frame of Python.
key_of: Final = attrgetter("key")
UNREADABLE: Final = "The stored bucket %s is unreadable, and a change of it is lost: %s %s"

_logger = logging.getLogger("ratelimit_ext")


def sent_costs(charges: Sequence[Charge]) -> list[int]:
    """Return the costs as strategies see them: all above the capacity is equally impossible."""
    return [min(charge.cost, charge.limit.capacity + 1) for charge in charges]


class Reply(Decision):
    """A decision as an engine replied it. Its verdicts are made when they are first read.

    ``reply`` is that of ``admit.lua``: now; 1 if the request is admitted, else 0; for each charge 1
    if it fits, else 0, and its snapshot.
    """

    __slots__ = ("_charges", "_reply", "_take")

    def __init__(self, charges: Sequence[Charge], reply: Sequence[int], *, take: bool) -> None:
        self.admitted = reply[1] == 1
        self.now_us = reply[0]
        self._verdicts = None
        self._charges = charges
        self._reply = reply
        self._take = take

    def _read(self) -> tuple[Verdict, ...]:
        reply, now_us = self._reply, self.now_us
        verdicts = []
        at = 2
        for charge in self._charges:
            limit, _, cost, is_meta, _, at_once = charge
            fits, snapshot = reply[at] == 1, reply[at + 1 : at + 4]
            taken = fits and self._take and self.admitted and not is_meta
            strategy = strategy_of(limit)
            if cost > limit.capacity:
                look = charge._replace(cost=0)
                verdict = strategy.verdict(look, snapshot, now_us, allowed=True, taken=taken)
                verdict = verdict._replace(
                    charge=charge, allowed=fits, retry_after_us=0 if fits else None
                )
                if not limit.amount:  # nothing is used, and yet a client must not ask at once
                    verdict = verdict._replace(reset_after_us=limit.period_us)
            elif fits and at_once is not None:
                now = charge._replace(cost=at_once)
                verdict = strategy.verdict(now, snapshot, now_us, allowed=True, taken=taken)
                verdict = verdict._replace(charge=charge)
            else:
                verdict = strategy.verdict(charge, snapshot, now_us, allowed=fits, taken=taken)
            verdicts.append(verdict)
            at += 4
        return tuple(verdicts)

    def keys(self) -> list[str]:
        return [charge.key for charge in self._charges]

    def overdrawn(self, place: int) -> int | None:
        limit, at = self._charges[place].limit, 3 + 4 * place
        snapshot = self._reply[at : at + 3]
        # What is left is never below 0, so it is computed with a credit.
        left, _, _ = strategy_of(limit).left(limit, snapshot, self.now_us, -MOST_USED)
        return max(0, MOST_USED - left)

    def left(self) -> list[Left]:
        """Without verdicts, if all that was enforced is taken."""
        if not (self.admitted and self._take):
            return super().left()
        reply, now_us = self._reply, self.now_us
        left = []
        at = 3
        for limit, _, cost, is_meta, _, at_once in self._charges:
            taken = 0 if is_meta else cost if at_once is None else at_once
            left.append(strategy_of(limit).left(limit, reply[at : at + 3], now_us, taken))
            at += 4
        return left


def applied(changes: Sequence[Change], reply: Sequence[int]) -> int:
    """Return how many changes were applied, by the reply of ``settle.lua``. Those of an unreadable
    bucket are lost: sent again, they would fail again."""
    for change, result in zip(changes, reply, strict=False):  # no results: they were applied before
        if result < 0:
            _logger.error(UNREADABLE, change.charge.key, change.verb, change.numbers)
    return reply.count(1)


def merged(charges: Sequence[Charge]) -> Sequence[Charge]:
    """Charges with one per bucket: costs of the same bucket are added up, or one would be lost.

    If their limits differ (they were changed between two definitions) the tightest decides.
    """
    if len({*map(key_of, charges)}) == len(charges):
        return charges
    by_key: dict[str, Charge] = {}
    for charge in charges:
        other = by_key.get(charge.key)
        by_key[charge.key] = charge if other is None else _together(other, charge)
    places = {key: place for place, key in enumerate(by_key)}
    return [
        charge._replace(
            on_denial=tuple(
                places[charges[i].key] if i < len(charges) else i for i in charge.on_denial
            )
        )
        for charge in by_key.values()
    ]


def _together(one: Charge, other: Charge) -> Charge:
    """Both costs on one bucket. Enforced if either is: a shadow never weakens a limit."""
    enforced = [c for c in (one, other) if c.limit.mode == "enforce"] or [one, other]
    return Charge(
        min((c.limit for c in enforced), key=lambda limit: limit.capacity),
        one.key,
        one.cost + other.cost,
        meta=one.meta and other.meta,
        on_denial=one.on_denial + other.on_denial if one.on_denial and other.on_denial else (),
        at_once=None if one.at_once is other.at_once is None else one.taken + other.taken,
    )
