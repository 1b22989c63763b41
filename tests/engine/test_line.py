"""Requests that wait for their turn: charged ahead, on each engine."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.bell import CHANNEL, bell
from ratelimit_ext.engine.last_verdicts import LastVerdicts
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.settlements.journal import Line
from tests.strategies.virtual_time import VirtualClient
from tests.strategies.world import MINUTE, SECOND, World
from tests.web.conftest import Clock

PACE = Limit(30, MINUTE, "token-bucket", burst=10, name="pace", wait=10 * SECOND)
SLOTS = Limit(2, SECOND, "concurrency", unit="calls", name="slots")


def queued(world: World, limit: Limit, cost: int = 1) -> Verdict:
    """A request that may wait: as it is, else ahead of its turn."""
    verdict = world.call(limit, cost)
    return verdict if verdict.allowed else world.call(limit.in_line(), cost)


def start_us(world: World, verdict: Verdict) -> int:
    assert verdict.retry_after_us is not None
    return world.now_us + verdict.retry_after_us


def test_ten_at_once_then_one_every_two_seconds(world: World) -> None:
    """The tutorial's loop: five of fifteen wait, the sixteenth would wait for longer."""
    answers = [queued(world, PACE) for _ in range(17)]
    assert [each.allowed for each in answers] == [True] * 15 + [False] * 2
    assert [each.retry_after_us for each in answers[9:]] == [
        second * SECOND for second in (0, 2, 4, 6, 8, 10, 12, 12)
    ]


def test_a_part_of_a_unit(world: World) -> None:
    """A wait between two units is as good as any, up to the deadline."""
    limit = Limit(1, MINUTE, "token-bucket", wait=90 * SECOND)
    assert queued(world, limit).retry_after_us == 0
    world.wait(20)
    assert queued(world, limit).retry_after_us == 40 * SECOND
    denied = queued(world, limit)
    assert (denied.allowed, denied.retry_after_us) == (False, 100 * SECOND)
    world.wait(10, us=-1)
    assert not queued(world, limit).allowed
    world.wait(us=1)
    assert queued(world, limit).retry_after_us == 90 * SECOND


def test_who_waits_keeps_those_after_it_waiting(world: World) -> None:
    """Until it starts, no one passes it, however little they cost; who leaves makes room."""
    assert world.passed(PACE, 10) == 10
    large = queued(world, PACE, 3)
    assert large.retry_after_us == 6 * SECOND
    world.wait(6, us=-1)
    assert not world.call(PACE).allowed
    assert queued(world, PACE).retry_after_us == 2 * SECOND + 1
    world.settle(large, -3)
    assert [queued(world, PACE).retry_after_us for _ in range(3)] == [0, 1, 2 * SECOND + 1]


