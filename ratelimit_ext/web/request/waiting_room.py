"""The waiting room: a request that only limits with ``wait`` deny waits for its turn instead.

It leaves a ticket with each of them (:mod:`~ratelimit_ext.strategies.line`), sleeps until its turn,
and is decided again, with all its limits at once. So nothing is taken before it starts, whatever
happens meanwhile: if its ticket is lost, or another engine decides now, it gets its place again.
"""

from __future__ import annotations

import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from threading import BoundedSemaphore
from typing import Any, Final, NamedTuple, TypeAlias

import flask

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NEVER, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.events import Events, WaitEvent, WaitOutcome
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.wake_ups import wake_ups
from ratelimit_ext.settlements.queue import SettlementQueue
from ratelimit_ext.strategies.line import pause_us
from ratelimit_ext.web.request.request_state import WAITED, RequestState

#: How soon a client that leaves the line is noticed, in seconds.
NOTICED_S: Final = 0.5
#: The shortest sleep after the first: a higher class may take each turn.
LEAST_S: Final = 0.005
#: Where servers put the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")

#: Decides charges; returns the decision, the engine that made it, and the hold that it used.
Decide: TypeAlias = Callable[[Sequence[Charge], Hold], tuple[Decision, Engine, Hold]]


class Places(BoundedSemaphore):
    """The places of a process for requests that wait. If none is free, the flow (a bucket, or a
    class or member of it) with the most loses its last one to a flow with fewer.

    ``seats`` has the flow of each request that waits, by what wakes it."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.seats: dict[threading.Event, object] = {}
        self._changes = threading.Lock()

    def take(self, flow: object) -> threading.Event | None:
        with self._changes:
            if not self.acquire(blocking=False):
                count = Counter(self.seats.values())
                largest = max(count, key=count.__getitem__, default=flow)
                if count[largest] < count[flow] + 2:
                    return None
                lost = [seat for seat, of in self.seats.items() if of == largest][-1]
                del self.seats[lost]
                lost.set()
            seat = threading.Event()
            self.seats[seat] = flow
        return seat

    def leave(self, seat: threading.Event) -> None:
        with self._changes:
            if self.seats.pop(seat, None) is not None:
                self.release()


class WaitingRoom(NamedTuple):
    """Lets requests of one extension wait, each at one of the ``places`` of this process.
    ``client`` is the storage's, if workers share it."""

    places: Places
    client: Any
    settlements: SettlementQueue
    events: Events
    lease_s: float

    def turn(
        self,
        state: RequestState,
        decide: Decide,
        charges: Sequence[Charge],
        denied: tuple[Decision, Engine, Hold],
    ) -> tuple[Decision, Engine, Hold]:
        """Return what is decided when it is the turn of a denied request; the denial if the request
        cannot wait."""
        earlier_us = waited_us = state.waited_us  # by an earlier decision of the request
        asked = _denying(denied[0])
        outcome: WaitOutcome = "refused"
        may_wait = pause_us(denied[0].denials, earlier_us) is not None and _has_threads()
        first = denied[0].denials[0].charge
        seat = self.places.take((first.key, first.limit.part)) if may_wait else None
        if seat is None:
            self._emit(asked, outcome, 0.0)
            return denied
        looks, placed = list(map(_uncounted, charges)), dict[Engine, Hold]()
        began, decided = time.monotonic(), denied
        counted = self._give_back(*denied[:2])
        try:
            while True:
                with wake_ups.waiting(decided[2].id, self.client, seat):
                    decided = decide(looks, decided[2]._replace(waited_us=waited_us))
                    decision, engine, hold = decided
                    if decision.admitted:
                        outcome = "started"
                        return decided
                    placed[engine] = hold
                    sleep_us = pause_us(decision.denials, waited_us)
                    if sleep_us is None or seat not in self.places.seats:
                        break
                    outcome = "left"
                    asked |= _denying(decision)
                    if not _sleep(max(LEAST_S, sleep_us / 1_000_000), seat):
                        return denied[0], engine, hold
                waited_us = earlier_us + int((time.monotonic() - began) * 1_000_000)
            if outcome == "left":
                waits = [denial.charge.limit.wait is not None for denial in decision.denials]
                outcome = "late" if all(waits) else "denied"
            if counted:  # limits on denials count this refusal
                decided = decide(charges, hold._replace(waited_us=None))
                outcome = "started" if decided[0].admitted else outcome
            return decided
        finally:
            self.places.leave(seat)
            if outcome == "started":
                placed.pop(decided[1], None)
            self._leave(placed, charges)
            if outcome not in ("left", "refused"):
                state.waited_us = waited_us
                flask.after_this_request(lambda response: _with_wait(response, waited_us))
            self._emit(asked, outcome, 0.0 if outcome == "refused" else time.monotonic() - began)

    def _leave(self, placed: Mapping[Engine, Hold], charges: Sequence[Charge]) -> None:
        lines = [charge for charge in charges if charge.limit.wait is not None]
        for engine, hold in placed.items():
            ticket = hold._replace(waited_us=None)
            self._send(engine, [Change.leave(charge, ticket) for charge in lines])

    def _give_back(self, denied: Decision, engine: Engine) -> list[Verdict]:
        """Give back what limits on denials have counted; returns these."""
        counted = _counted(denied)
        self._send(engine, [Change.adjust(verdict, -verdict.charge.cost) for verdict in counted])
        return counted

    def _send(self, engine: Engine, changes: Sequence[Change]) -> None:
        if changes:
            self.settlements.send(engine, changes, lease_s=self.lease_s, events=self.events)

    def _emit(self, asked: Mapping[str, Charge], outcome: WaitOutcome, seconds: float) -> None:
        for charge in asked.values() if self.events.listeners else ():
            if charge.limit.wait is not None:
                self.events.emit(WaitEvent(charge.limit, outcome, seconds))


