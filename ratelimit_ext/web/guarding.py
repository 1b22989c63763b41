"""Guarding: what is decided from outside. Operators block and unblock; a request that has been
admitted cools down what stands behind it, and asks for another attempt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import flask

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.engine.protocol import Closing
from ratelimit_ext.strategies.block import length_us
from ratelimit_ext.web.admission import Outcome, admitted, charged
from ratelimit_ext.web.blocks import charges_on, names_of_blocks
from ratelimit_ext.web.cause import BlockReason, manner
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.responding import RespondingLimiter


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
        how = manner(reason, ramped=False, grows=False)
        charges = self._charges(name, identity, ("block",))
        closings = [Closing(charge, for_us, how) for charge in charges]
        return self._shared_engine.settle(closings) > 0

    def unblock(self, name: str, identity: str) -> bool:
        """Lift the blocks of that name from the identity, whoever set them; whether there were
        any. A surge has a name as well: its past is forgotten. Raises as :meth:`block`."""
        charges = self._charges(name, identity, ("block", "surge"))
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

        What is held until the call is over (tokens, money, calls at once) is held still, and not
        charged again.

        For a request that was admitted, and whose call has to be made anew: identities and costs
        are asked again, so that it may by now be another model's. ``None`` where the attempt is
        admitted, and else the wait in seconds, with nothing charged. Where the storage is away the
        attempt is admitted: the request was. A name that the request has no limit of decides
        nothing; where the whole application has none, the log says so.
        """
        state = self.context
        again, outcome = self._decided_again(names, "admit_again", take=True)
        if outcome is None:
            return None
        if not outcome.decision.admitted:
            return _wait_s(outcome.decision)
        # What the failed attempt took stays taken: it was made.
        state.taken[:] = [entry for entry in state.taken if entry not in again]
        state.taken += [entry for entry in outcome.entries if entry.verdict.allowed]
        return None

    def wait_again(self, *names: str) -> float:
        """How long another attempt would have to wait for the limits of these names, in seconds;
        0 where it would be admitted, or nobody can tell. A look, which charges nothing."""
        _, outcome = self._decided_again(names, "wait_again", take=False)
        return 0.0 if outcome is None else _wait_s(outcome.decision)

    def _decided_again(
        self, names: tuple[str, ...], asks: str, *, take: bool
    ) -> tuple[list[Entry], Outcome | None]:
        """The present request's entries of these names, and what is decided of them now: nothing
        where there are none, or the storage is away."""
        state = self.context
        again = [e for e in state.taken if e.claim.limit.name in names and not e.claim.limit.held]
        for name in set(names).difference(entry.claim.limit.name for entry in again):
            self._known_names.doubt_name(name, asks)
        made = charged([entry.claim for entry in again], (), self.logger, lenient=False)
        if not made.charges:
            return again, None
        try:
            hold = self._hold(state, made.claims)
            return again, admitted(self.engine, made, hold, take=take)
        except Exception:  # each storage has its own for being away
            self.logger.exception("Another attempt could not be decided, and is admitted")
            return again, None

    def _charges(self, name: str, identity: str, strategies: tuple[str, ...]) -> list[Charge]:
        if not self.enabled:
            raise ValueError("rate limits are switched off (RATELIMIT_ENABLED): nothing is blocked")
        app, manager = self._present_app(), self.limit_manager
        return charges_on(
            app, manager, self._naming, name=name, identity=identity, strategies=strategies
        )

    def _present_app(self) -> flask.Flask:
        app = cast(flask.Flask, cast(Any, flask.current_app)._get_current_object())
        self.check_policy(app)
        return app


def _wait_s(decision: Decision) -> float:
    wait_ms = decision.retry_after_ms
    return math.inf if wait_ms is None else wait_ms / 1000
