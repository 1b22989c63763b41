"""One admission: claims and the present request become charges, charges a decision, and a decision
what the request's state remembers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from ratelimit_ext.core.charge import Charge, Guess, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.web.claims import Claim
from ratelimit_ext.web.entry import Admission, Entry

#: Flask-Limiter's words.
SWALLOWED: Final = "Failed to rate limit. Swallowing error"


class Charged(NamedTuple):
    """Claims with their charges, side by side; the last ``metas`` of them are on denials."""

    claims: list[Claim]
    identities: list[str]
    charges: list[Charge]
    metas: int


class Asked(NamedTuple):
    """What functions have said about this request: many limits ask the same one."""

    identities: dict[int, object]
    costs: dict[tuple[int, bool], int | Guess]


class Outcome(NamedTuple):
    """A decision, with an entry per claim: the request's own, and those on denials."""

    decision: Decision
    entries: list[Entry]
    metas: list[Entry]

    @property
    def denied(self) -> list[Entry]:
        """The entries that denied the request."""
        return [e for e in self.entries if not e.verdict.allowed and e.verdict.enforced]

    @property
    def shadows(self) -> list[Entry]:
        """The entries in shadow that were taken although the request was denied. A shadow that
        holds an estimate is taken only if the request is admitted."""
        return [
            entry
            for entry in self.entries
            if entry.verdict.allowed and not (entry.verdict.enforced or entry.claim.limit.held)
        ]


def charged(
    claims: Iterable[Claim],
    metas: Sequence[Claim],
    logger: logging.Logger,
    *,
    lenient: bool,
    swallow: bool = False,
) -> Charged:
    """The charges of the present request.

    ``lenient`` leaves out a claim that cannot be charged: a request that was aborted before its
    view may lack what the callables ask for. ``swallow`` leaves it out, too, and says so in the
    log: a function has failed that should not have.
    """
    asks = partial(_charged, logger=logger, lenient=lenient, swallow=swallow)
    made = Charged([], [], [], 0)
    asked = Asked({}, {})
    for claim in claims:
        single = asks(claim, asked)
        if single is not None:
            made.claims.append(claim)
            made.identities.append(single[0])
            made.charges.append(single[1])
    triggers = [(meta, _triggering(made.claims)) for meta in metas]
    triggers += [(m, (i,)) for i, claim in enumerate(made.claims) for m in claim.metas]
    added = 0
    for meta, on_denial in triggers:
        single = asks(meta, asked)
        if single is not None:
            identity, charge = single
            made.claims.append(meta)
            made.identities.append(identity)
            made.charges.append(
                Charge(charge.limit, charge.key, charge.cost, meta=True, on_denial=on_denial)
            )
            added += 1
    return made._replace(metas=added)


def _triggering(claims: list[Claim]) -> tuple[int, ...]:
    """Whose denial a limit on denials counts, empty for any: that of a guard is no doing of the
    caller's. Where there are only guards it is the limit's own, which is never counted."""
    told = tuple(i for i, claim in enumerate(claims) if claim.limit.visible)
    return () if len(told) == len(claims) else told or (len(claims),)


def _charged(
    claim: Claim, asked: Asked, logger: logging.Logger, *, lenient: bool, swallow: bool
) -> tuple[str, Charge] | None:
    """Whom a claim is charged to, and the charge; ``None`` where it is left out."""
    runtime = claim.runtime
    try:
        if runtime.exempt_when is not None and runtime.exempt_when():
            return None
        key_func = runtime.key_func
        identity = asked.identities.get(id(key_func))
        if identity is None:
            identity = asked.identities[id(key_func)] = key_func()
        if identity:
            name = str(identity)
            return name, claim.charge(name, asked.costs)
    except Exception:
        if lenient:
            logger.debug("left out %s: this request lacks what it asks", claim.limit, exc_info=True)
        elif swallow:
            logger.exception(SWALLOWED)
        else:
            raise
        return None
    logger.error("Skipping limit: %s. Empty value found in parameters.", runtime.limit)
    return None


def admitted(engine: Engine, made: Charged, hold: Hold, *, take: bool = True) -> Outcome:
    """Decide, or only look. Charges of one bucket have one verdict between them."""
    decision = _decision(engine, made, hold) if take else engine.admit(made.charges, take=False)
    verdicts = decision.verdicts
    if len(verdicts) < len(made.charges):
        by_key = {verdict.charge.key: verdict for verdict in verdicts}
        verdicts = tuple(by_key[charge.key] for charge in made.charges)
    now, admission = decision.now_us, Admission(engine, hold, time.monotonic())
    entries = [
        Entry(claim, identity, charge.cost, verdict, now, admission)
        for claim, identity, charge, verdict in zip(
            made.claims, made.identities, made.charges, verdicts, strict=True
        )
    ]
    own = len(entries) - made.metas
    return Outcome(decision, entries[:own], entries[own:])


def _decision(engine: Engine, made: Charged, hold: Hold) -> Decision:
    """All in one call; where nothing can be given back, what is conditional is only looked at."""
    conditional = [claim.runtime.deduct_when is not None for claim in made.claims]
    if engine.gives_back or not any(conditional):
        return engine.admit(made.charges, hold=hold)
    pairs = list(zip(made.charges, conditional, strict=True))
    looked = engine.admit([charge for charge, later in pairs if later], take=False)
    taken = engine.admit([charge for charge, later in pairs if not later], take=looked.admitted)
    by_key = [{v.charge.key: v for v in decision.verdicts} for decision in (taken, looked)]
    return Decision(
        looked.admitted and taken.admitted,
        looked.now_us,
        tuple(by_key[later][charge.key] for charge, later in pairs),
    )
