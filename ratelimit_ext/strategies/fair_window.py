"""Fair window: a fixed window whose budget the members of a group share.

There is a line: ``pace`` times the amount, times the part of the window that has passed. Below it
anyone may spend. Ahead of it only members may whose charge stays within their share, the amount
divided by the number of members. So a loop of one member has what the others leave, and they have
their shares whatever it does; and as the line reaches the amount before the window ends, nothing is
wasted on those who do not come.

The group has a bucket, and so has each member, under the tag of the group: two charges, decided
together, the group's first. The group's counts the members, when each takes something for the first
time in a window. In the next one as many are expected again, so that the first one does not take
it all. Of a group without a last window :data:`FIRST` are expected, and fewer as time passes and
they do not come.

A group's bucket is kept until the end of the next window. Only a charge opens a member's window, so
that each is counted once: what a call of an earlier one costs beyond its estimate is the group's.

Not for: identities that a caller can invent. Each of them would have a share.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> team, engine = Limit(100, 60_000_000, name="team", fair=True), MemoryEngine()
>>> def passes(member, cost, at_us):
...     charges = Charge(team, "{team}", cost), Charge(team.share(), f"{member}{{team}}", cost)
...     return engine.admit(charges, now_us=at_us).admitted
>>> [passes("ada", 40, 0), passes("ada", 1, 1), passes("bob", 5, 1)]
[True, False, True]
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Left, Share, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.fixed_window import FixedWindow, calendar_window, zone_of
from ratelimit_ext.strategies.strategy import Snapshot

#: As many members are expected at the beginning of a group's first window: the first one alone is
#: at most this part of the amount ahead of the line.
FIRST: Final = 20
#: Members that are counted in a window. More have no share, and no bucket: the line is all they
#: have. So invented members need no more memory, and the number fits beside the group's units.
MOST_MEMBERS: Final = 4095

_MINUTE_US: Final = 60_000_000
#: What numbers of members are below, in a member's snapshot.
_MEMBERS: Final = 8192
_LAST: Final = 4096


class FairWindow(FixedWindow):
    """The group's bucket: it decides as a fixed window, and counts the members."""

    code = "fg"


