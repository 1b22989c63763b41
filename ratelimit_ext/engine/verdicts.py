"""From a script's reply to a decision, or to what a settlement has changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import compress
from operator import attrgetter
from typing import Final

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Claim
from ratelimit_ext.core.decision import Decision, Left, Verdict
from ratelimit_ext.strategies import strategy_of

#: The bucket of a charge; `map` calls it without a frame of Python.
key_of: Final = attrgetter("key")
_claim_of: Final = attrgetter("claim")
_new: Final = tuple.__new__
#: Why a budget denies a call that would fit if no other call held a part of it, and the wait then.
IN_USE: Final = "budget-in-use"
IN_USE_US: Final = 2_000_000
UNREADABLE: Final = "The stored bucket %s is unreadable, and a change of it is lost: %s %s"

_logger = logging.getLogger("ratelimit_ext")


class Reply(Decision):
    """A decision as an engine replied it. Its verdicts are made when they are first read.

    ``reply`` is that of ``admit.lua``: now; 1 if the request is admitted, else 0; for each charge 1
    if it fits, else 0, and its snapshot; for each that claims a part of a budget what it gets, and
    how many other calls hold something.
    """

    __slots__ = ("_charges", "_parts", "_reply", "_take")

    def __init__(self, charges: Sequence[Charge], reply: Sequence[int], *, take: bool) -> None:
        self.admitted = reply[1] == 1
        self.now_us = reply[0]
        self._verdicts = None
        self._charges = charges
        self._reply = reply
        self._take = take
        at = 2 + 4 * len(charges)
        self._parts: dict[int, tuple[int, int]] = {}
        if len(reply) > at:
            own = self._charges = list(charges)
            for place in compress(range(len(charges)), map(_claim_of, charges)):
                limit, key, cost, meta, on_denial, at_once, claim = charges[place]
                part, _ = self._parts[place] = reply[at], reply[at + 1]
                at += 2
                if take and self.admitted and part > 0 and claim:  # no shadow that denies
                    claim = _new(Claim, (min(cost, part), *claim[1:]))
                    own[place] = _new(Charge, (limit, key, part, meta, on_denial, at_once, claim))

    def _read(self) -> tuple[Verdict, ...]:
        reply, now_us, is_taken = self._reply, self.now_us, self._take and self.admitted
        verdicts: list[Verdict] = []
        answers = iter(reply[2:])
        for charge, fit, *snapshot in zip(self._charges, *[answers] * 4, strict=False):
            limit, _, cost, is_meta, _, at_once, claim = charge
            fits, strategy = fit == 1, strategy_of(limit)
            taken = fits and is_taken and not is_meta
            if claim is at_once is None and fits and cost <= limit.capacity:  # most of them
                verdicts.append(
                    strategy.verdict(charge, snapshot, now_us, allowed=True, taken=taken)
                )
                continue
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
            if claim is not None:
                part, others = self._parts[len(verdicts)]
                verdict = verdict._replace(others=others)
                is_beside = others and 0 < cost <= min(limit.capacity, claim.beside)
                if is_beside and not fits:  # it did not get what it needs then
                    needed = charge._replace(cost=min(claim.beside, limit.capacity))
                    own = strategy.verdict(needed, snapshot, now_us, allowed=False, taken=False)
                    # Nothing is used, and it needs more than the capacity: until the mark ends.
                    wait_us = max(own.retry_after_us or 0, 0) or IN_USE_US
                    verdict = own._replace(charge=charge, retry_after_us=wait_us, others=others)
                if part < 0:
                    wait_us = min(verdict.retry_after_us or IN_USE_US, IN_USE_US)
                    verdict = verdict._replace(reason=IN_USE, retry_after_us=wait_us)
            verdicts.append(verdict)
        return tuple(verdicts)

    def keys(self) -> list[str]:
        return [charge.key for charge in self._charges]

    def unfit(self, *, enforced: bool) -> list[int]:
        """Return the places of the charges that do not fit, enforced or in shadow."""
        places = range(len(self._charges))
        unfit = [place for place in places if self._reply[2 + 4 * place] != 1]
        return [at for at in unfit if (self._charges[at].limit.mode == "enforce") is enforced]

    def snapshot(self, place: int) -> Sequence[int]:
        """Return the three integers of the strategy, before anything is taken."""
        return self._reply[3 + 4 * place : 6 + 4 * place]

    def used(self, place: int) -> int:
        """Return the units that a bucket counts as used before this request, debt included."""
        limit = self._charges[place].limit
        return strategy_of(limit).used(limit, self.snapshot(place), self.now_us)

    def overdrawn(self, place: int) -> int | None:
        return max(0, self.used(place) - self._charges[place].limit.capacity)

    def left(self) -> list[Left]:
        """Without verdicts, if all that was enforced is taken."""
        if not (self.admitted and self._take):
            return super().left()
        reply, now_us = self._reply, self.now_us
        left = []
        at = 3
        for limit, _, cost, is_meta, _, at_once, _ in self._charges:
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
        claim=one.claim or other.claim,
        at_once=None if one.at_once is other.at_once is None else one.taken + other.taken,
    )
