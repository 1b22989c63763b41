"""The line: a request that only limits with ``wait`` deny waits for its turn instead.

Its charge is taken ahead, so the bucket is in debt until its turn has come, and the request sleeps
that long. Who comes later finds the debt: first come, first served, without a call of the storage
in between. All other limits of the request are charged when its turn has come. If it does not start
then, what was taken ahead is given back.
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping, Sequence
from threading import BoundedSemaphore
from typing import Final

import flask

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.events import Events, WaitEvent, WaitOutcome
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.settlements.queue import SettlementQueue
from ratelimit_ext.web.request.request_state import WAITED, RequestState

#: Where servers put the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")


class Line:
    """Lets requests wait, for one extension: at most ``most`` of this process at a time."""

    def __init__(
        self,
        most: int,
        *,
        settlements: SettlementQueue,
        events: Events,
        lease_s: float,
    ) -> None:
        self.places = BoundedSemaphore(most)
        self._settlements = settlements
        self._events = events
        self._lease_s = lease_s

    def turn(
        self,
        state: RequestState,
        engine: Engine,
        charges: Sequence[Charge],
        denied: Decision,
        hold: Hold,
    ) -> tuple[Decision, Sequence[Charge]]:
        """Return what is decided when it is the turn of a denied request, and the charges of that;
        the denial as it is now if the request cannot wait."""
        asked = {verdict.charge.key: verdict.charge for verdict in denied.denials}
        waited_us = getattr(state, "waited_us", 0)  # by an earlier decision of the request
        outcome: WaitOutcome = "refused"
        began, decision = time.monotonic(), denied
        placed: Sequence[Verdict] = ()
        if not (
            all(_may_wait(verdict, waited_us) for verdict in denied.denials)
            and _has_threads()
            and self.places.acquire(blocking=False)
        ):
            self._emit(asked, outcome, 0.0)
            return denied, charges
        try:
            ahead = [each._replace(limit=each.limit.in_line()) for each in asked.values()]
            if hold.id:
                self._settlements.begin(engine, hold, charges)
            first = engine.admit(ahead, hold=hold)
            own = {v.charge.key: v._replace(charge=asked[v.charge.key]) for v in first.verdicts}
            placed = tuple(own.values()) if first.admitted else ()
            if not (placed and all(_may_wait(verdict, waited_us) for verdict in placed)):
                # Others were faster: the wait is longer now.
                longer = {key: verdict for key, verdict in own.items() if not verdict.allowed}
                return denied.with_verdicts(longer), charges
            wait_us = max(verdict.retry_after_us or 0 for verdict in placed)
            self._give_back(engine, _counted(denied), NO_HOLD)
            outcome = "left"
            if _sleep(wait_us / 1_000_000):
                outcome, state.waited_us = "denied", waited_us + wait_us
                flask.after_this_request(lambda response: _with_wait(response, state.waited_us))
                charges = [each._replace(cost=0) if each.key in asked else each for each in charges]
                decision = engine.admit(charges, hold=hold)
            if decision.admitted:
                outcome, now = "started", [v for v in decision.verdicts if v.charge.key in asked]
                decision = decision.with_verdicts(
                    {v.charge.key: v._replace(charge=asked[v.charge.key]) for v in now}
                )
            return decision, charges
        finally:
            self.places.release()
            if outcome != "started":
                self._give_back(engine, placed, hold)
                self._settlements.end(engine, hold)
            self._emit(asked, outcome, time.monotonic() - began if placed else 0.0)

    def _give_back(self, engine: Engine, taken: Sequence[Verdict], hold: Hold) -> None:
        changes = [
            Change.settle(verdict, hold, 0)
            if verdict.charge.limit.held
            else Change.adjust(verdict, -verdict.charge.cost)
            for verdict in taken
        ]
        if changes:
            self._settlements.send(engine, changes, lease_s=self._lease_s, events=self._events)

    def _emit(self, asked: Mapping[str, Charge], outcome: WaitOutcome, seconds: float) -> None:
        for charge in asked.values() if self._events.listeners else ():
            if charge.limit.wait is not None:
                self._events.emit(WaitEvent(charge.limit, outcome, seconds))


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
