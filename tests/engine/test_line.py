"""Requests that wait for their turn, on each engine."""

import itertools
import os
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import redis

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.cluster import ClusterEngine
from ratelimit_ext.engine.entry import Entry
from ratelimit_ext.engine.last_verdicts import LastVerdicts
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.engine.wake_ups import CHANNEL, wake_ups
from ratelimit_ext.strategies.line import LOOK_US, pause_us
from tests.clocks import Clock
from tests.engine.slots import Slots
from tests.strategies.virtual_time import OpenBuckets, VirtualClient
from tests.strategies.world import HOUR, MINUTE, SECOND, World

PACE = Limit(30, MINUTE, "token-bucket", burst=10, name="pace", wait=10 * SECOND)
numbers = itertools.count(1000)
SLOTS = Limit(2, SECOND, "concurrency", unit="calls", name="slots")


def queued(
    world: World, limit: Limit, cost: int = 1, *, number: int = 0, waited_s: float = 0
) -> Verdict:
    """A request that may wait, under this number, or another each time."""
    hold = Hold(number or next(numbers), MINUTE, round(waited_s * SECOND))
    charge = Charge(limit, "bucket", cost)
    return world.engine.admit([charge], hold=hold, now_us=world.now_us).verdicts[0]


def leave(world: World, limit: Limit, number: int) -> None:
    change = Change.leave(Charge(limit, "bucket"), Hold(number, MINUTE))
    world.engine.settle([change], now_us=world.now_us)


@pytest.mark.parametrize(
    ("of_limit", "denial", "waited_us", "pause"),
    [
        ({}, {"retry_after_us": 10 * SECOND}, 0, 10 * SECOND),
        ({}, {"retry_after_us": 10 * SECOND}, 1, None),
        ({}, {"retry_after_us": None}, 0, None),
        ({}, {"reason": "budget-in-use"}, 0, None),
        ({"wait": None}, {}, 0, None),
        ({}, {"meta": True}, 0, None),
        ({"strategy": "concurrency", "unit": "calls"}, {"retry_after_us": None}, SECOND, LOOK_US),
        ({"strategy": "concurrency", "unit": "calls"}, {}, 8 * SECOND, 2 * SECOND),
        ({"strategy": "concurrency", "unit": "calls"}, {}, 10 * SECOND, None),
    ],
)
def test_a_request_pauses_until_its_turn_or_waits_no_longer(
    of_limit: dict[str, Any], denial: dict[str, Any], waited_us: int, pause: int | None
) -> None:
    """If its turn comes in time, and each limit that denies it lets it wait."""
    limit = replace(PACE, **({"burst": None} | of_limit))
    charge = Charge(limit, "bucket", meta=denial.pop("meta", False))
    verdict = Verdict(charge, False, 0, SECOND, 0, None)._replace(**denial)
    assert pause_us([verdict], waited_us) == pause


def test_a_wait_that_is_a_microsecond_short_gets_no_place(world: World) -> None:
    """A third of ten seconds is rounded up, and the next request is not behind it."""
    limit = Limit(3, 10 * SECOND, "token-bucket", name="third", wait=3_333_333)
    answers = [queued(world, limit).retry_after_us for _ in range(5)]
    assert answers == [0, 0, 0, 3_333_334, 3_333_334]


def test_ten_at_once_then_one_every_two_seconds(world: World) -> None:
    """The tutorial's loop: five of fifteen wait, the sixteenth would wait for longer, and takes no
    place."""
    answers = [queued(world, PACE) for _ in range(17)]
    assert [each.allowed for each in answers] == [True] * 10 + [False] * 7
    assert [each.retry_after_us for each in answers[9:]] == [
        second * SECOND for second in (0, 2, 4, 6, 8, 10, 12, 12)
    ]


def test_a_part_of_a_unit(world: World) -> None:
    """A wait between two units is as good as any, up to the deadline."""
    limit = Limit(1, MINUTE, "token-bucket", wait=90 * SECOND)
    assert queued(world, limit).allowed
    world.wait(20)
    assert queued(world, limit, number=1).retry_after_us == 40 * SECOND
    assert queued(world, limit).retry_after_us == 100 * SECOND
    world.wait(10, us=-1)
    assert queued(world, limit).retry_after_us == 90 * SECOND + 1
    world.wait(us=1)
    assert queued(world, limit).retry_after_us == 90 * SECOND
    assert queued(world, limit).retry_after_us == 150 * SECOND