class MemberShare(FixedWindow):
    """A member's bucket: what they have used of the window that is open. It decides whether the
    group's charge before it may be made for this member."""

    code = "fm"

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """Return the amount, the period, how long the window is, as far as it counts, and how long
        the line takes to reach the amount; the end of the calendar's window (0 without an anchor),
        the hours of now or the next ones of that window, and how long those before them were."""
        if limit.anchor is None:
            total = limit.period_us
            return limit.amount, total, total, total * 1000 // limit.pace, 0, 0, 0, 0
        last, spans = _spans_of(limit, now_us)
        before, total = 0, sum(end - begin for begin, end in spans)
        for begin, end in spans[:-1]:
            if now_us < end:
                break
            before += end - begin
        else:
            begin, end = spans[-1]
        line = total * 1000 // limit.pace
        return limit.amount, limit.period_us, total, line, last, begin, end, before

    def used(self, limit: Limit, snapshot: Snapshot, now_us: int) -> int:
        return snapshot[0] // _MEMBERS

    def longest_wait_us(self, limit: Limit) -> None:
        return None

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        return self._verdict(Charge(limit, "", cost), snapshot, now_us, cost).left

    def _verdict(self, charge: Charge, snapshot: Snapshot, now_us: int, cost: int) -> Verdict:
        """Return the answer to a charge that may be made, of which ``cost`` is taken."""
        limit, (member, end, group) = charge.limit, snapshot
        used, counted, spent = member // _MEMBERS, member % 2, group // _LAST
        parameters = self.parameters(limit, now_us)
        passed = _passed(now_us, end, parameters)
        # Those of this window, with a new one, or those that are expected, if these are more.
        total, count = parameters[2], member % _MEMBERS // 2 + 1 - counted
        members = max(count, group % _LAST or -(-FIRST * (total - passed) // total))
        ahead, part = spent - _reached(passed, parameters), limit.amount // members
        left = max(0, min(limit.amount - spent, max(-ahead, part - used)) - cost)
        until = 0
        if (ahead := ahead + cost) > 0:
            after = -(-min(spent + cost, limit.amount) * parameters[3] // limit.amount)
            until = self._instant(limit, after, now_us, end) - now_us
        share = Share(used + cost, part, members, ahead, until)
        reset = end - now_us if share.used else 0
        return Verdict(
            charge,
            allowed=True,
            remaining=left,
            retry_after_us=0,
            reset_after_us=reset,
            receipt=end,
            share=share,
        )

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Waiting ends when the line reaches what the group would have spent, or the share what the
        member would have, as fewer members are expected; else in the next window."""
        answer = self._verdict(charge, snapshot, now_us, charge.cost if taken else 0)
        if allowed:
            return answer
        limit, cost, (member, end, group) = charge.limit, charge.cost, snapshot
        amount, total, line = limit.amount, *self.parameters(limit, now_us)[2:4]
        used, counted, members = member // _MEMBERS, member % 2, member % _MEMBERS // 2
        need, last, at = group // _LAST + cost, group % _LAST, end
        if need <= amount:
            after = -(-need * line // amount)
            fitting = amount // (used + cost)
            if not last and members + 1 - counted <= fitting:
                after = min(after, -(-total * (FIRST - fitting) // FIRST))
            at = self._instant(limit, after, now_us, end)
        if at >= end:
            at = end
            if limit.anchor is not None and cost > amount // (members or FIRST):
                at = self._in_window(limit, cost, end, is_first=not members)
        return answer._replace(allowed=False, retry_after_us=at - now_us, more_after_us=at - now_us)

    def _in_window(self, limit: Limit, cost: int, begin: int, *, is_first: bool) -> int:
        """Return when the calendar's window that begins then lets this cost pass, if nothing of it
        is used before; if it does not, when the next one does, which expects fewer."""
        total, line, end = self.parameters(limit, begin)[2:5]
        parts = FIRST - limit.amount // cost if is_first else FIRST
        after = min(-(-cost * line // limit.amount), -(-total * parts // FIRST))
        at = self._instant(limit, after, begin, end)
        return at if at < end else self._in_window(limit, cost, end, is_first=True)

    def _instant(self, limit: Limit, passed: int, now_us: int, end: int) -> int:
        """Return when so much of the window of ``now_us`` has passed, as far as it counts."""
        if limit.anchor is None:
            return end - limit.period_us + passed
        for begin, until in _spans_of(limit, now_us)[1]:
            if begin + passed <= until:
                break
            passed -= until - begin
        return begin + passed


def _passed(now_us: int, end: int, parameters: Sequence[int]) -> int:
    """Return how much of the window that ends then has passed, as far as it counts."""
    _, period, total, _, last, begin, until, before = parameters
    if not last:
        return min(total, now_us - (end - period))
    if end == last:
        return before + max(0, min(now_us, until) - begin)
    return total if end < last else 0  # of a clock that is ahead or behind


def _reached(passed: int, parameters: Sequence[int]) -> int:
    """Return what the line has reached by then."""
    amount, _, _, line, *_ = parameters
    return amount if passed >= line else passed * amount // line


def _spans_of(limit: Limit, now_us: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the end of the calendar's window, and the parts of it that count: all of it, or some
    hours of each day."""
    calendar = limit.anchor or "", limit.timezone, limit.week_starts
    return _spans(now_us // _MINUTE_US, calendar, limit.hours)


@lru_cache(maxsize=1024)
def _spans(
    minute: int, calendar: tuple[str, str, str], hours: str | None
) -> tuple[int, list[tuple[int, int]]]:
    begin, end = calendar_window(minute * _MINUTE_US, *calendar)
    if hours is None:
        return end, [(begin, end)]
    zone = zone_of(calendar[1])
    first, last = map(int, hours.split("-"))
    day, spans = datetime.fromtimestamp(begin // 1_000_000, zone), []
    while _us(day) < end:
        midnight = day + timedelta(days=1)
        span = _us(day.replace(hour=first)), _us(midnight if last == 24 else day.replace(hour=last))
        if span[0] < span[1]:  # else the clocks skip these hours
            spans.append(span)
        day = midnight
    return end, spans or [(begin, end)]


def _us(instant: datetime) -> int:
    return int(instant.timestamp()) * 1_000_000
