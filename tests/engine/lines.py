"""Random histories of requests that wait for their turn, played on several engines at once.

The requests do what `web/request/waiting_room.py` does. Engines answer the same, to the digit. An
oracle that shares no code with them counts what has started: a bucket that leaks in fractions, or
the calls that run.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.wake_ups import CHANNEL
from ratelimit_ext.strategies.line import pause_us
from ratelimit_ext.web.request.waiting_room import LEAST_S
from tests.strategies.world import MINUTE, SECOND, START

CLASSES = ("people", "normal", "batch")
KEEP = (("people", 2), ("normal", 1))
SKEW = SECOND
#: A ticket ends that long after its turn or its last look, if its request does not look.
ENDS = 10 * SECOND + 1000

#: How many histories were played, and what happened in them.
counts: Counter[str] = Counter()


class Turns:
    """The ids that scripts of a server publish; without a server, all requests look each time."""

    def __init__(self, client: redis.Redis | None = None) -> None:
        self.client, self.fence = client, 0
        if client is not None:
            self.messages = client.pubsub(ignore_subscribe_messages=True)
            self.messages.subscribe(CHANNEL)
            self.published()

    def published(self) -> set[int] | None:
        if self.client is None:
            return None
        self.fence -= 1
        self.client.publish(CHANNEL, self.fence)
        found = set[int]()
        while (turn := self.messages.get_message(timeout=30)) is None or int(
            turn["data"]
        ) != self.fence:
            if turn is not None:
                found.add(int(turn["data"]))
        return found


@dataclass(eq=False)
class Request:
    """``look_at`` is when it looks again; ``is_free`` that another limit denies it from then on."""

    number: int
    arrived: int
    name: str
    member: str
    cost: int
    hold: Hold
    look_at: int = 0
    is_denied: bool = False
    looks: int = 0
    stalled_until: int = 0


@dataclass
class Bucket:
    """What has leaked, by the server's clock."""

    used: Fraction = Fraction(0)
    at: int = 0
    pace: int = 1

    def left(self, now: int, period: int) -> Fraction:
        """What is used now. It is not stored by who only looks: a clock may be set back."""
        passed = max(0, now - self.at)
        return max(Fraction(0), self.used - Fraction(passed * self.pace, period))

    def leak(self, now: int, period: int) -> None:
        self.used = self.left(now, period)
        if now > self.at or self.at - now > SKEW or not self.used:
            self.at = now