def _denying(decision: Decision) -> dict[str, Charge]:
    return {verdict.charge.key: verdict.charge for verdict in decision.denials}


def _uncounted(charge: Charge) -> Charge:
    """Return a charge that no denial triggers, as that of a request that waits."""
    return charge._replace(on_denial=NEVER) if charge.meta else charge


def _counted(denied: Decision) -> list[Verdict]:
    """Return the limits on denials that have counted a request that waits."""
    failed = {place for place, verdict in enumerate(denied.verdicts) if not verdict.allowed}
    metas = [verdict for verdict in denied.verdicts if verdict.charge.meta and verdict.allowed]
    return [meta for meta in metas if not failed.isdisjoint(meta.charge.on_denial or failed)]


def _has_threads() -> bool:
    """Return whether the server has other threads for other requests; gunicorn's default worker
    has none."""
    environ = flask.request.environ
    return bool(environ.get("wsgi.multithread") or CONNECTIONS[0] not in environ)


def _sleep(seconds: float, woken: threading.Event) -> bool:
    """Sleep until the request is woken; returns false if its client has left."""
    ends = time.monotonic() + seconds
    while not woken.wait(min(NOTICED_S, seconds)):
        if _has_left():
            return False
        seconds = ends - time.monotonic()
        if seconds <= 0:
            break
    woken.clear()
    return not _has_left()


def _has_left() -> bool:
    """Return whether the client has left, where the server tells its connection and the system."""
    connection = next(filter(None, map(flask.request.environ.get, CONNECTIONS)), None)
    if connection is None or not hasattr(select, "POLLRDHUP"):  # only Linux tells at once
        return False
    watch = select.poll()
    watch.register(connection, select.POLLRDHUP)
    return bool(watch.poll(0))


def _with_wait(response: flask.Response, waited_us: int) -> flask.Response:
    response.headers[WAITED] = str(-(-waited_us // 1000))
    return response
