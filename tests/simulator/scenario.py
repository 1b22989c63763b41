"""One run: callers, what breaks meanwhile, and what has to hold after each step.

**An amount is never exceeded**: what the storage has admitted and what was admitted without it are
each at most the amount, and once more for each loss of the storage's data that is documented. **The
bill** exceeds a budget by one call at most. **Each charge is settled once**: when all is repaired,
the storage has exactly what the calls have cost. **Slots return. A wait ends, and soon if
there is room. No request is a 500.**
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

from flask import Flask, request

from ratelimit_ext import Claim, DecisionEvent, Guess, Limiter
from ratelimit_ext.core import charge as charges
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.wake_ups import wake_ups
from ratelimit_ext.records.overrides import Overrides
from ratelimit_ext.settlements.queue import settlements
from tests.simulator.files import STALLS_S, Files
from tests.simulator.scheduler import Choices, Scheduler
from tests.simulator.storage import LATE_S, Network, Server
from tests.simulator.workers import CALLER, NUMBER, Worker

KINDS = ("money", "slots", "rate", "pace", "budget", "both")
STRATEGIES = ("fixed-window", "sliding-window", "token-bucket", "sliding-window-counter")
WAIT_S = 20
#: A budget, the most that a call of it may cost, and what is expected, in micro-dollars.
MICRO = 1_000_000
#: How often a request looks that no one wakes, and what a deadline and a way take beside it.
LOOK_S = 6.0
#: How long a ticket may last in the storage whose request has started without it, or has died.
TICKET_S = 10.0
#: After a repair all workers are back, journals are taken over, late calls arrive, and tickets end.
SETTLED_S = max(LATE_S) + TICKET_S + 1.0
LEASE_S = 130.0


class Violation(AssertionError):
    """What has to hold does not. ``kind`` is the name of the invariant."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(eq=False)
class Call:
    number: int
    worker: Worker
    at_s: float
    work_s: float
    estimate: int
    actual: int
    is_unseen: bool = False
    #: `due`, `asked`, `running`, `ending`, `over`, `killed`
    state: str = "due"
    #: By whom it was admitted: `storage` or `outage`.
    by: str = ""
    status: int = 0
    billed: int = 0
    began_at: float = 0.0

    @property
    def charged(self) -> int:
        """What is charged for it at least."""
        return self.estimate if self.state == "running" else min(self.estimate, self.actual)


@dataclass
class Size:
    """How much happens: a small one may be searched exhaustively."""

    calls: int = 14
    workers: int = 2
    most_faults: int = 4
    fates: tuple[float, ...] = (0.03, 0.02, 0.02)
    stops: tuple[float, ...] = (0.01, 0.006, 0.006)


SMALL = Size(calls=3, most_faults=1)