@pytest.mark.parametrize("seed", range(20))
def test_starts_never_exceed_the_limit(redis_client: redis.Redis, seed: int) -> None:
    """Both engines decide alike, to the microsecond; a request waits if its wait is within
    the deadline; starts are in the order of arrival; of any length of time the starts cost no more
    than the burst and what is refilled in it."""
    chance = random.Random(seed)
    client = VirtualClient(redis_client)
    worlds = World(MemoryEngine()), World(RedisEngine(client, redis.RedisError))
    starts = list[tuple[int, int]]()
    limit = Limit(
        chance.choice((1, 7, 30, 999)),
        chance.choice((SECOND, MINUTE, 3_600_000_001)),
        "token-bucket",
        burst=chance.choice((None, 1, 10)),
        wait=chance.choice((1, 3, 10, 77)) * SECOND,
    )
    for _ in range(120):
        step_us = chance.choice((0, 0, 1, chance.randrange(2 * limit.period_us // limit.amount)))
        cost = chance.randint(1, min(3, limit.capacity))
        for world in worlds:
            world.wait(us=step_us)
        theirs, ours = (world.call(limit, cost) for world in worlds)
        assert theirs == ours
        if not theirs.allowed:
            wait_us = theirs.retry_after_us
            theirs, ours = (world.call(limit.in_line(), cost) for world in worlds)
            assert theirs == ours
            assert theirs.retry_after_us == wait_us
            assert theirs.allowed is (wait_us is not None and wait_us <= (limit.wait or 0))
        if theirs.allowed:
            starts.append((start_us(worlds[0], theirs), cost))
    assert starts == sorted(starts, key=lambda start: start[0])
    for first, (begin_us, _) in enumerate(starts):
        units = 0
        for end_us, cost in starts[first:]:
            units += cost  # a start is rounded up to a microsecond
            refilled = Fraction(limit.amount * (end_us - begin_us + 1), limit.period_us)
            assert units <= limit.capacity + refilled


def test_only_the_highest_class_goes_into_debt(world: World) -> None:
    """What others are kept would be lost to a lower one."""
    limit = Limit(30, MINUTE, "token-bucket", burst=10, wait=10 * SECOND, keep=(("people", 4),))
    assert limit.of_class("people").wait == 10 * SECOND
    assert limit.of_class("batch").wait is None
    assert world.passed(limit.of_class("batch"), 20) == 6
    assert world.passed(limit.of_class("people"), 20) == 4
    assert queued(world, limit.of_class("people")).retry_after_us == 2 * SECOND


def test_an_outage_knows_the_limit_of_those_who_wait(world: World) -> None:
    """It is one bucket."""
    last = LastVerdicts()
    assert world.passed(PACE, 10) == 10
    last.note((time.monotonic(), world.request(Charge(PACE.in_line(), "bucket"))))
    rest = last.take(PACE, "bucket")
    assert rest is not None
    assert (rest.remaining, rest.reset_after_us > 20 * SECOND) == (0, True)


def test_an_outage_counts_what_is_in_line(world: World, clock: Clock) -> None:
    """Also what the last one in line has taken ahead: nothing is left before its turn, and one unit
    two seconds later."""
    last, at = LastVerdicts(), clock.now_s
    assert world.passed(PACE, 10) == 10
    last.note((at, world.request(Charge(PACE.in_line(), "bucket", 3))))
    clock.forward(8)
    rest = last.take(PACE, "bucket")
    assert rest is not None
    assert (rest.remaining, rest.reset_after_us) == (1, 18 * SECOND)


def test_the_words_of_a_limit_do_not_change() -> None:
    """Journals of releases are read by other versions."""
    plain = Limit(30, MINUTE, "token-bucket", burst=10, name="pace")
    assert PACE.words() == PACE.in_line().words() == plain.words()


def test_slots_in_the_order_of_arrival(redis_client: redis.Redis) -> None:
    """Of two slots and forty calls in line, each begins when only one before it is left, in a
    bucket with more holds than its string has; both engines agree. Each release wakes the one
    whose turn it is."""
    chance = random.Random(7)
    client = VirtualClient(redis_client)
    worlds = World(MemoryEngine()), World(RedisEngine(client, redis.RedisError))
    charge = Charge(replace(SLOTS, wait=60 * SECOND), "slots")
    woken = redis_client.pubsub(ignore_subscribe_messages=True)
    woken.subscribe(CHANNEL)
    holds = [Hold(chance.getrandbits(48), 600 * SECOND) for _ in range(42)]

    def both(act: Callable[[World], int]) -> int:
        first, second = map(act, worlds)
        assert first == second
        return first

    def settled(change: Change) -> int:
        return both(lambda world: world.engine.settle([change], now_us=world.now_us))

    def admitted(hold: Hold, own: Charge) -> int:
        return both(
            lambda world: int(world.engine.admit([own], hold=hold, now_us=world.now_us).admitted)
        )

    for number, hold in enumerate(holds):
        for world in worlds:
            world.wait(us=1)
        assert admitted(hold, charge) == (number < 2)
        if number >= 2:
            assert admitted(hold, charge._replace(limit=charge.limit.in_line()))
    running, line = holds[:2], holds[2:]
    gone = line.pop(20)
    assert settled(Change(charge, gone, "settle", (gone.id, 0)))
    for _ in range(3):  # the subscription, and the turn of one that runs already
        woken.get_message(timeout=0.1)
    while line:
        assert not any(settled(Change.start(charge, each)) for each in line[:3])
        over = running.pop(chance.randrange(2))
        assert settled(Change(charge, over, "settle", (over.id, 0)))
        turn = woken.get_message(timeout=30)
        assert turn is not None
        assert int(turn["data"]) == line[0].id
        assert not any(settled(Change.start(charge, each)) for each in line[1:3])
        assert settled(Change.start(charge, line[0]))
        running.append(line.pop(0))
    for each in running:
        assert settled(Change(charge, each, "settle", (each.id, 0)))
    assert [world.call(SLOTS, 0, "slots").remaining for world in worlds] == [2, 2]


def test_a_place_of_a_killed_worker(world: World) -> None:
    """It is free when its lease ends, and those behind it begin."""
    charge = Charge(replace(SLOTS, amount=1, wait=60 * SECOND), "slots")
    holds = [Hold(number, number * 10 * SECOND) for number in (1, 2, 3)]
    for hold in holds:
        limit = charge.limit.in_line()
        world.engine.admit([charge._replace(limit=limit)], hold=hold, now_us=world.now_us)
        world.wait(us=1)

    def begins(hold: Hold) -> int:
        return world.engine.settle([Change.start(charge, hold)], now_us=world.now_us)

    assert [begins(hold) for hold in holds] == [1, 0, 0]
    world.wait(10)
    assert begins(holds[2]) == 0
    world.wait(10)
    assert [begins(hold) for hold in holds] == [0, 0, 1]


@pytest.mark.parametrize("fair", [False, True])
def test_those_who_wait_through_an_outage_begin_in_order(world: World, fair: bool) -> None:
    """They waited beside calls that ran in the outage: these keep their slots in the storage, the
    others come as they came, and who is in line in the storage comes after them."""
    slots = replace(SLOTS, wait=60 * SECOND, fair=fair)
    here, earlier = MemoryEngine(now_us=lambda: world.now_us), Hold(1, MINUTE)
    holds = [Hold(number, MINUTE) for number in (50, 60, 30, 40, 10, 20)]
    world.engine.admit([Charge(slots.in_line(), "b")], hold=earlier, now_us=world.now_us)
    for number, hold in enumerate(holds):
        world.wait(us=1)
        limit = slots.of_member("here") if number < 2 else slots.of_member("here").in_line()
        assert here.admit([Charge(limit, "b")], hold=hold).admitted
    charge, moved = Charge(slots, "b"), here.take_over(slots, "b", None).holds
    resumed = [Change.resume(charge, hold, *of, at) for at, (hold, *of) in enumerate(moved)]
    assert world.engine.settle(resumed, now_us=world.now_us) == 6
    line = [*(sorted(holds[2:]) if fair else holds[2:]), earlier]

    def begins(hold: Hold) -> int:
        of = charge._replace(limit=slots.of_member("here"))
        return world.engine.settle([Change.start(of, hold)], now_us=world.now_us)

    running = holds[:2]
    while line:
        assert not any(map(begins, line))
        over = running.pop()
        world.engine.settle([Change(charge, over, "settle", (over.id, 0))], now_us=world.now_us)
        assert [begins(each) for each in line] == [1] + [0] * (len(line) - 1)
        running.append(line.pop(0))


def test_a_forked_child_has_no_one_in_line() -> None:
    """Its thread would listen for them for ever, and a lock that the parent held stay closed."""
    with bell.waiting(1, "b", None), bell._changes:
        child = os.fork()
        if child == 0:
            os._exit(len(bell._waiting) + bell._changes.locked())
    assert os.waitpid(child, 0)[1] == 0


class Shared:
    """Slots that members of a group share, on several engines that have to agree."""

    def __init__(self, *worlds: World, fair: bool = True, slots: int = 3) -> None:
        self.worlds = worlds
        limit = replace(SLOTS, amount=slots, wait=60 * SECOND, fair=fair)
        self.charge = Charge(limit, "slots")
        self.running: list[tuple[Hold, str]] = []
        self.line: list[tuple[Hold, str]] = []
        self._chance = random.Random(26)

    def both(self, act: Callable[[World], int]) -> int:
        [answer] = {act(world) for world in self.worlds}
        return answer

    def of(self, member: str) -> Charge:
        limit = self.charge.limit
        return self.charge._replace(limit=limit.of_member(member) if limit.fair else limit)

    def come(self, member: str) -> None:
        """Begins if a slot is free; else the call is in line."""
        hold, own = Hold(self._chance.getrandbits(48), 600 * SECOND), self.of(member)
        for world in self.worlds:
            world.wait(us=1)
        for place, limit in ((self.running, own.limit), (self.line, own.limit.in_line())):
            if self.admitted(own._replace(limit=limit), hold):
                place.append((hold, member))
                return

    def admitted(self, charge: Charge, hold: Hold) -> int:
        return self.both(
            lambda world: int(world.engine.admit([charge], hold=hold, now_us=world.now_us).admitted)
        )

    def settled(self, change: Change) -> int:
        return self.both(lambda world: world.engine.settle([change], now_us=world.now_us))

    def over(self, call: tuple[Hold, str]) -> None:
        (self.running if call in self.running else self.line).remove(call)
        hold, member = call
        assert self.settled(Change(self.of(member), hold, "settle", (hold.id, 0)))

    def begins(self, call: tuple[Hold, str]) -> bool:
        hold, member = call
        if not self.settled(Change.start(self.of(member), hold)):
            return False
        self.line.remove(call)
        self.running.append(call)
        return True

    def has(self, member: str) -> int:
        return [each for _, each in self.running].count(member)


@pytest.mark.parametrize("fair", [True, False])
def test_one_with_fifty_calls_beside_nine_others(fair: bool) -> None:
    """Ten users, four slots, calls of one length: each of them has its part, Jain's index 1.00.
    Without members it is the one with fifty calls who has it."""
    slots, got = Shared(World(MemoryEngine()), fair=fair, slots=4), Counter[str]()
    for member in ["greedy"] * 50 + [f"user {number}" for number in range(9)]:
        slots.come(member)
    for _ in range(400):
        over = slots.running[0]
        slots.over(over)
        got[over[1]] += 1
        slots.come(over[1])  # who has had a turn comes at once again
        while any(slots.begins(call) for call in tuple(slots.line)):
            pass
        assert len(slots.running) == 4
    index = got.total() ** 2 / (10 * sum(calls**2 for calls in got.values()))
    assert (index >= 0.99) is fair
    assert (index <= 0.2) is not fair


def test_a_turn_that_another_call_does_not_take(world: World) -> None:
    """Two slots are free, and the second in line begins before the first, as its worker is faster:
    the other slot is the first one's, and not the third's."""
    slots = Shared(world, slots=2)
    for member in ("x", "x", "a", "b", "c"):
        slots.come(member)
    for call in tuple(slots.running):
        slots.over(call)
    first, second, third = sorted(slots.line, key=lambda call: slots.of(call[1]).limit.member)
    assert [slots.begins(call) for call in (second, third, first)] == [True, False, True]


def test_a_start_that_is_sent_again(world: World) -> None:
    """Its reply was lost: the call has begun, though others are in line."""
    slots = Shared(world, slots=1)
    for member in ("a", "b", "c"):
        slots.come(member)
    slots.over(slots.running[0])
    [call] = [each for each in tuple(slots.line) if slots.begins(each)]
    assert slots.settled(Change.start(slots.of(call[1]), call[0])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_turns_of_members(redis_client: redis.Redis, seed: int) -> None:
    """Both engines agree, also with more holds than a bucket's string has. Whose turn it is, none
    that waits has fewer running calls, and it is the first of its member; a release wakes it. Never
    do more calls run than there are slots."""
    chance = random.Random(seed)
    slots = Shared(
        World(MemoryEngine()), World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    )
    woken = redis_client.pubsub(ignore_subscribe_messages=True)
    woken.subscribe(CHANNEL)
    woken.get_message(timeout=1)
    for _ in range(120):
        if len(slots.line) < 25 and chance.random() < 0.55:
            slots.come(chance.choice("aaabcde"))
        elif chance.random() < 0.2 and slots.line:
            slots.over(chance.choice(slots.line))
        elif slots.running:
            slots.over(chance.choice(slots.running))
        turns = set[int]()
        while (turn := woken.get_message(timeout=0.001)) is not None:
            turns.add(int(turn["data"]))
        for call in chance.sample(slots.line, len(slots.line)):
            fewest = min(slots.has(member) for _, member in slots.line)
            first = next(each for each in slots.line if each[1] == call[1])
            had, may = slots.has(call[1]), len(slots.running) < 3
            if slots.begins(call):
                assert may
                assert call is first
                assert had == fewest
                assert call[0].id in turns
        assert len(slots.running) == min(3, len(slots.running) + len(slots.line))
    for call in (*slots.line, *slots.running):
        slots.over(call)
    assert [world.call(SLOTS, 0, "slots").remaining for world in slots.worlds] == [2, 2]


@pytest.mark.parametrize("verb", ["settle", "release"])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("fair", [False, True])
def test_a_lower_class_wakes_who_waits(
    redis_client: redis.Redis, fair: bool, kept: bool, verb: str
) -> None:
    """It may use fewer slots than there are: this one is for the first in line nevertheless, whose
    worker would look only seconds later. So it is after an outage, whose changes a journal kept."""
    world = World(RedisEngine(redis_client, redis.RedisError))
    woken = redis_client.pubsub(ignore_subscribe_messages=True)
    woken.subscribe(CHANNEL)
    woken.get_message(timeout=1)
    slots = replace(SLOTS, amount=4, wait=60 * SECOND, fair=fair, keep=(("people", 2),))
    high, low = [slots.of_class(name).of_member(name) for name in ("people", "batch")]
    for number, limit in enumerate([low, low, high, high, high.in_line(), high.in_line()], 1):
        assert world.engine.admit([Charge(limit, "b")], hold=Hold(number, MINUTE)).admitted
    hold = Hold(1, MINUTE)
    change = Change(Charge(low, "b"), hold, verb, (hold.id, 0)[: 2 if verb == "settle" else 1])
    if kept:
        change = Line.decode(Line([change], None, 1, 0.0).encode()).changes[0]
    assert world.engine.settle([change])
    message = woken.get_message(timeout=30)
    assert message is not None
    assert int(message["data"]) == 5
    assert woken.get_message(timeout=0.001) is None


def test_a_limit_becomes_fair_while_its_slots_are_taken(world: World) -> None:
    """Calls from before keep their slots, and those of them that are in line come first."""
    slots = Shared(world, fair=False)
    plain = slots.charge.limit
    world.wait(us=2**31)
    for _ in range(4):
        slots.come("earlier")
    earlier = slots.line[0]
    slots.charge = slots.charge._replace(limit=replace(plain, fair=True))
    for number in range(20):
        slots.come(f"member {number}")
    waiting = [call for call in slots.line if call is not earlier]
    assert not any(slots.begins(call) for call in waiting)
    slots.over(slots.running[0])
    assert not any(slots.begins(call) for call in waiting)
    slots.charge = slots.charge._replace(limit=plain)
    assert slots.begins(earlier)
    slots.charge = slots.charge._replace(limit=replace(plain, fair=True))
    slots.over(slots.running[0])
    assert [slots.begins(call) for call in waiting].count(True) == 1


def test_members_of_a_limit_that_changes(world: World) -> None:
    """A limit that becomes fair, or is so no longer, counts the calls that are there, and lets no
    more run."""
    slots = Shared(world)
    plain = slots.charge.limit
    for fair in (False, True, False, True):
        slots.charge = slots.charge._replace(limit=replace(plain, fair=fair))
        slots.come("a")
        slots.come("b")
    assert len(slots.running) == 3
    for _ in range(8):
        slots.over(slots.running[0])
        for call in tuple(slots.line):
            slots.begins(call)
        assert len(slots.running) <= 3
        if not slots.running:
            break
    assert world.call(SLOTS, 0, "slots").remaining == 2 - len(slots.line)