@dataclass
class History:
    """One history. ``trouble``: outages, lost data and clocks that are set."""

    engines: Sequence[Engine]
    limit: Limit
    chance: random.Random
    turns: Turns
    flush: Callable[[], object]
    trouble: bool = True
    now: int = START
    skew: int = 0
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    #: By request, what it has to give back.
    taken: dict[int, Decision] = field(default_factory=dict)
    bucket: Bucket = field(default_factory=Bucket)
    excused_until: int = 0
    #: When tickets were last lost, and a clock was last set.
    lost_at: int = 0
    set_at: int = 0
    number: int = 0

    @property
    def is_slots(self) -> bool:
        return self.limit.traits.ends_with_calls

    @property
    def clock(self) -> int:
        return self.now + self.skew

    def own(self, request: Request) -> Limit:
        limit = self.limit.of_class(request.name) if self.limit.keep else self.limit
        return limit.of_member(request.member) if limit.fair else limit

    def charges(self, request: Request) -> list[Charge]:
        other = Limit(0 if request.is_denied else 10**6, MINUTE, name="other", unit="tokens")
        return [
            Charge(self.own(request), "b:{line}", request.cost),
            Charge(other, "b:{denied}" if request.is_denied else "b:{other}"),
        ]

    def everywhere(self, act: Callable[[Engine], Any]) -> Any:
        counts["operations"] += 1
        answers = [act(engine) for engine in self.engines]
        assert all(each == answers[0] for each in answers), answers
        return answers[0]

    # -- requests --------------------------------------------------------------------------

    def arrive(self) -> None:
        self.number, self.now = self.number + 1, self.now + 1
        request = Request(
            self.number,
            self.now,
            self.chance.choice(CLASSES),
            self.chance.choice("aaabc"),
            1 if self.is_slots else self.chance.choice((1, 1, 1, 2)),
            Hold(
                self.chance.getrandbits(48) or 1,
                600 * SECOND,
                price=self.chance.choice((0, 0, 1, 100, 10**9)),
            ),
        )
        request.is_denied = self.chance.random() < 0.02
        if not self.decide(request, None).admitted:
            self.look(request)
        self.settle_down()

    def decide(self, request: Request, waited_us: int | None) -> Decision:
        hold = request.hold._replace(waited_us=waited_us)
        charges = self.charges(request)
        before = self.waits_before(request)
        decision = self.everywhere(
            lambda engine: engine.admit(charges, hold=hold, now_us=self.clock)
        )
        if decision.admitted:
            self.started(request, decision, before)
        if self.bucket.at - self.clock > SKEW or self.bucket.pace != self.limit.amount:
            self.bucket.leak(self.clock, self.limit.period_us)
            self.bucket.pace = self.limit.amount
        return decision

    def look(self, request: Request) -> None:
        """What a request does that was refused, or has waited."""
        waited_us = self.now - request.arrived
        request.looks += 1
        decision = self.decide(request, waited_us)
        is_new = request not in self.waiting
        if decision.admitted:
            if not is_new:
                self.waiting.remove(request)
            return
        if (sleep_us := pause_us(decision.denials, waited_us)) is not None:
            request.look_at = self.now + max(round(LEAST_S * SECOND), sleep_us)
            if is_new:
                self.waiting.append(request)
                counts["waits"] += 1
            return
        counts["refused" if is_new else "denied at the turn" if request.is_denied else "late"] += 1
        if not is_new:
            self.waiting.remove(request)
        self.leave(request)

    def leave(self, request: Request) -> None:
        change = Change.leave(self.charges(request)[0], request.hold)
        for engine in self.engines:
            engine.settle([change], now_us=self.clock)

    def settle_down(self) -> None:
        """All who are woken, or whose time has come, look: in the order in which they came."""
        for _ in range(1000):
            woken = self.turns.published()
            for each in self.waiting:
                if woken is None or each.hold.id in woken:
                    each.look_at = min(each.look_at, self.now)
            due = [
                each for each in self.waiting if max(each.look_at, each.stalled_until) <= self.now
            ]
            if not due:
                break
            count = len(self.running) + len(self.waiting)
            for each in sorted(due, key=lambda each: each.arrived):
                self.look(each)
            if woken is None and count == len(self.running) + len(self.waiting):
                break
        else:
            raise AssertionError("they look for ever")
        self.no_room()

    # -- the oracle ------------------------------------------------------------------------

    def waits_before(self, request: Request) -> list[Request]:
        """Those in line that have to start before the request."""
        return [
            each
            for each in self.waiting
            if each.number < request.number
            and each.name == request.name
            and (each.member == request.member or not self.limit.fair)
            and not each.stalled_until > self.now - ENDS
        ]

    def is_mixed(self, request: Request) -> bool:
        """Return whether the order of the request and later ones may have changed: a lost ticket is
        left again by the clock of that time, which was set after the request arrived, maybe within
        the same microsecond."""
        return request.arrived <= min(self.lost_at, self.set_at)

    def started(self, request: Request, decision: Decision, before: list[Request]) -> None:
        counts["starts"] += 1
        limit = self.own(request)
        if self.now >= self.excused_until and not self.is_mixed(request):
            assert not before, f"{request} before {before[0]}"
        late_us = self.now - request.arrived - (self.limit.wait or 0)
        assert late_us <= LEAST_S * SECOND or request.stalled_until
        if self.is_slots:
            assert len(self.running) + 1 <= limit.capacity
            self.running.append(request)
        else:
            self.bucket.leak(self.clock, limit.period_us)
            rounded = Fraction(3 * 300, MINUTE)  # microseconds of a clock that was set
            assert self.bucket.used + request.cost <= limit.capacity + rounded
            self.bucket.used += request.cost
        self.taken[request.number] = decision

    def no_room(self) -> None:
        """No request waits while there is room, but for the time in which a woken one starts."""
        waiting = [each for each in self.waiting if not each.stalled_until > self.now - ENDS]
        if not waiting or self.now < self.excused_until or len(waiting) < len(self.waiting):
            return
        if self.is_slots:
            for each in waiting:
                assert len(self.running) + 1 > self.own(each).capacity, each
            return
        used = self.bucket.left(self.clock, self.limit.period_us)
        ranks = [CLASSES.index(each.name) if self.limit.keep else 0 for each in waiting]
        firsts = [each for each, rank in zip(waiting, ranks, strict=True) if rank == min(ranks)]
        if not self.is_mixed(firsts[0]):
            del firsts[1:]
        ahead = Fraction(1000 * self.limit.amount, self.limit.period_us)
        assert any(used + each.cost > self.own(each).capacity - ahead for each in firsts), firsts

    # -- what happens ----------------------------------------------------------------------

    def pass_time(self) -> None:
        """Until someone looks, or not so long."""
        until = self.now + self.chance.choice((1, 1000, SECOND // 3, SECOND, 7 * SECOND))
        while True:
            times = [max(each.look_at, each.stalled_until) for each in self.waiting]
            next_at = min([until, *times])
            self.now = max(self.now, next_at)
            self.settle_down()
            if self.now >= until:
                return

    def some_leave(self) -> None:
        """The first, the last, or any number of those in line."""
        for _ in range(self.chance.choice((1, 1, 2, len(self.waiting)))):
            if self.waiting:
                counts["left"] += 1
                gone = self.waiting.pop(
                    self.chance.choice((0, -1, self.chance.randrange(len(self.waiting))))
                )
                self.leave(gone)
        self.settle_down()

    def one_is_denied_at_its_turn(self) -> None:
        if self.waiting:
            self.chance.choice(self.waiting).is_denied = True

    def one_is_over(self) -> None:
        """A call ends; or what a request has taken is given back, at once."""
        if self.is_slots:
            if self.running:
                over = self.running.pop(self.chance.randrange(len(self.running)))
                verdict = self.taken.pop(over.number).verdicts[0]
                self.everywhere(
                    lambda engine: engine.settle(
                        [Change.settle(verdict, over.hold, 0)], now_us=self.clock
                    )
                )
        elif self.taken and not self.limit.held:
            number = max(self.taken)
            verdict = self.taken.pop(number).verdicts[0]
            self.bucket.leak(self.clock, self.limit.period_us)
            self.bucket.used = max(Fraction(0), self.bucket.used - verdict.charge.cost)
            self.everywhere(
                lambda engine: engine.settle(
                    [Change.adjust(verdict, -verdict.charge.cost)], now_us=self.clock
                )
            )
        self.settle_down()

    def data_is_lost(self) -> None:
        """The server is empty; those who wait learn it when they look."""
        counts["losses"] += 1
        self.flush()
        self.running.clear()
        self.taken.clear()
        self.bucket = Bucket(at=self.clock, pace=self.limit.amount)
        self.lost_at = self.excused_until = self.now + ENDS
        for each in self.waiting:  # the listening thread has lost its connection
            each.look_at = min(each.look_at, self.now + self.chance.randrange(5 * SECOND))

    def outage(self) -> None:
        """Some of those in line cannot look for a while."""
        counts["outages"] += 1
        until = self.now + self.chance.choice((SECOND, 3 * SECOND, 14 * SECOND))
        for each in self.waiting:
            if self.chance.random() < 0.5:
                each.stalled_until = until
        self.lost_at = self.excused_until = max(self.excused_until, until + ENDS)

    def clock_is_set(self) -> None:
        step = self.chance.choice((-300_000, 300_000, -SECOND, 2 * SECOND, -5 * MINUTE))
        counts["clock steps"] += 1
        self.skew += step
        self.set_at = self.now
        # Those who sleep do not learn it: their turns have come earlier.
        asleep = [each.look_at for each in self.waiting]
        self.excused_until = max(self.excused_until, self.now + 10 * SECOND, *asleep, 0)

    def amount_changes(self) -> None:
        counts["overrides"] += 1
        amount = (
            self.chance.choice((5, 6, 8)) if self.is_slots else self.chance.choice((30, 60, 300))
        )
        self.limit = replace(self.limit, amount=amount, keep=self.limit.keep)
        self.excused_until = max(self.excused_until, self.now + ENDS)

    def play(self, steps: int) -> None:
        counts["histories"] += 1
        usual = [self.arrive] * 18 + [self.pass_time] * 7 + [self.one_is_over] * 5
        usual += [self.some_leave, self.one_is_denied_at_its_turn, self.amount_changes]
        if self.trouble:
            usual += [self.data_is_lost, self.outage, self.clock_is_set]
        for _ in range(steps):
            self.chance.choice(usual)()
        for each in self.waiting:
            each.stalled_until = min(each.stalled_until, self.now)
        for _ in range(200):
            if not self.waiting:
                return
            if self.is_slots and self.running:
                self.one_is_over()
            self.pass_time()
        raise AssertionError(f"{len(self.waiting)} wait for ever")


def any_limit(chance: random.Random) -> Limit:
    """Of all kinds that may wait."""
    wait = chance.choice((3, 20, 60)) * SECOND
    keep = chance.choice(((), KEEP))
    if chance.random() < 0.5:
        return Limit(
            5, SECOND, "concurrency", unit="calls", wait=wait, keep=keep, fair=chance.random() < 0.5
        )
    burst = chance.choice((4, 5, 10)) if keep else chance.choice((2, 4, 10))
    unit = chance.choice(("requests", "tokens"))
    return Limit(60, MINUTE, "token-bucket", burst=burst, unit=unit, wait=wait, keep=keep)
