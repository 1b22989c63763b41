"""What each strategy promises, as naively as it can be written: lists of events and fractions.

Nothing here is shared with the reference or the scripts. A rule books the units of a call at an
instant, gives them back, and says what is used; :class:`Bucket` adds the leases, each of which ends
at its own instant. Nothing ever expires here: an engine's buckets do, and must not be missed.
"""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

from ratelimit_ext.core.limit import Limit

SECOND = 1_000_000
SKEW = SECOND
GRACE = 600 * SECOND
DAY = 86_400 * SECOND
#: What is left of an allowance of which nothing was reported, and behind a block.
UNKNOWN = 10**12


class Rule:
    """One bucket without leases. ``call`` names who used the units."""

    #: By how many units less than the engines it may say that is left after a call.
    rounded = 0

    def used(self, limit: Limit, now: int) -> Fraction:
        """What counts against the capacity."""
        raise NotImplementedError

    def fits(self, limit: Limit, now: int, cost: int) -> bool:
        return cost == 0 or self.used(limit, now) + cost <= limit.capacity

    def left(self, limit: Limit, now: int) -> int:
        return max(0, floor(limit.capacity - self.used(limit, now)))

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        """Units of a call that was admitted."""
        raise NotImplementedError

    def retake(self, limit: Limit, now: int, call: int, units: int) -> None:
        """Units of a call that goes on after its lease has ended."""
        self.take(limit, now, call, units)

    def joins(self, limit: Limit, now: int, call: int) -> bool:
        """Whether what a call takes now can be given back together with what it took before."""
        return False

    def carry(self, limit: Limit, now: int, call: int, units: int) -> bool | None:
        """What a call used beyond what it had taken; ``False``: it went nowhere."""
        raise NotImplementedError

    def give(self, limit: Limit, now: int, call: int, units: int) -> bool:
        """Units of a call that come back; whether they still mattered."""
        raise NotImplementedError

    def rewind(self, limit: Limit, now: int) -> None:
        """A call is made, maybe after the clock was set back or the limit was changed."""

    def matters(self, limit: Limit, now: int) -> bool:
        """Whether it differs from an unused bucket."""
        return True


class TokenBucket(Rule):
    """Units that leak away evenly, at the pace of the latest decision."""

    def __init__(self) -> None:
        self.missing, self.at, self.pace = Fraction(0), 0, 0

    def used(self, limit: Limit, now: int) -> Fraction:
        elapsed = max(0, now - self.at)
        return max(Fraction(0), self.missing - Fraction(elapsed * self.pace, limit.period_us))

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        if self.at > now + SKEW:
            self.at = now
        self.missing = self.used(limit, now)
        self.pace = self.pace if self.missing else limit.amount
        self.missing += units
        self.at = max(self.at, now) if self.missing else now

    carry = take

    def joins(self, limit: Limit, now: int, call: int) -> bool:
        return True

    def give(self, limit: Limit, now: int, call: int, units: int) -> bool:
        self.take(limit, now, call, 0)
        self.missing = max(Fraction(0), self.missing - units)
        self.at = self.at if self.missing else now
        return True

    def rewind(self, limit: Limit, now: int) -> None:
        if self.at > now + SKEW or self.pace != limit.amount:
            self.take(limit, now, 0, 0)
            self.pace = limit.amount

    def matters(self, limit: Limit, now: int) -> bool:
        return self.used(limit, now) > 0


