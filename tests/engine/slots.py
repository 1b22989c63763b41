"""Slots of a group, and the calls of its members that run or are in line."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.limit import Limit
from tests.strategies.world import HOUR, SECOND, World


@dataclass(eq=False)
class Call:
    member: str
    price: int
    name: str
    hold: Hold
    limit: Limit
    #: How many calls each member had begun when this one became its member's first in line.
    since: Counter[str] | None = None


class Slots:
    """Slots of a group on engines that have to agree, and what each member has begun."""

    def __init__(
        self, *worlds: World, slots: int = 3, keep: bool = False, fair: bool = True
    ) -> None:
        classes = (("people", 0), ("batch", 0)) if keep else ()
        self.whole = Limit(
            *(slots, SECOND, "concurrency"), unit="calls", wait=HOUR, fair=fair, keep=classes
        )
        self.worlds, self.slots = worlds, slots
        self.running, self.line = list[Call](), list[Call]()
        self.began, self.spent = Counter[str](), Counter[tuple[str, str]]()
        self.chance = random.Random(7)

    def everywhere(self, act: Callable[[World], int]) -> int:
        [answer] = {act(world) for world in self.worlds}
        return answer

    def waits(self, member: str, name: str) -> int:
        """How many calls of the member are in line, in this class."""
        name = name if self.whole.keep else ""
        return [(call.member, call.name) for call in self.line].count((member, name))

    def come(self, member: str, price: int = 0, name: str = "") -> Call:
        name = name if self.whole.keep else ""
        limit = self.whole.of_class(name) if name else self.whole
        hold = Hold(self.chance.getrandbits(48) or 1, HOUR, price=price)
        call = Call(member, price, name, hold, limit.of_member(member) if limit.fair else limit)
        for world in self.worlds:
            world.wait(us=1)
        self.line.append(call)
        self.look(call, None)
        if call in self.line:
            self.look(call, 0)
        return call

    def look(self, call: Call, waited_us: int | None = 1) -> bool:
        charges = [Charge(call.limit, "b:{slots}")]
        hold = call.hold._replace(waited_us=waited_us)
        if not self.everywhere(
            lambda world: world.engine.admit(charges, hold=hold, now_us=world.now_us).admitted
        ):
            return False
        self.line.remove(call)
        self.running.append(call)
        self.began[call.member] += 1
        self.spent[call.member, call.name or "batch"] += call.price
        return True

    def over(self, call: Call) -> None:
        """A call ends, or leaves the line; those whose turn it is begin."""
        self.end(call)
        self.turns()

    def end(self, call: Call) -> None:
        charge = Charge(call.limit, "b:{slots}")
        if call in self.line:
            self.line.remove(call)
            change = Change.leave(charge, call.hold)
        else:
            self.running.remove(call)
            change = Change(charge, call.hold, "settle", (call.hold.id, 0))
        applied = self.everywhere(lambda world: world.engine.settle([change], now_us=world.now_us))
        assert applied or change.verb == "leave"

    def turns(self) -> None:
        while any(self.look(call) for call in self.chance.sample(self.line, len(self.line))):
            pass
        assert len(self.running) == min(self.slots, len(self.running) + len(self.line))

    def starve(self, most: int) -> None:
        """No call that is the first of its member waits for more turns of another."""
        firsts = set[str]()
        for call in self.line:
            if call.member not in firsts:
                firsts.add(call.member)
                call.since = call.since or Counter(self.began)
                for member, count in self.began.items():
                    assert count - call.since[member] <= most or member == call.member
