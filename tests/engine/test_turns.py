"""Turns of members by what their calls reserve: two members in line differ by at most one call
each, none starves, and no slot is free while a call waits. In random histories, on both engines.
"""

import random
from dataclasses import replace
from itertools import combinations

import pytest
import redis

from ratelimit_ext.core.charge import Charge, price_of
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.engine.slots import Slots
from tests.seeds import seeds
from tests.strategies.virtual_time import VirtualClient
from tests.strategies.world import HOUR, World

#: A call counts at least as this part of the dearest in line (SPREAD in fair_concurrency.lua), and
#: of so many members is known that they are ahead (MOST_AHEAD).
SPREAD, MOST_AHEAD = 256, 255


class Differences:
    """Between what members have begun, since both had calls in line for the first time."""

    def __init__(self, slots: Slots, prices: dict[str, tuple[int, ...]]) -> None:
        self.slots, self.prices = slots, prices
        self.seen = dict[tuple[str, str], list[int]]()

    def compare(self, members: list[str]) -> None:
        spent = self.slots.spent
        for one, other in combinations(members, 2):
            seen = self.seen.setdefault((one, other), [])
            seen.append(spent[one, "batch"] - spent[other, "batch"])
            most = max(self.prices[one]) + max(self.prices[other])
            assert max(seen) - min(seen) <= most, (one, other, seen[-5:])


def visit(slots: Slots, chance: random.Random, prices: dict[str, tuple[int, ...]]) -> None:
    """A call comes, of a higher class if there is one; or one leaves, whose member has another."""
    if chance.random() < 0.3 and len(slots.line) < 20:
        member = chance.choice(sorted(prices))
        slots.come(member, chance.choice(prices[member]), "people")
    leaves = [call for call in slots.line if slots.waits(call.member, call.name) > 1]
    if leaves and chance.random() < 0.1:
        slots.over(chance.choice(leaves))


def play(
    slots: Slots,
    chance: random.Random,
    prices: dict[str, tuple[int, ...]],
    *,
    compares: bool = True,
) -> None:
    """Some members always have a call in line, from some instant on; others come and go."""
    steady = chance.sample(sorted(prices), chance.randrange(2, len(prices)))
    begins = {member: chance.choice((0, 0, 60)) for member in steady}
    differences = Differences(slots, prices)
    for step in range(200):
        demand = sorted(member for member in steady if step >= begins[member])
        for member in demand:
            while not slots.waits(member, "batch"):
                slots.come(member, chance.choice(prices[member]), "batch")
        visit(slots, chance, prices)
        if compares:
            differences.compare(demand)
        if not slots.whole.keep:
            slots.starve(SPREAD + 2)
        if slots.running:
            slots.over(chance.choice(slots.running))


def any_prices(chance: random.Random) -> dict[str, tuple[int, ...]]:
    """Of each member, up to a hundred times those of another."""
    return {
        member: tuple(round(10 ** chance.uniform(3, 5)) for _ in range(chance.choice((1, 3))))
        for member in "abcdef"[: chance.randrange(3, 7)]
    }


def played(seeds: range, **how: bool) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        slots = Slots(World(MemoryEngine()), slots=chance.choice((1, 2, 4)), **how)
        try:
            play(slots, chance, any_prices(chance))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@seeds(20, part=5)
def test_members_differ_by_one_call_each(seeds: range) -> None:
    """In any interval in which both have calls in line, whatever others do."""
    played(seeds)


@seeds(8, part=5)
def test_a_higher_class_changes_no_account(seeds: range) -> None:
    """Its calls begin first, and members of the lower class still differ by one call each."""
    played(seeds, keep=True)


@seeds(3, part=10)
def test_both_engines_agree(redis_client: redis.Redis, seeds: range) -> None:
    """Also about calls that reserve nothing, beside others that are a million times as dear: no
    member waits for more than so many turns of another."""
    for seed in seeds:
        chance, client = random.Random(seed), VirtualClient(redis_client)
        client.flush()
        worlds = World(MemoryEngine()), World(RedisEngine(client, redis.RedisError))
        slots = Slots(*worlds, slots=chance.choice((1, 2, 4)), keep=seed % 2 == 1)
        play(slots, chance, dict.fromkeys("abcd", (0, 1, 1000, 1_000_000)), compares=False)


@pytest.mark.parametrize("priced", [True, False])
def test_ten_members_whose_calls_differ_a_hundredfold(priced: bool) -> None:
    """Jain's index over what they have reserved; by turns alone, as without prices, the dearest
    have nearly all of it."""
    prices = {f"user {number}": round(1000 * 100 ** (number / 9)) for number in range(10)}
    slots = Slots(World(MemoryEngine()), slots=4)
    for _ in range(1000):
        for member, price in prices.items():
            while slots.waits(member, "") < 2:
                slots.come(member, price if priced else 0)
        slots.over(slots.running[0])
    spent = [slots.began[member] * price for member, price in prices.items()]
    index = sum(spent) ** 2 / (10 * sum(each**2 for each in spent))
    print(f"priced={priced}: Jain's index {index:.3f}")  # noqa: T201
    assert (index >= 0.95) is priced


