"""The line: a request that only limits with ``wait`` deny waits for its turn instead.

Its charge is taken ahead, so the bucket is in debt until its turn has come, and the request sleeps
that long. Who comes later finds the debt: first come, first served, without a call of the storage
in between. A call that needs a slot takes one that does not exist yet: it begins when only so many
are left that came before it, and the release of the last one wakes it. All other limits of the
request are charged when its turn has come. If it does not start then, what was taken ahead is given
back.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any, Final

import flask

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.events import Events, WaitEvent, WaitOutcome
from ratelimit_ext.engine.bell import bell
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.settlements.queue import SettlementQueue
from ratelimit_ext.web.request.request_state import WAITED, RequestState

#: How soon a client that leaves the line for a slot is noticed, in seconds.
NOTICED_S: Final = 0.5
#: When a call looks for its slot without having been woken: a lease may have ended.
LOOK_EVERY_S: Final = 5.0
#: Where servers put the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")


@dataclass(frozen=True, slots=True)
class Line:
    """Lets requests wait, for one extension, each at one of the ``places`` of this process.
    ``client`` is that of the storage, if workers share it."""

    places: BoundedSemaphore
    client: Any
    settlements: SettlementQueue
    events: Events
    lease_s: float

    def turn(
        self,
        state: RequestState,
        engine: Engine,
        charges: Sequence[Charge],
        denied: Decision,
        hold: Hold,
    ) -> Decision:
        """Return what is decided when it is the turn of a denied request; the denial as it is now
        if the request cannot wait."""
        asked = {verdict.charge.key: verdict.charge for verdict in denied.denials}
        waited_us = state.waited_us  # by an earlier decision of the request
        outcome: WaitOutcome = "refused"
        began, decision = time.monotonic(), denied
        placed: Sequence[Verdict] = ()
        if not (
            all(_may_wait(verdict, waited_us) for verdict in denied.denials)
            and _has_threads()
            and self.places.acquire(blocking=False)
        ):
            self._emit(asked, outcome, 0.0)
            return denied
        try:
            ahead = [each._replace(limit=each.limit.in_line()) for each in asked.values()]
            if hold.id:
                self.settlements.begin(engine, hold, charges)
            first = engine.admit(ahead, hold=hold)
            own = {v.charge.key: v._replace(charge=asked[v.charge.key]) for v in first.verdicts}
            placed = tuple(own.values()) if first.admitted else ()
            if not (placed and all(_may_wait(verdict, waited_us) for verdict in placed)):
                # Others were faster: the wait is longer now.
                longer = {key: verdict for key, verdict in own.items() if not verdict.allowed}
                return denied.with_verdicts(longer)
            wait_us = max(verdict.retry_after_us or 0 for verdict in placed)
            self._give_back(engine, _counted(denied), NO_HOLD)
            outcome = "left"
            if not wait_us or _sleep(wait_us / 1_000_000):
                outcome = self._slots(engine, asked.values(), hold, began - waited_us / 1_000_000)
            if outcome == "denied":  # unless all others admit it
                passed_us = int((time.monotonic() - began) * 1_000_000)
                state.waited_us = waited_us + max(wait_us, passed_us)
                flask.after_this_request(lambda response: _with_wait(response, state.waited_us))
                # What was taken ahead is only looked at: nothing of it is taken, nor held again.
                rest = [
                    each._replace(cost=0, meta=True, on_denial=(place,))
                    if each.key in asked
                    else each
                    for place, each in enumerate(charges)
                ]
                decision = engine.admit(rest, hold=hold)
            if decision.admitted:
                outcome, now = "started", [v for v in decision.verdicts if v.charge.key in asked]
                decision = decision.with_verdicts(
                    {v.charge.key: v._replace(charge=asked[v.charge.key]) for v in now}
                )
            return decision
        finally:
            self.places.release()
            if outcome != "started":
                self._give_back(engine, placed, hold)
                self.settlements.end(engine, hold)
            self._emit(asked, outcome, time.monotonic() - began if placed else 0.0)

    def _slots(
        self, engine: Engine, charges: Iterable[Charge], hold: Hold, began: float
    ) -> WaitOutcome:
        """Wait until the call has each slot that it is in line for; ``denied`` if it has: the rest
        is decided then."""
        for charge in charges:
            if not charge.limit.traits.ends_with_calls:
                continue
            ends = began + (charge.limit.wait or 0) / 1_000_000
            with bell.waiting(hold.id, charge.key, self.client) as woken:
                look_at = 0.0
                while woken.is_set() or time.monotonic() >= min(ends, look_at):
                    woken.clear()
                    if engine.settle([Change.start(charge, hold)]):
                        break
                    if time.monotonic() >= ends:
                        return "late"
                    look_at = time.monotonic() + LOOK_EVERY_S
                    while not woken.wait(max(0.0, min(NOTICED_S, ends - time.monotonic()))):
                        if not _sleep(0):
                            return "left"
                        if time.monotonic() >= min(ends, look_at):
                            break
        return "denied"

    def _give_back(self, engine: Engine, taken: Sequence[Verdict], hold: Hold) -> None:
        changes = [
            Change.settle(verdict, hold, 0)
            if verdict.charge.limit.held
            else Change.adjust(verdict, -verdict.charge.cost)
            for verdict in taken
        ]
        if changes:
            self.settlements.send(engine, changes, lease_s=self.lease_s, events=self.events)

    def _emit(self, asked: Mapping[str, Charge], outcome: WaitOutcome, seconds: float) -> None:
        for charge in asked.values() if self.events.listeners else ():
            if charge.limit.wait is not None:
                self.events.emit(WaitEvent(charge.limit, outcome, seconds))


def _may_wait(denial: Verdict, waited_us: int) -> bool:
    """Return whether its limit lets a request wait for as long as it has to."""
    wait_us, longest_us = denial.retry_after_us, denial.charge.limit.wait
    return (
        wait_us is not None
        and longest_us is not None
        and denial.reason == "limit"
        and not denial.charge.meta
        and wait_us + waited_us <= longest_us
    )


def _counted(denied: Decision) -> list[Verdict]:
    """Return the limits on denials that have counted a request that waits."""
    verdicts = denied.verdicts
    failed = {place for place, verdict in enumerate(verdicts) if not verdict.allowed}
    return [
        each
        for each in verdicts
        if each.charge.meta
        and each.allowed
        and not failed.isdisjoint(each.charge.on_denial or failed)
    ]


def _has_threads() -> bool:
    """Return whether the server has other threads for other requests; gunicorn's default worker
    has none."""
    environ = flask.request.environ
    return bool(environ.get("wsgi.multithread") or CONNECTIONS[0] not in environ)


def _sleep(seconds: float) -> bool:
    """Sleep; returns false as soon as the client has left, where the server tells its connection.
    What the client sends meanwhile does not wake it."""
    connection = next(filter(None, map(flask.request.environ.get, CONNECTIONS)), None)
    if connection is None or not hasattr(select, "POLLRDHUP"):  # only Linux tells at once
        time.sleep(seconds)
        return True
    watch = select.poll()
    watch.register(connection, select.POLLRDHUP)
    return not watch.poll(seconds * 1000)


def _with_wait(response: flask.Response, waited_us: int) -> flask.Response:
    response.headers[WAITED] = str(-(-waited_us // 1000))
    return response
