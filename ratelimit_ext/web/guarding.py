"""Guarding: what is decided from outside. Operators block and unblock; a request that has been
admitted cools down what stands behind it, and asks for another attempt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flask

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.strategies.guards.block import BlockReason, NewBlock, check_reason, length_us
from ratelimit_ext.web.admission import Charged, Outcome, admitted, charged
from ratelimit_ext.web.blocks import charges_on, names_of_blocks
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.responding import RespondingLimiter


class Attempt(NamedTuple):
    """Another attempt of a request: its charges, the entries that they replace, and those whose
    hold is of no use any more."""

    made: Charged
    replaced: list[Entry]
    superseded: list[Entry]


class GuardingLimiter(RespondingLimiter):
    """Blocks identities, and admits further attempts of an admitted request."""

    def block(
        self,
        name: str,
        identity: str,
        *,
        for_s: float | None = None,
        reason: BlockReason = "blocked",
    ) -> bool:
        """Let nothing of that identity pass the limits ``unless blocked`` of that name.

        At once and in all workers, for ``for_s`` seconds, or until :meth:`unblock`. ``identity``
        is what the limit's key says. False where it is blocked for as long already: a shorter
        block never ends a longer one. Raises ``ValueError`` where no block has the name, and
        ``StorageUnavailable``.
        """
        for_us = length_us(for_s)
        check_reason(reason)
        charges = self._charges(name, identity, strategies_taking("block"))
        blocks = [NewBlock(charge, for_us, reason) for charge in charges]
        return self._shared_engine.settle(blocks) > 0

    def unblock(self, name: str, identity: str) -> bool:
        """Lift the blocks of that name from the identity, whoever set them; whether there were
        any. A surge has a name as well: its past is forgotten. Raises as :meth:`block`."""
        charges = self._charges(name, identity, strategies_taking("unblock"))
        return self._shared_engine.clear([charge.key for charge in charges]) > 0

    def blocks(self) -> list[str]:
        """The names that :meth:`block` knows."""
        return names_of_blocks(self._present_app(), self.limit_manager)

    def second_choice(self, function: Callable[[], bool]) -> Callable[[], bool]:
        """Register what a request does that lacks nothing but room.

        It is asked where a request is denied by limits ``unless blocked`` that are overloaded, and
        ``as reported``, alone. It may change the request, to another model for instance, and answer
        True: then the request is decided once more, and that counts.
        """
        self.chooses_again = function
        return function

    def admit_again(self, *names: str) -> float | None:
        """Charge the present request's limits of these names once more, for another attempt.

        For a request that was admitted, and whose call has to be made anew: identities and costs
        are asked again, so that it may by now be another model's. What is held until the call is
        over (tokens, money, calls in flight) is not charged again: if the estimate is higher by
        now, the difference is held as well, by every limit of the request whatever its name.
        ``None`` if the attempt is admitted, and else the wait in seconds, with nothing charged. If
        the storage is unavailable the attempt is admitted: the request was. A name that the request
        has no limit of decides nothing; if the whole application has none, the log says so.
        """
        state = self.context
        attempt = self._attempt(names, "admit_again")
        outcome = self._decided_again(attempt, take=True)
        if outcome is None:
            return None
        if not outcome.decision.admitted:
            return _wait_s(outcome.decision)
        # What the failed attempt took stays taken, as it was made.
        made = {id(entry) for entry in attempt.replaced}
        state.taken[:] = [entry for entry in state.taken if id(entry) not in made]
        if attempt.superseded:  # what it holds of another identity is not used any more
            state.reserved().give_back(attempt.superseded)
        state.taken += [entry for entry in outcome.entries if entry.verdict.allowed]
        return None

    def wait_again(self, *names: str) -> float:
        """How long another attempt would have to wait for the limits of these names, in seconds;
        0 if it would be admitted, or nothing is known. A look, which charges nothing."""
        outcome = self._decided_again(self._attempt(names, "wait_again"), take=False)
        return 0.0 if outcome is None else _wait_s(outcome.decision)

    def _attempt(self, names: tuple[str, ...], asks: str) -> Attempt:
        """What another attempt has to be charged by the request's limits of these names, and by
        all that hold an estimate."""
        again = [
            entry
            for entry in self.context.taken
            if entry.claim.limit.name in names or entry.claim.limit.held
        ]
        for name in set(names).difference(entry.claim.limit.name for entry in again):
            self._known_names.doubt_name(name, asks)
        claims = list({id(entry.claim): entry.claim for entry in again}.values())
        asked = charged(claims, (), self.logger, lenient=False)
        made = Charged([], [], [], 0)
        superseded: list[Entry] = []
        for claim, identity, charge in zip(
            asked.claims, asked.identities, asked.charges, strict=True
        ):
            cost = charge.cost
            if claim.limit.held:
                own = [entry for entry in again if entry.claim is claim]
                held = [entry for entry in own if entry.verdict.charge.key == charge.key]
                superseded += [entry for entry in own if entry.verdict.charge.key != charge.key]
                cost -= sum(entry.cost for entry in held)
                if held and cost <= 0:
                    continue
            made.claims.append(claim)
            made.identities.append(identity)
            made.charges.append(charge._replace(cost=cost))
        replaced = [entry for entry in again if not entry.claim.limit.held]
        return Attempt(made, replaced, superseded)

    def _decided_again(self, attempt: Attempt, *, take: bool) -> Outcome | None:
        """What is decided of an attempt now; ``None`` if it has no charges, or the storage is
        unavailable."""
        made = attempt.made
        if not made.charges:
            return None
        try:
            return admitted(self.engine, made, self._hold(made.claims), take=take)
        except Exception:  # each storage has its own for being unavailable
            self.logger.exception("Another attempt could not be decided, and is admitted")
            return None

    def _charges(self, name: str, identity: str, strategies: tuple[str, ...]) -> list[Charge]:
        if not self.enabled:
            raise ValueError("rate limits are switched off (RATELIMIT_ENABLED): nothing is blocked")
        app, manager = self._present_app(), self.limit_manager
        return charges_on(
            app, manager, self._naming, name=name, identity=identity, strategies=strategies
        )

    def _present_app(self) -> flask.Flask:
        app = cast(flask.Flask, cast(Any, flask.current_app)._get_current_object())
        self._complete_policy(app)
        return app


def _wait_s(decision: Decision) -> float:
    wait_ms = decision.retry_after_ms
    return math.inf if wait_ms is None else wait_ms / 1000