@pytest.mark.parametrize("keep", [False, True])
def test_who_was_idle_has_no_credit(world: World, keep: bool) -> None:
    """A member alone has begun a hundred calls; another who comes then has one turn after it. Nor
    does it matter that a lower class waits all the while."""
    slots, order = Slots(world, slots=1, keep=keep), list[str]()
    for name, count in (("people", 1), ("batch", 1), ("people", 1)):
        for _ in range(count):
            slots.come("job" if name == "batch" else "loop", 1000, name)
    for _ in range(100):
        slots.come("loop", 1000, "people")
        slots.over(slots.running[0])
    for _ in range(6):
        slots.come("ada", 1000, "people")
        slots.come("loop", 1000, "people")
    for _ in range(7):
        slots.over(slots.running[0])
        order.append(slots.running[0].member)
    assert abs(order[1:].count("ada") - order[1:].count("loop")) <= (1 if keep else 2)


def test_a_dear_call_beside_free_ones(world: World) -> None:
    """Calls that reserve nothing count a little: so the dear one has its turn."""
    slots, turns = Slots(world, slots=1), 0
    for _ in range(3):
        slots.come("dear", 1_000_000)
        slots.come("free", 0)
    while slots.began["dear"] < 3 and turns < 2 * SPREAD:
        slots.over(slots.running[0])
        turns += slots.running[0].member == "free"
        slots.come("free", 0)
    assert SPREAD - 2 <= turns <= SPREAD + 2


def test_a_call_that_leaves_the_line_costs_no_turn(world: World) -> None:
    """Nor does one that began while there was room for all."""
    slots = Slots(world, slots=1)
    slots.come("ada", 1_000_000)
    gone = slots.come("ada", 1_000_000)
    slots.over(gone)
    slots.come("ada", 1000)
    slots.come("bob", 1000)
    slots.over(slots.running[0])
    first = slots.running[0].member
    slots.come(first, 1000)
    slots.over(slots.running[0])
    assert {first, slots.running[0].member} == {"ada", "bob"}


def test_members_who_are_ahead_need_no_more_memory(redis_client: redis.Redis) -> None:
    """Invented ones, each of which has one turn."""
    slots = Slots(World(RedisEngine(VirtualClient(redis_client), redis.RedisError)), slots=1)
    slots.come("first", 1)
    for number in range(MOST_AHEAD + 40):
        slots.come(f"member {number}", 1000 + number)
        slots.come("dear", 1_000_000)
        slots.over(slots.running[0])
        slots.over(slots.line[-1])
    head, holds = 11, 18 + 16 * 38
    assert MOST_AHEAD * 11 < redis_client.strlen("b:{slots}") <= head + holds + MOST_AHEAD * 11


def test_those_who_are_the_farthest_ahead_are_known(world: World) -> None:
    """Of too many members, those are forgotten who have the least to wait for."""
    slots, order = Slots(world, slots=1), list[str]()
    slots.come("first", 1)
    for number in range(MOST_AHEAD + 40):
        slots.come(f"member {number}", 1000 + 100 * number)
        slots.over(slots.running[0])
    for number in range(MOST_AHEAD, MOST_AHEAD + 40):
        slots.come(f"member {number}", 1000)
        slots.come(f"new {number}", 1000)
    while len(order) < 40:
        slots.over(slots.running[0])
        order.append(slots.running[0].member.split()[0])
    assert order.count("member") == 0


@pytest.mark.parametrize("before", ["ada", ""])
def test_state_of_before(redis_client: redis.Redis, before: str) -> None:
    """Tickets of a release that did not know what calls reserve, or of a limit that was not fair,
    have an instant in its place. They begin, and count as calls that reserve nothing."""
    slots = Slots(World(RedisEngine(VirtualClient(redis_client), redis.RedisError)), slots=1)
    fair = slots.whole
    slots.whole = replace(fair, fair=bool(before))
    slots.come(before, slots.worlds[0].now_us)
    slots.come(before, slots.worlds[0].now_us)
    slots.whole = fair
    for _ in range(3):
        slots.come("bob", 100)
        slots.come("eve", 100)
    for number in range(1, 8):
        slots.over(slots.running[0])
        if number > 3:
            assert abs(slots.began["bob"] - slots.began["eve"]) <= 1
    assert (slots.began[before], slots.line) == (2, [])
    for member in ("bob", "bob", "ada", "bob", "ada"):
        slots.come(member, 100)
    for _ in range(3):
        slots.over(slots.running[0])
    assert slots.began["ada"] > (before == "ada") * 2


def test_what_a_call_reserves() -> None:
    """Dollars, whatever else is charged; tokens without dollars; no limit on denials counts."""
    usd, tokens = (Limit(10**6, HOUR, "fixed-window", unit=unit) for unit in ("usd", "tokens"))
    calls = Charge(Limit(10, HOUR), "c", 1)
    meta = Charge(usd, "m", 9, meta=True)
    some = [Charge(tokens, "t", 5000), Charge(usd, "u", 70), Charge(usd, "v", 30)]
    assert price_of([calls, *some, meta]) == 70
    assert price_of([calls, some[0], meta]) == 5000
    assert price_of([calls]) == 0