@dataclass
class Run:
    """``log`` has what happened, for a failure."""

    kind: str
    choices: Choices
    size: Size = field(default_factory=Size)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.choices)
        self.network = Network(self.scheduler, self._fate)
        self.scheduler.before_time = self._before_time
        self.calls: list[Call] = []
        self.workers: list[Worker] = []
        self.charges: dict[str, Charge] = {}
        self.is_calm = False
        self.losses = self.lost_units = self.kills = self.long_stalls = self.disturbed = 0
        self.stopped_since = self.stopped_until = 0.0
        self.healthy_since = self.scheduler.now_s
        self.room_since: float | None = None
        self._define()

    # -- what is drawn -----------------------------------------------------------------------

    def _define(self) -> None:
        draw = self.choices.among
        self.amount = (10, 20, 4)[draw(3)]
        self.strategy = STRATEGIES[draw(len(STRATEGIES))]
        if self.kind in ("slots", "pace"):
            self.amount = (2, 3, 1)[draw(3)]
        if self.kind == "budget":
            self.amount = 2 * MICRO
            self.strategy = ("fixed-window", "sliding-window")[draw(2)]
        self.flakiness = (0.0, 1.0, 4.0)[draw(3)]
        self.roughness = (0.0, 1.0, 3.0)[draw(3)]
        self.has_replica = bool(draw(2, often=0.5))

    @property
    def most(self) -> int:
        """The most that one call of a budget may cost."""
        return 900_000

    def text(self) -> str:
        if self.kind == "budget":
            return f"{self.amount // MICRO} usd/day"
        texts = {"slots": f"{self.amount} in flight", "pace": "60/minute"}
        return texts.get(self.kind, f"{self.amount}/day")

    def declare(self, app: Flask, limiter: Limiter) -> None:
        limiter.listen(self._listen)
        limiter.estimator("tokens")(lambda: self._call().estimate)
        limiter.estimator("usd")(self._guess)
        how: dict[str, Any] = {"name": "main"}
        if self.kind == "pace":
            how |= {"strategy": "token-bucket", "burst": self.amount, "wait": f"{WAIT_S} seconds"}
        elif self.kind == "slots":
            how |= {"wait": f"{WAIT_S} seconds"}
        else:
            how |= {"strategy": self.strategy}
        if self.kind in ("money", "both"):
            how |= {"unit": "tokens"}
        decorate = [limiter.limit(self.text(), **how)]
        if self.kind == "both":
            decorate.append(limiter.limit("2 in flight", name="slots"))

        def view() -> str:
            call = self._call()
            if self.kind == "budget":
                may = limiter.current.remaining_budget
                call.billed = min(call.actual, round((may or Decimal(0)) * MICRO))
                call.actual = call.billed
            if call.work_s:
                self.scheduler.sleep(call.work_s)
            usd = Decimal(call.actual) / MICRO
            if call.is_unseen and self.kind == "budget":
                usd = Decimal(call.estimate) / MICRO
                limiter.current.reservation.settle(usd=usd, unseen=True)
            else:
                limiter.settle(tokens=call.actual, usd=usd)
            call.state = "ending"
            return ""

        for each in decorate:
            view = each(view)
        app.add_url_rule("/", view_func=view)
        app.add_url_rule("/quiet", view_func=limiter.limit("1000000/day")(lambda: ""), endpoint="q")

    def _guess(self) -> Guess:
        call = self._call()
        claim = Claim(call.estimate, 2 * call.estimate, self.most, self.most)
        return Guess(Decimal(call.estimate) / MICRO, claim=claim)

    def _call(self) -> Call:
        return self.calls[int(request.environ[NUMBER])]

    def _draw_calls(self) -> None:
        draw = self.choices.among
        for number in range(self.size.calls):
            estimate = (1, 2, 3)[draw(3)]
            actual = max(0, estimate - draw(3))
            if self.kind == "budget":
                estimate = (100_000, 300_000)[draw(2)]
                actual = (self.most, estimate, 50_000)[draw(3)]
            elif self.kind in ("rate", "slots", "pace"):
                estimate = actual = 1
            self.calls.append(
                Call(
                    number,
                    self.workers[draw(len(self.workers))],
                    at_s=draw(20) * 0.25,
                    work_s=(0.0, 0.01, 0.4, 3.0)[draw(4)],
                    estimate=estimate,
                    actual=actual,
                    is_unseen=bool(draw(2, often=0.2)),
                )
            )

    # -- what happens --------------------------------------------------------------------------

    def play(self) -> None:
        """Raises :class:`Violation`."""
        charges._chance.seed(7)
        with tempfile.TemporaryDirectory() as directory, self._world():
            self._directory = Path(directory)
            for number in range(self.size.workers):
                self.workers.append(self._worker(f"w{number}"))
            is_ready = lambda: all(worker.is_ready for worker in self.workers)  # noqa: E731
            self.scheduler.run(until=is_ready, within_s=60)
            if self.has_replica:
                self.network.server.replica = Server(self.scheduler)
            try:
                self._play()
            finally:
                self.scheduler.end()
                for worker in self.workers:
                    worker.descriptors.close()

    @contextmanager
    def _world(self) -> Iterator[None]:
        self.files = Files(self.scheduler, self._at_write)
        before, Overrides.in_background = Overrides.in_background, False
        singletons = wake_ups.__dict__, settlements.__dict__
        try:
            with self.scheduler.instead_of_time_and_threads(), self.files.instead_of_the_systems():
                yield
        finally:
            Overrides.in_background = before
            wake_ups.__dict__, settlements.__dict__ = singletons

    def _worker(self, name: str) -> Worker:
        count = self.size.workers
        made = (self.scheduler, self.network, self._directory, self.declare)
        return Worker(name, *made, workers=count)

    def _play(self) -> None:
        self._draw_calls()
        for call in self.calls:
            self.scheduler.start(self._arrival(call), owner=None, name=f"arrival {call.number}")
        self.scheduler.start(self._breaks, owner=None, name="faults")
        are_over = self.scheduler.run(until=self._all_over, within_s=10 * WAIT_S)
        if not are_over:
            stuck = [call.number for call in self.calls if call.state not in ("over", "killed")]
            raise Violation("a wait ends", f"calls {stuck} do not")
        self.is_calm = True
        self._repair()
        self.scheduler.start(self._later_calls, owner=None, name="later calls")
        self.scheduler.run(until=lambda: False, within_s=SETTLED_S)
        if self.losses:  # a hold may come back that was released before: its lease has an end
            self.scheduler.run(until=lambda: False, within_s=LEASE_S)
        self._at_the_end()

    def _all_over(self) -> bool:
        return all(call.state in ("over", "killed") for call in self.calls) and self.is_broken_up

    is_broken_up = False

    def _arrival(self, call: Call) -> Callable[[], None]:
        def arrive() -> None:
            self.scheduler.sleep(call.at_s)
            worker = call.worker
            while not worker.is_ready:  # a balancer sends it to another
                self.scheduler.sleep(0.01)
                worker = next((w for w in reversed(self.workers) if w.is_ready), worker)
            call.worker = worker
            call.state = "asked"
            self.scheduler.start(lambda: self._ask(call), owner=worker, name=f"call {call.number}")

        return arrive

    def _ask(self, call: Call) -> None:
        environ = {CALLER: "ada", NUMBER: str(call.number)}
        try:
            call.status, _ = call.worker.answer("/", environ)
        except Exception as error:
            raise Violation("no request is a 500", f"call {call.number}: {error!r}") from error
        call.state = "over"
        self._note(f"call {call.number}: {call.status} {call.by}")
        # A worker that goes on alone may have no share, and budgets in dollars are closed.
        may_be_closed = self.kind == "budget" or self.long_stalls
        if call.status not in (200, 429) and not (call.status == 503 and may_be_closed):
            raise Violation("no request is a 500", f"call {call.number} got {call.status}")

    def _listen(self, event: Any) -> None:
        if isinstance(event, DecisionEvent) and event.admitted and NUMBER in request.environ:
            try:
                self._admitted(event)
            except Violation as violation:  # a listener's errors are logged
                self.scheduler.errors.append(violation)

    def _admitted(self, event: DecisionEvent) -> None:
        call = self._call()
        call.state, call.by = "running", "outage" if event.degraded else "storage"
        call.began_at = self.scheduler.now_s
        self._note(f"call {call.number} begins, by {call.by}")
        for _, _, charge in event.charges:
            self.charges[charge.limit.name] = charge
        self._never_above()

    def _note(self, text: str) -> None:
        self.log.append(f"{self.scheduler.now_s % 1000:8.4f} {text}")

    # -- what breaks ---------------------------------------------------------------------------

    def _fate(self) -> int:
        if self.is_calm:
            return 0
        fate = self.choices.choose([self.flakiness * each for each in self.size.fates])
        if fate:
            self.disturbed += 1
            self.healthy_since = self.scheduler.now_s + 5.0
            self._note(f"{self.scheduler.owner}: {('', 'lost reply', 'late', 'refused')[fate]}")
        return fate

    def _at_write(self) -> None:
        """A process may be stopped for a while before it writes, or be killed."""
        worker = self.scheduler.owner
        if self.is_calm or not isinstance(worker, Worker):
            return
        stops = [self.roughness * each for each in self.size.stops]
        stop = self.choices.choose(stops)
        if stop == len(stops):
            self._kill(worker)
            self.scheduler.wait()
        elif stop:
            self._note(f"{worker} is stopped for {STALLS_S[stop]} s")
            self.disturbed += 1
            now_s = self.scheduler.now_s
            # Who waits for the file may wait for one process after another.
            self.stopped_since = min(self.stopped_since, now_s)
            if now_s > self.stopped_until + 0.5:
                self.stopped_since = now_s
            self.stopped_until = max(self.stopped_until, now_s + STALLS_S[stop])
            self.long_stalls += self.stopped_until - self.stopped_since > 4.5
            self.scheduler.sleep(STALLS_S[stop])
            self.healthy_since = self.scheduler.now_s

    def _kill(self, worker: Worker) -> None:
        self._note(f"{worker} is killed")
        self.kills += 1
        self.healthy_since = self.scheduler.now_s
        worker.kill()
        for call in self.calls:
            if call.worker is worker and call.state in ("asked", "running", "ending"):
                call.state = "killed"

        def start_again() -> None:
            self.scheduler.sleep(0.2)
            self.workers.append(self._worker(f"{worker.name}'"))

        self.scheduler.start(start_again, owner=None, name="a new worker")

    def _breaks(self) -> None:
        draw = self.choices.among
        faults = [
            lambda: None,
            lambda: self._server_stops(empty=False),
            lambda: self._server_stops(empty=True),
            self._replica_takes_over,
            self._some_are_parted,
            self._last_worker_ends,
            self._replica_catches_up,
        ]
        for _ in range(draw(self.size.most_faults + 1)):
            self.scheduler.sleep(draw(16) * 0.2 + draw(8) * 0.0004)
            faults[draw(len(faults))]()
        self._repair()
        self.is_broken_up = True

    def _last_worker_ends(self) -> None:
        if worker := next((w for w in reversed(self.workers) if w.is_alive), None):
            self._kill(worker)

    def _server_stops(self, *, empty: bool) -> None:
        server = self.network.server
        self._note("the storage stops" + (" and loses its data" if empty else ""))
        server.stop()
        self.disturbed += 1
        self.scheduler.sleep((0.05, 0.7, 3.0)[self.choices.among(3)])
        server.start(empty=empty)
        self.losses += empty
        self.healthy_since = self.scheduler.now_s
        self._note("the storage is back")

    def _replica_catches_up(self) -> None:
        self.network.server.replicate()

    def _replica_takes_over(self) -> None:
        if self.network.server.replica is None:
            return
        self.disturbed += 1
        missed = self.network.promote(self.choices.among(4))
        self.lost_units += missed
        self.healthy_since = self.scheduler.now_s
        self._note(f"the replica takes over, without {missed} calls")

    def _some_are_parted(self) -> None:
        every = [worker for worker in self.workers if worker.is_alive]
        some = every if self.choices.among(2) else every[-1:]
        self._note(f"{some} cannot reach the storage")
        self.disturbed += 1
        self.network.part(some)
        self.scheduler.sleep((0.3, 2.0)[self.choices.among(2)])
        self.network.parted.clear()
        self.healthy_since = self.scheduler.now_s
        self._note("the network is repaired")

    def _repair(self) -> None:
        self.network.parted.clear()
        if not self.network.server.is_up:
            self.network.server.start()

    def _later_calls(self) -> None:
        while True:
            for worker in self.workers:
                if worker.is_ready:
                    ask = lambda worker=worker: worker.answer("/quiet", {CALLER: "eve"})  # noqa: E731
                    self.scheduler.start(ask, owner=worker, name="a later call")
            self.scheduler.sleep(1.1)

    # -- what has to hold ----------------------------------------------------------------------

    def _live(self, by: str) -> list[Call]:
        return [call for call in self.calls if call.by == by and call.state != "killed"]

    def _never_above(self) -> None:
        """After each admission."""
        again = self.losses
        slots = {"slots": self.amount, "both": 2}.get(self.kind)
        for by in ("storage", "outage"):
            calls = self._live(by)
            if slots is not None:
                running = [call.number for call in calls if call.state == "running"]
                times = (
                    1
                    + again
                    + self._locked_times(by)
                    + (self.network.resumed if by == "outage" else 0)
                )
                more = self.lost_units if by == "storage" else 0
                if len(running) > slots * times + more:
                    raise Violation("never above an amount", f"{running} run, by {by}")
            if self.kind in ("money", "both", "rate"):
                used = sum(call.charged for call in calls)
                more = 3 * self.lost_units
                if used > self.amount * (1 + again + self._locked_times(by)) + more:
                    raise Violation("never above an amount", f"{used} of {self.amount}, by {by}")
        if self.kind == "pace":
            self._pace()
        if self.kind == "budget":
            billed = sum(call.billed for call in self.calls if call.state != "killed")
            if billed > self.amount * (1 + again) + self.most * (1 + self.lost_units):
                raise Violation("the bill", f"{billed} of {self.amount}, with one call more")

    def _locked_times(self, by: str) -> bool:
        """Whether the file of the host may have been locked long enough that each worker went on
        with its own share."""
        return by == "outage" and self.long_stalls > 0

    starts: tuple[tuple[float, str], ...] = ()

    def _pace(self) -> None:
        """Of starts in any time: no more than the burst, and what has leaked meanwhile."""
        call = self._call()
        self.starts = (*self.starts, (self.scheduler.now_s, call.by))
        own = [at for at, by in self.starts if by == call.by]
        late_s = 0.05 if not self.disturbed else LOOK_S
        for place, first in enumerate(own):
            most = self.amount * (1 + self.losses) + self.lost_units + (own[-1] - first + late_s)
            if len(own) - place > most:
                raise Violation(
                    "never above an amount", f"{len(own) - place} starts in {own[-1] - first} s"
                )

    def _before_time(self, at: float) -> None:
        """No request waits while there is room."""
        if self.kind != "slots" or self.is_calm or self.lost_units:  # whose slots end with leases
            return
        waiting = [call for call in self.calls if call.state == "asked"]
        running = [call for call in self.calls if call.state in ("running", "ending")]
        if not waiting or len(running) >= self.amount or not self.network.server.is_up:
            self.room_since = None
            return
        if self.room_since is None:
            self.room_since = self.scheduler.now_s
        is_calm = not (self.disturbed or self.kills or self.roughness)
        since = max(self.room_since, 0.0 if is_calm else self.healthy_since)
        if at - since > (0.3 if is_calm else TICKET_S + LOOK_S):
            numbers = [call.number for call in waiting]
            raise Violation(
                "no wait while there is room",
                f"{numbers} for {at - since:.1f} s, beside {self._held('main')}",
            )

    def _at_the_end(self) -> None:
        """All is repaired, and all that waited was sent."""
        engine = self._engine()
        for name, charge in self.charges.items():
            look = charge._replace(cost=0, claim=None)
            if charge.limit.traits.ends_with_calls:
                left = engine.admit([look], take=False).verdicts[0].remaining
                if (
                    left != charge.limit.amount and not self.lost_units
                ):  # of a settlement that is lost
                    raise Violation("slots return", f"{name} is taken by {self._held(name)}")
            elif self.kind in ("money", "both", "budget", "rate") and not self.losses:
                engine.hand_over(charge.limit, charge.key)
                self._settled_once(engine.admit([look], take=False).used(0))

    def _engine(self) -> MemoryEngine:
        """What the storage answers now."""
        server = self.network.server
        return MemoryEngine(lambda: server.data, now_us=lambda: server.now_us)

    def _held(self, name: str) -> list[int]:
        """The calls that hold something of a limit, at the end of a run."""
        charge = self.charges[name]
        return [
            hold.id for hold, held, _ in self._engine().hand_over(charge.limit, charge.key) if held
        ]

    def _settled_once(self, used: int) -> None:
        done = [call for call in self.calls if call.by and call.state == "over"]
        least = sum(call.estimate if self._is_unseen(call) else call.actual for call in done)
        most = least
        sums = {least}
        for call in self.calls:
            if call.state == "killed":
                own = {0, call.estimate, call.actual}
                sums = {one + other for one, other in product(sums, own)}
        if self.kind == "rate":  # what a call took whose reply was lost
            most = max(sums) + self.network.faults
            is_right = min(sums) <= used <= most or self.lost_units
        else:
            is_right = used in sums or (self.lost_units and used <= max(sums))
        if not is_right:
            expected = f"{min(sums)} to {max(sums)}" if len(sums) > 1 else str(least)
            raise Violation(
                "each charge is settled once", f"{used} is charged instead of {expected}"
            )

    def _is_unseen(self, call: Call) -> bool:
        return call.is_unseen and self.kind == "budget"