class FixedWindow(Rule):
    """Windows one after the other, of which one is open."""

    def __init__(self) -> None:
        self.windows: list[list[int]] = []  # end, units
        self.window_of: dict[int, list[int]] = {}

    def end(self, limit: Limit, now: int) -> int:
        return now + limit.period_us if limit.anchor is None else (now // DAY + 1) * DAY

    def open(self, now: int) -> list[int] | None:
        return self.windows[-1] if self.windows and self.windows[-1][0] > now else None

    def used(self, limit: Limit, now: int) -> Fraction:
        window = self.open(now)
        return Fraction(window[1] if window else 0)

    def carry(self, limit: Limit, now: int, call: int, units: int) -> None:
        if self.open(now) is None:
            self.windows.append([self.end(limit, now), 0])
        self.windows[-1][1] += units

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        self.carry(limit, now, call, units)
        self.window_of[call] = self.windows[-1]

    def joins(self, limit: Limit, now: int, call: int) -> bool:
        window = self.open(now)
        return window is not None and self.window_of.get(call) is window

    def give(self, limit: Limit, now: int, call: int, units: int) -> bool:
        window = self.open(now)
        if window is None or not self.joins(limit, now, call):
            return False
        window[1] = max(0, window[1] - units)
        return True

    def rewind(self, limit: Limit, now: int) -> None:
        window = self.open(now)
        if window:
            window[0] = min(window[0], self.end(limit, now))

    def matters(self, limit: Limit, now: int) -> bool:
        return self.open(now) is not None


class Session(FixedWindow):
    """The same, of which the charge of each admission moves the end."""

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        super().take(limit, now, call, units)
        self.windows[-1][0] = now + limit.period_us

    def retake(self, limit: Limit, now: int, call: int, units: int) -> None:
        super().take(limit, now, call, units)


class SlidingWindow(Rule):
    """Every call with its instant."""

    def __init__(self) -> None:
        self.entries: list[list[int]] = []  # instant, units
        self.entry_of: dict[int, list[int]] = {}

    def used(self, limit: Limit, now: int) -> Fraction:
        since = now - limit.period_us
        return Fraction(sum(units for instant, units in self.entries if instant > since))

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        self.leave(limit, now)
        self.entry_of[call] = [now, units]
        self.entries.append(self.entry_of[call])

    def leave(self, limit: Limit, now: int) -> None:
        """A call that has left the window stays out of it when the clock is set back."""
        self.entries = [entry for entry in self.entries if entry[0] > now - limit.period_us]

    def carry(self, limit: Limit, now: int, call: int, units: int) -> None:
        self.leave(limit, now)
        entry = self.entry_of.get(call)
        if entry and entry[1] and entry[0] > now - limit.period_us:
            entry[1] += units
        else:
            self.entries.append([now, units])

    def give(self, limit: Limit, now: int, call: int, units: int) -> bool:
        entry = self.entry_of.get(call)
        if entry is None or entry[0] <= now - limit.period_us:
            return False
        self.leave(limit, now)
        entry[1] = max(0, entry[1] - units)
        return True

    def matters(self, limit: Limit, now: int) -> bool:
        return self.used(limit, now) > 0

    def rewind(self, limit: Limit, now: int) -> None:
        for entry in self.entries:
            entry[0] = min(entry[0], now)


class SlidingWindowCounter(Rule):
    """Windows that follow each other; the last but one weighs as much as still overlaps."""

    def __init__(self) -> None:
        self.windows: list[list[int]] = []  # start, units
        self.window_of: dict[int, list[int]] = {}

    def present(self, limit: Limit, now: int) -> tuple[list[int], list[int]]:
        """The previous and the current window, created if missing."""
        period = limit.period_us
        if not self.windows or now >= self.windows[-1][0] + 2 * period:
            return [now - period, 0], [now, 0]
        last = self.windows[-1]
        if now >= last[0] + period:
            return last, [last[0] + period, 0]
        before = self.windows[-2] if len(self.windows) > 1 else None
        if before is None or before[0] != last[0] - period:
            before = [last[0] - period, 0]
        return before, last

    def used(self, limit: Limit, now: int) -> Fraction:
        before, current = self.present(limit, now)
        overlap = Fraction(current[0] + limit.period_us - now, limit.period_us)
        return Fraction(floor(before[1] * overlap) + current[1])

    def carry(self, limit: Limit, now: int, call: int, units: int) -> None:
        _, current = self.present(limit, now)
        if not self.windows or self.windows[-1] is not current:
            self.windows.append(current)
        current[1] += units

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        self.carry(limit, now, call, units)
        self.window_of[call] = self.windows[-1]

    def joins(self, limit: Limit, now: int, call: int) -> bool:
        return self.window_of.get(call) is self.present(limit, now)[1]

    def give(self, limit: Limit, now: int, call: int, units: int) -> bool:
        window = self.window_of.get(call)
        if not any(window is one for one in self.present(limit, now)):
            return False
        assert window is not None
        window[1] = max(0, window[1] - units)
        self.carry(limit, now, call, 0)
        return True

    def matters(self, limit: Limit, now: int) -> bool:
        return bool(self.windows) and now < self.windows[-1][0] + 2 * limit.period_us

    def rewind(self, limit: Limit, now: int) -> None:
        if self.windows and self.windows[-1][0] > now:
            back = self.windows[-1][0] - now
            for window in self.windows:
                window[0] -= back


class Concurrency(Rule):
    def __init__(self) -> None:
        self.flying: Counter[int] = Counter()

    def used(self, limit: Limit, now: int) -> Fraction:
        return Fraction(self.flying.total())

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        self.flying[call] += units

    def give(self, limit: Limit, now: int, call: int, units: int) -> bool:
        self.flying[call] -= units
        return True


class Surge(FixedWindow):
    """Windows, and what is usual in one."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.known = 0, 0

    def past(self, limit: Limit, now: int) -> tuple[int, int]:
        """What is usual, and of how many windows, once the last window is over.

        A past is forgotten after 400 windows, less than one after 96.
        """
        usual, known = self.usual, self.known
        kept = 400 if known >= 3 else 96
        if self.windows and now >= self.windows[-1][0] + kept * limit.period_us:
            return 0, 0
        if self.windows and self.open(now) is None and self.windows[-1][1]:
            units = self.windows[-1][1]
            if known >= 3:
                units = min(units, max(2 * usual, limit.amount))
            known = min(known + 1, 8)
            usual += floor(Fraction(units - usual, known))
        return usual, known

    def most(self, limit: Limit, now: int) -> int | None:
        usual, known = self.past(limit, now)
        assert limit.multiple
        return max(limit.amount, limit.multiple * usual) if known >= 3 else None

    def fits(self, limit: Limit, now: int, cost: int) -> bool:
        most, used = self.most(limit, now), self.used(limit, now)
        return cost == 0 or most is None or used == 0 or used + cost <= most

    def left(self, limit: Limit, now: int) -> int:
        most = self.most(limit, now)
        return max(0, (limit.amount if most is None else most) - int(self.used(limit, now)))

    def carry(self, limit: Limit, now: int, call: int, units: int) -> None:
        self.usual, self.known = self.past(limit, now)
        super().carry(limit, now, call, units)


class Block(Rule):
    """Nothing passes before the end."""

    def __init__(self) -> None:
        self.since = self.until = 0

    def fits(self, limit: Limit, now: int, cost: int) -> bool:
        return cost == 0 or now >= self.until

    def left(self, limit: Limit, now: int) -> int:
        return UNKNOWN

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        pass

    def carry(self, limit: Limit, now: int, call: int, units: int) -> bool:
        return False

    give = carry

    def block(self, now: int, for_us: int) -> bool:
        if self.until >= now + for_us:
            return False
        self.since, self.until = now, now + for_us
        return True

    def matters(self, limit: Limit, now: int) -> bool:
        return now < self.until

    def rewind(self, limit: Limit, now: int) -> None:
        back = self.since - now
        if back > SKEW:
            self.since, self.until = self.since - back, self.until - back


class Reported(Rule):
    """What the provider reported, for an hour, and what was taken since."""

    HOUR = 3600 * SECOND

    def __init__(self) -> None:
        self.full = self.at = self.amount = self.period = 0
        self.ends = 0

    @property
    def rounded(self) -> int:  # type: ignore[override]
        """What comes back in a microsecond: the time until a unit is back is rounded up to one."""
        return ceil(Fraction(self.amount, self.period))

    def refill(self, units: int) -> int:
        return ceil(Fraction(min(units, self.amount) * self.period, self.amount))

    def known(self, now: int) -> bool:
        return now < self.ends

    def fits(self, limit: Limit, now: int, cost: int) -> bool:
        if not self.known(now) or cost == 0:
            return True
        return max(self.full, now) - now + self.refill(cost) <= self.period

    def left(self, limit: Limit, now: int) -> int:
        if not self.known(now):
            return UNKNOWN
        missing = max(self.full, now) - now
        return floor(Fraction(max(0, self.period - missing) * self.amount, self.period))

    def matters(self, limit: Limit, now: int) -> bool:
        return self.known(now)

    def touch(self, now: int, full: int) -> None:
        self.full, self.at = full, max(self.at, now)
        milliseconds = ceil(Fraction(max(self.full, self.at + self.HOUR) - now, 1000)) + 1
        self.ends = now + 1000 * milliseconds

    def rewind(self, limit: Limit, now: int) -> None:
        back = self.at - now
        if self.known(now) and back > SKEW:
            self.at = now
            self.touch(now, self.full - back)

    def take(self, limit: Limit, now: int, call: int, units: int) -> None:
        if self.known(now):
            self.touch(now, max(self.full, now) + self.refill(units))

    def carry(self, limit: Limit, now: int, call: int, units: int) -> bool:
        if self.known(now):
            full = max(self.full, now) + self.refill(units)
            self.touch(now, min(full, now + 2 * self.period))
        return self.known(now)

    def give(self, limit: Limit, now: int, call: int, units: int) -> bool:
        if self.known(now):
            self.touch(now, max(now, max(self.full, now) - self.refill(units)))
        return self.known(now)

    def report(self, now: int, amount: int, used: int, period: int) -> None:
        missing = max(self.full - now, 0) if self.known(now) else 0
        if missing and (amount, period) != (self.amount, self.period):
            missing = ceil(Fraction(missing * self.amount, self.period))
            self.amount, self.period = amount, period
            missing = self.refill(missing)
        self.amount, self.period = amount, period
        self.at = now
        self.touch(now, now + max(missing, self.refill(used)))


@dataclass
class Call:
    """A call in flight, or whose lease ended."""

    cost: int
    deadline: int
    charged: int
    spent: int = 0
    final: int = 0  # was charged before the lease ended, and stays there
    over: bool = False


class Bucket:
    """A rule, and the calls whose costs are estimates."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.calls: dict[int, Call] = {}
        self.forgotten: list[int] = []

    def boundaries(self) -> list[int]:
        """The instants at which leases end or calls are forgotten."""
        return self.forgotten + [c.deadline for c in self.calls.values()]

    def advance(self, limit: Limit, now: int) -> None:
        """End every lease that is over by now, in order."""
        due = [
            (c.deadline, i, c) for i, c in self.calls.items() if c.deadline <= now and not c.over
        ]
        for deadline, number, call in sorted(due, key=lambda one: one[:2]):
            call.over, unspent = True, call.charged - call.spent
            if unspent and self.rule.give(limit, deadline, number, unspent):
                call.charged = call.spent
            call.spent = call.charged
        for number, call in list(self.calls.items()):
            if call.deadline + GRACE <= now:
                self.forgotten.append(call.deadline + GRACE)
                del self.calls[number]

    def admit(self, limit: Limit, now: int, number: int, cost: int, lease: int) -> bool:
        self.rule.rewind(limit, now)
        if not self.rule.fits(limit, now, cost):
            return False
        if cost:
            self.rule.take(limit, now, number, cost)
        if limit.held and lease:
            self.calls[number] = Call(cost, now + lease, cost)
        return True

    def correct(self, limit: Limit, now: int, number: int, delta: int) -> bool:
        if delta <= 0:
            return bool(self.rule.give(limit, now, number, -delta))
        return self.rule.carry(limit, now, number, delta) is not False

    def settle(self, limit: Limit, now: int, number: int, actual: int) -> bool:
        call = self.calls.pop(number, None)
        if call is not None and max(actual, call.final) != call.charged:
            self.correct(limit, now, number, max(actual, call.final) - call.charged)
        return call is not None

    def renew(self, limit: Limit, now: int, number: int, spent: int, lease: int) -> bool:
        call = self.calls.get(number)
        if call is None:
            return False
        call.spent = spent
        amount = max(call.charged, call.spent, call.cost)
        if amount > call.charged:
            book = self.rule.retake if call.over else self.rule.carry
            if call.over and not self.rule.joins(limit, now, number):
                call.final = call.charged
            book(limit, now, number, amount - call.charged)
        call.spent = max(call.spent, call.final)
        call.charged, call.deadline, call.over = amount, now + lease, False
        return True