def test_the_smallest_part_of_a_unit(world: World) -> None:
    """A request waits for it, too: what is missing is a seven-millionth of a token. It takes no
    other token's place."""
    two = Limit(3, 7 * SECOND, "token-bucket", burst=2, wait=9 * SECOND)
    limit = replace(two, burst=1)
    assert queued(world, two).allowed
    world.wait(us=2_333_333)
    assert queued(world, two).allowed
    world.engine.reset("")
    assert queued(world, limit).allowed
    world.wait(us=2_333_333)
    assert queued(world, limit, number=1).retry_after_us == 1
    world.wait(us=1)
    assert queued(world, limit, number=1, waited_s=0.000001).allowed


def test_who_waits_keeps_those_after_it_waiting(world: World) -> None:
    """Until it starts, no one passes it, however little they cost; who leaves makes room."""
    assert world.passed(PACE, 10) == 10
    assert queued(world, PACE, 3, number=1).retry_after_us == 6 * SECOND
    world.wait(6, us=-1)
    assert not world.call(PACE).allowed
    assert queued(world, PACE, number=2).retry_after_us == 2 * SECOND + 1
    leave(world, PACE, 1)
    assert queued(world, PACE, number=2, waited_s=0.1).allowed
    assert [queued(world, PACE).retry_after_us for _ in range(3)] == [0, 1, 2 * SECOND + 1]


def test_a_place_that_is_given_back(world: World) -> None:
    """Of ten in line the first five leave, and five come: those behind move up, the new ones come
    after them, and one starts a second."""
    limit = Limit(60, MINUTE, "token-bucket", burst=1, wait=20 * SECOND)
    assert world.passed(limit, 2) == 1
    for number in range(1, 11):
        assert queued(world, limit, number=number).retry_after_us == number * SECOND
    for number in range(1, 6):
        leave(world, limit, number)
    for number in range(11, 16):
        assert queued(world, limit, number=number).retry_after_us == (number - 5) * SECOND
    line, began = list(range(6, 16)), list[int]()
    for second in range(1, 11):
        world.wait(1)
        for number in line:
            if number not in began and queued(world, limit, number=number, waited_s=second).allowed:
                began.append(number)
        assert began == line[:second]


@pytest.mark.parametrize(
    ("wait_us", "waited_us", "in_line", "kept_us"),
    [
        (8 * SECOND + 1, 0, 1, 8 * SECOND + 1),
        (12 * SECOND, 3 * SECOND, 1, 9 * SECOND),
        (60 * SECOND, 0, 1, 10 * SECOND),
        (60 * SECOND, 0, 5, 15 * SECOND),
        (60 * SECOND, 0, 30, 60 * SECOND),
    ],
)
def test_a_line_is_kept_until_its_last_ticket_ends(
    wait_us: int, waited_us: int, in_line: int, kept_us: int
) -> None:
    """Five seconds after its turn, or its next look if that is later, and with its wait at the
    latest. So a worker that dies keeps no one waiting for longer."""
    buckets = OpenBuckets()
    world = World(MemoryEngine(lambda: buckets))
    limit = Limit(30, MINUTE, "token-bucket", burst=1, wait=wait_us)
    assert queued(world, limit).allowed
    for _ in range(in_line):
        assert not queued(world, limit, waited_s=waited_us / SECOND).allowed
    expiry_us = buckets.expiry_us("bucket:line")
    assert expiry_us == world.now_us + -(-kept_us // 1000) * 1000 + 1000


def test_a_ticket_ends_while_others_go_on(world: World) -> None:
    """A worker has died, and its request does not look again: it takes no turn from then on."""
    limit = Limit(30, MINUTE, "token-bucket", burst=1, wait=40 * SECOND)
    assert queued(world, limit).allowed
    assert queued(world, limit, number=1).retry_after_us == 2 * SECOND
    world.wait(1)
    assert queued(world, limit, 1, number=2).retry_after_us == 3 * SECOND
    world.wait(9, us=-1)
    assert not world.call(limit).allowed
    assert not queued(world, limit, number=2, waited_s=9).allowed
    world.wait(us=1)
    assert queued(world, limit, number=2, waited_s=9).allowed


def test_a_wait_is_as_long_as_is_left_of_it(world: World) -> None:
    """A request that waited three seconds in another line waits seven more in this one, or gets no
    place."""
    assert world.passed(PACE, 10) == 10
    assert queued(world, PACE, 3, number=1, waited_s=4).retry_after_us == 6 * SECOND
    assert queued(world, PACE, 1, waited_s=2.000001).retry_after_us == 8 * SECOND
    assert queued(world, PACE, 1, number=2, waited_s=2).retry_after_us == 8 * SECOND
    assert queued(world, PACE, 1).retry_after_us == 10 * SECOND


def test_another_limit_denies_at_the_turn(world: World) -> None:
    """Six wait, and five are denied by another limit at their turns: one starts a second."""
    limit = Limit(60, MINUTE, "token-bucket", burst=1, wait=20 * SECOND)
    other = Charge(Limit(2, HOUR, "fixed-window"), "other")
    holds = [Hold(number, MINUTE, 0) for number in range(1, 8)]
    looked = [
        world.engine.admit([Charge(limit, "bucket"), other], hold=each, now_us=world.now_us)
        for each in holds
    ]
    assert [each.admitted for each in looked] == [True] + [False] * 6
    starts = Counter[int]()
    for second in range(1, 8):
        world.wait(1)
        for hold in holds[1:]:
            looks = hold._replace(waited_us=second * SECOND)
            charges = [Charge(limit, "bucket"), other]
            answer = world.engine.admit(charges, hold=looks, now_us=world.now_us)
            starts[second] += answer.admitted
            if "other" in [each.charge.key for each in answer.denials]:
                leave(world, limit, hold.id)
    assert starts.total() == starts[1] == 1


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("shared", ["slots", "pace"])
def test_a_request_that_another_line_keeps_back_lets_others_pass(
    redis_client: redis.Redis, woken: Any, shared: str, fair: bool
) -> None:
    """It is its turn in one line, and not yet in the other: the next one goes first, and is woken.
    Then it has its former place."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    slots = replace(SLOTS, amount=1, wait=60 * SECOND, fair=fair)
    limits = {"slots": slots, "pace": replace(PACE, amount=6, burst=1, wait=60 * SECOND)}

    def asked(number: int, user: str, waited_s: float = 0) -> set[str]:
        """Ask, and return which limits deny the request."""
        charges = [
            Charge(limit.of_member(user), "bucket" if name == shared else f"{name} {user}")
            for name, limit in limits.items()
        ]
        hold = Hold(number, MINUTE, round(waited_s * SECOND))
        decision = world.engine.admit(charges, hold=hold, now_us=world.now_us)
        return {verdict.charge.limit.name for verdict in decision.denials}

    def end(number: int, user: str) -> None:
        bucket = "bucket" if shared == "slots" else f"slots {user}"
        charge, hold = Charge(slots.of_member(user), bucket), Hold(number, MINUTE)
        change = Change(charge, hold, "settle", (hold.id, 0))
        assert world.engine.settle([change], now_us=world.now_us)

    def next_woken() -> int:
        message = woken.get_message(timeout=30)
        assert message is not None
        return int(message["data"])

    assert asked(1, "ada") == set()
    if shared == "slots":
        end(1, "ada")
        assert asked(2, "cid") == set()
    assert asked(3, "ada") == {"slots", "pace"}
    assert asked(4, "bob") == {shared}
    assert asked(5, "eve") == {shared}
    if shared == "slots":
        end(2, "cid")
        assert next_woken() == 3
        assert asked(3, "ada") == {"pace"}
    else:
        world.wait(10)
        assert asked(3, "ada", 10) == {"slots"}
    assert next_woken() == 4
    waited_s = 0 if shared == "slots" else 10
    assert asked(4, "bob", waited_s) == set()
    world.wait(10)
    if shared == "pace":
        end(1, "ada")
        assert next_woken() == 5  # its turn is as soon as it would have been the third's
    else:
        assert asked(3, "ada", 10) == {"slots"}
        assert asked(5, "eve", 10) == {"slots"}
        end(4, "bob")
        assert next_woken() == (5 if fair else 3)  # eve has had no turn yet
    turn = (5, "eve") if fair and shared == "slots" else (3, "ada")
    assert asked(*turn, waited_s + 10) == set()


def test_another_limit_denies_before(world: World) -> None:
    """Then no place is taken."""
    limit = Limit(60, MINUTE, "token-bucket", burst=1, wait=20 * SECOND)
    assert world.passed(limit, 2) == 1
    charges = [Charge(limit, "bucket"), Charge(Limit(0, HOUR), "other")]
    world.engine.admit(charges, hold=Hold(1, MINUTE, 0), now_us=world.now_us)
    if isinstance(world.engine, ClusterEngine):  # its nodes do not know of each other
        leave(world, limit, 1)
    assert queued(world, limit).retry_after_us == SECOND


def test_a_clock_that_is_set_back(world: World) -> None:
    """A call that comes afterwards starts behind those that run, and behind those in line."""
    slots = replace(SLOTS, amount=1, wait=60 * SECOND)
    assert queued(world, slots, number=1).allowed
    world.wait(us=1)
    assert not queued(world, slots, number=2).allowed
    world.wait(-0.3)
    assert not queued(world, slots, number=3).allowed
    settle = Change(Charge(slots, "bucket"), Hold(1, MINUTE), "settle", (1, 0))
    assert world.engine.settle([settle], now_us=world.now_us)
    assert not queued(world, slots, number=3, waited_s=0.1).allowed
    assert queued(world, slots, number=2, waited_s=0.1).allowed


@pytest.mark.parametrize("limit", [PACE, replace(SLOTS, wait=60 * SECOND)], ids=["pace", "slots"])
def test_lost_data(world: World, limit: Limit) -> None:
    """Those who look afterwards start while there is room, and then have their former places."""
    amount = limit.capacity
    for number in range(1, 2 * amount + 4):
        queued(world, limit, number=number)
        world.wait(us=1)
    world.engine.reset("")
    waiting = list(range(amount + 1, 2 * amount + 4))
    waited = [1 + (4 * amount - number) / SECOND for number in waiting]
    begins = [
        queued(world, limit, number=number, waited_s=waited_s).allowed
        for number, waited_s in reversed(list(zip(waiting, waited, strict=True)))
    ]
    assert begins == [True] * amount + [False] * 3
    if limit is PACE:
        again = [
            queued(world, limit, number=n, waited_s=w)
            for n, w in zip(waiting[:3], waited, strict=False)
        ]
        assert [round((each.retry_after_us or 0) / SECOND) for each in again] == [2, 4, 6]


def test_each_class_waits(world: World) -> None:
    """A place in line takes nothing of what others are kept: higher classes start first."""
    limit = Limit(30, MINUTE, "token-bucket", burst=10, wait=10 * SECOND, keep=(("people", 4),))
    people, batch = limit.of_class("people"), limit.of_class("batch")
    assert world.passed(batch, 20) == 6
    assert queued(world, batch, number=1).retry_after_us == 2 * SECOND
    assert world.passed(people, 20) == 4
    assert queued(world, batch, number=1, waited_s=0.1).retry_after_us == 10 * SECOND
    assert queued(world, people, number=2).retry_after_us == 2 * SECOND
    world.wait(2)
    assert queued(world, people, number=2, waited_s=2).allowed


def test_an_outage_knows_the_limit_of_those_who_wait(world: World) -> None:
    """It is one bucket."""
    last = LastVerdicts()
    assert world.passed(PACE, 10) == 10
    queued(world, PACE)
    last.note((time.monotonic(), world.request(Charge(PACE, "bucket"))))
    rest = last.take(PACE, "bucket")
    assert rest is not None
    assert (rest.remaining, rest.reset_after_us > 20 * SECOND) == (0, True)


def test_an_outage_counts_what_is_in_line(world: World, clock: Clock) -> None:
    """Nothing is left before the turn of the last one in line, and one unit two seconds later."""
    last, at = LastVerdicts(), clock.now_s
    assert world.passed(PACE, 10) == 10
    queued(world, PACE, 3)
    last.note((at, world.request(Charge(PACE, "bucket", 0))))
    clock.forward(8)
    rest = last.take(PACE, "bucket")
    assert rest is not None
    assert (rest.remaining, rest.reset_after_us) == (1, 18 * SECOND)


def test_the_words_of_a_limit_do_not_change() -> None:
    """Journals of releases are read by other versions."""
    plain = Limit(30, MINUTE, "token-bucket", burst=10, name="pace")
    assert PACE.words() == plain.words()


def test_a_forked_child_has_no_one_in_line() -> None:
    """Its thread would listen for them for ever, and a lock that the parent held stay closed."""
    with wake_ups.waiting(1, None, threading.Event()), wake_ups._lock:
        child = os.fork()
        if child == 0:
            os._exit(len(wake_ups._waiting) + wake_ups._lock.locked())
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def woken(redis_client: redis.Redis) -> Any:
    """The messages to those whose turn it is."""
    messages = redis_client.pubsub(ignore_subscribe_messages=True)
    messages.subscribe(CHANNEL)
    messages.get_message(timeout=1)
    return messages


@pytest.mark.parametrize("fair", [True, False])
def test_one_with_fifty_calls_beside_nine_others(fair: bool) -> None:
    """Ten users, four slots, calls of one length: each of them has its part, Jain's index 1.00.
    Without members it is the one with fifty calls who has it."""
    slots, got = Slots(World(MemoryEngine()), fair=fair, slots=4), Counter[str]()
    for member in ["greedy"] * 50 + [f"user {number}" for number in range(9)]:
        slots.come(member)
    for _ in range(160):
        over = slots.running[0]
        slots.end(over)
        got[over.member] += 1
        slots.come(over.member)  # who has had a turn comes at once again
        slots.turns()
        assert len(slots.running) == 4
    index = got.total() ** 2 / (10 * sum(calls**2 for calls in got.values()))
    assert (index >= 0.99) is fair
    assert (index <= 0.2) is not fair


def test_a_turn_that_another_call_does_not_take(world: World) -> None:
    """Two slots are free, and the second in line begins before the first, as its worker is faster:
    the other slot is the first one's, and not the third's."""
    slots = Slots(world, slots=2)
    for member in ("x", "x", "a", "b", "c"):
        slots.come(member)
    for call in tuple(slots.running):
        slots.end(call)
    first, second, third = sorted(slots.line, key=lambda call: call.limit.part.member)
    assert [slots.look(call) for call in (second, third, first)] == [True, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_the_turns_of_members(redis_client: redis.Redis, woken: Any, seed: int) -> None:
    """Both engines agree, also with more holds than a bucket's string has. Whose turn it is, none
    that waits has fewer running calls, and it is the first of its member; a release wakes it. Never
    do more calls run than there are slots."""
    chance = random.Random(seed)
    slots = Slots(
        World(MemoryEngine()), World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    )
    for _ in range(120):
        if len(slots.line) < 25 and chance.random() < 0.55:
            slots.come(chance.choice("aaabcde"))
        elif chance.random() < 0.2 and slots.line:
            slots.end(chance.choice(slots.line))
        elif slots.running:
            slots.end(chance.choice(slots.running))
        turns = set[int]()
        while (turn := woken.get_message(timeout=0.001)) is not None:
            turns.add(int(turn["data"]))
        for call in chance.sample(slots.line, len(slots.line)):
            running = Counter(each.member for each in slots.running)
            fewest = min(running[each.member] for each in slots.line)
            first = next(each for each in slots.line if each.member == call.member)
            if slots.look(call):
                assert running.total() < 3
                assert call is first
                assert running[call.member] == fewest
                assert call.hold.id in turns
        assert len(slots.running) == min(3, len(slots.running) + len(slots.line))
    for call in (*slots.line, *slots.running):
        slots.end(call)
    assert [world.call(SLOTS, 0, "b:{slots}").remaining for world in slots.worlds] == [2, 2]


@pytest.mark.parametrize("verb", ["settle", "release"])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("fair", [False, True])
def test_a_lower_class_wakes_who_waits(
    redis_client: redis.Redis, woken: Any, fair: bool, kept: bool, verb: str
) -> None:
    """It may use fewer slots than there are: this one is for the first in line nevertheless, whose
    worker would look only seconds later. So it is after an outage, whose changes a journal kept."""
    world = World(RedisEngine(redis_client, redis.RedisError))
    slots = replace(SLOTS, amount=4, wait=60 * SECOND, fair=fair, keep=(("people", 2),))
    high, low = [slots.of_class(name).of_member(name) for name in ("people", "batch")]
    for number, limit in enumerate([low, low, high, high, high, high], 1):
        hold = Hold(number, MINUTE, 0)
        assert world.engine.admit([Charge(limit, "b")], hold=hold).admitted == (number <= 4)
    hold = Hold(1, MINUTE)
    change = Change(Charge(low, "b"), hold, verb, (hold.id, 0)[: 2 if verb == "settle" else 1])
    if kept:
        change = Entry.decode(Entry([change], None, 1, 0.0).encode()).changes[0]
    assert world.engine.settle([change])
    message = woken.get_message(timeout=30)
    assert message is not None
    assert int(message["data"]) == 5
    assert woken.get_message(timeout=0.001) is None


@pytest.mark.parametrize("verb", ["settle", "release"])
@pytest.mark.parametrize("over", ["ada", "bob"])
def test_a_call_that_ends_no_longer_counts_for_its_member(
    redis_client: redis.Redis, woken: Any, over: str, verb: str
) -> None:
    """Two members have nine calls each, more than a bucket's string has. One of them ends: it is
    its member's turn, whose worker is woken."""
    world = World(RedisEngine(redis_client, redis.RedisError))
    slots = replace(SLOTS, amount=18, wait=60 * SECOND, fair=True)
    other = {"ada": "bob", "bob": "ada"}[over]
    calls = [other] * 9 + [over] * 9 + [other, over]
    for number, member in enumerate(calls, 1):
        charge = Charge(slots.of_member(member), "b")
        world.engine.admit([charge], hold=Hold(number, MINUTE, 0))
    charge, hold = Charge(slots.of_member(over), "b"), Hold(18, MINUTE)
    change = Change(charge, hold, verb, (hold.id, 0)[: 2 if verb == "settle" else 1])
    assert world.engine.settle([change])
    message = woken.get_message(timeout=30)
    assert message is not None
    assert int(message["data"]) == 20


@pytest.mark.parametrize(
    ("burst", "debt", "refund", "awake"), [(2, 0, 1, [2, 2]), (1, 2, 2, [1, 2])]
)
def test_a_refund_wakes_who_starts_earlier(
    redis_client: redis.Redis, woken: Any, burst: int, debt: int, refund: int, awake: list[int]
) -> None:
    """A seven-millionth of a token is missing. If the first has room nevertheless, it looks in a
    microsecond as it is, and the turn of the second is earlier by a token. If it has none, it is
    woken, and the second as soon as the first has begun. More debt wakes no one."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    limit = Limit(3, 7 * SECOND, "token-bucket", burst=burst, wait=60 * SECOND)
    taken = queued(world, limit, burst)
    world.settle(taken, debt)
    for number in (1, 2):
        assert not queued(world, limit, number=number).allowed
    world.settle(taken, 1)
    world.settle(taken, -1)
    world.wait(us=2_333_333)
    assert world.settle(taken, -refund) == 1
    world.wait(us=1)
    assert queued(world, limit, number=1, waited_s=3).allowed
    redis_client.publish(CHANNEL, 0)
    messages = [woken.get_message(timeout=30) for _ in (*awake, 0)]
    assert [int(each["data"]) for each in messages if each] == [*awake, 0]


def test_a_limit_becomes_fair_while_its_slots_are_taken(world: World) -> None:
    """Calls from before keep their slots, and those of them that are in line come first."""
    slots = Slots(world, fair=False)
    world.wait(us=2**31)
    for _ in range(4):
        slots.come("earlier")
    earlier = slots.line[0]
    slots.whole = replace(slots.whole, fair=True)
    for number in range(20):
        slots.come(f"member {number}")
    waiting = [call for call in slots.line if call is not earlier]
    assert not any(slots.look(call) for call in waiting)
    slots.end(slots.running[0])
    assert not any(slots.look(call) for call in waiting)
    assert slots.look(earlier)
    slots.end(slots.running[0])
    assert [slots.look(call) for call in waiting].count(True) == 1


def test_members_of_a_limit_that_changes(world: World) -> None:
    """A limit that becomes fair, or is so no longer, counts the calls that are there, and lets no
    more run."""
    slots = Slots(world)
    for fair in (False, True, False, True):
        slots.whole = replace(slots.whole, fair=fair)
        slots.come("a")
        slots.come("b")
    assert len(slots.running) == 3
    for _ in range(8):
        slots.end(slots.running[0])
        for call in tuple(slots.line):
            slots.look(call)
        assert len(slots.running) <= 3
        if not slots.running:
            break
    assert world.call(SLOTS, 0, "b:{slots}").remaining == 2 - len(slots.line)


def test_the_ring_outlives_the_calls(world: World) -> None:
    """With one slot no call is left when one ends: the turns of those who wait go on."""
    slots, order = Slots(world, slots=1), list[str]()
    for member in ("loop", "loop", "loop", "alice", "alice"):
        slots.come(member)
    while slots.running:
        (over,) = slots.running
        slots.over(over)
        order.append(over.member)
    assert order == ["loop", "alice", "loop", "alice", "loop"]


def test_calls_that_move_to_another_engine_leave_no_line_behind() -> None:
    """Those who wait come again where the calls go."""
    engine, limit = MemoryEngine(), replace(SLOTS, amount=1, wait=HOUR)
    world, running = World(engine), Hold(1, MINUTE)
    world.now_us = clock.now_us()
    assert engine.admit([Charge(limit, "bucket")], hold=running).admitted
    assert not queued(world, limit, number=2).allowed
    assert [hold.id for hold, *_ in engine.hand_over(limit, "bucket")] == [1]
    assert queued(world, limit, number=3).allowed


def test_where_no_call_moves_the_line_stays() -> None:
    """The next one waits behind the first, who waits for an hour."""
    limit = Limit(1, HOUR, "token-bucket", unit="tokens", name="tokens", wait=3 * HOUR)
    engine = MemoryEngine()
    world = World(engine)
    world.now_us = clock.now_us()
    world.call(limit)
    assert queued(world, limit, number=2).retry_after_us == HOUR
    assert engine.hand_over(limit, "bucket") == []
    assert queued(world, limit, number=3).retry_after_us == 2 * HOUR


def turns_of_two(world: World, running: list[Limit], line: list[tuple[Limit, int]]) -> list[int]:
    """All slots are taken when these come, with what each reserves. Then the last two are free, and
    the places in line are returned of those who may begin. The last one looks first."""
    holds = [Hold(number, HOUR) for number in range(1, 1 + len(running))]

    def admitted(limit: Limit, hold: Hold) -> Verdict:
        world.wait(us=1)
        decision = world.engine.admit([Charge(limit, "bucket")], hold=hold, now_us=world.now_us)
        return decision.verdicts[0]

    verdicts = [admitted(*each) for each in zip(running, holds, strict=True)]
    tickets = [Hold(10 + at, HOUR, 0, price=price) for at, (_, price) in enumerate(line)]
    waiting = [(limit, hold) for (limit, _), hold in zip(line, tickets, strict=True)]
    assert not any(admitted(*each).allowed for each in waiting)
    changes = [Change.settle(*each, 0) for each in zip(verdicts[-2:], holds[-2:], strict=True)]
    world.engine.settle(changes, now_us=world.now_us)
    looks = [(limit, hold._replace(waited_us=1)) for limit, hold in waiting]
    return [place for place in reversed(range(len(looks))) if admitted(*looks[place]).allowed]


def test_each_running_call_counts_once_for_its_member(world: World) -> None:
    """Two slots are free at once: the member without a call has one turn, and then there is one
    each."""
    limit = replace(SLOTS, amount=3, wait=HOUR, fair=True)
    ada, bob, eve = map(limit.of_member, ("ada", "bob", "eve"))
    assert turns_of_two(world, [ada, eve, eve], [(ada, 0), (bob, 0), (bob, 0)]) == [1, 0]


def test_those_from_before_a_limit_was_fair_are_first(world: World) -> None:
    """All of them, whatever the calls of members reserve."""
    before = replace(SLOTS, wait=HOUR)
    limit = replace(before, fair=True)
    ada, eve = map(limit.of_member, ("ada", "eve"))
    assert turns_of_two(world, [eve, eve], [(before, 0), (before, 0), (ada, 1000)]) == [1, 0]
