"""Line: any strategy, with requests that wait for their turn.

A request that does not fit leaves a *ticket*, which takes nothing. It comes again when it is its
turn, and is decided then as any other. A request fits if it does beside the costs of all that come
first: those of higher classes, and of its own class those that have waited longer, or with members
those whose turn is earlier. So starts never exceed the limit, whatever leaves the line, changes or
is settled meanwhile.

The wait of a ticket is known: the costs before it have to leak away. It grows only if higher
classes come or more is charged, and shrinks if others leave: then the next one is woken, if that
is earlier than it knows, and it wakes the next. A ticket whose worker has died ends soon after its
turn. One that is lost, with the storage's data or in an outage, is left again: it gets its former
place, as it says for how long its request has waited.

The tickets lie beside the strategy's state, so that a release that knows no line reads it.

Not for: budgets, whose money does not come back soon.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> limit, engine = Limit(60, 60_000_000, "token-bucket", burst=1, wait=5_000_000), MemoryEngine()
>>> first, *others = [
...     engine.admit([Charge(limit, "b")], hold=Hold(number, 0, 0), now_us=0).verdicts[0]
...     for number in (1, 2, 3)
... ]
>>> first.allowed, [each.retry_after_us for each in others]
(True, [1000000, 2000000])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Answer, Strategy, lua

#: A request looks again this long after its turn, or after its last look, or its ticket ends.
LOOK_US: Final = 5_000_000


class Ticket(NamedTuple):
    """A request in line: ``due`` is the start that it knows, ``most`` what its class may use, and
    ``rank`` how many classes are higher."""

    id: int
    since: int
    ends: int
    due: int
    cost: int
    most: int
    rank: int
    member: int


class Lined(NamedTuple):
    """A strategy's state while requests wait, and until when it matters without them."""

    inner: Any
    tickets: tuple[Ticket, ...]
    until: int


class Looked(NamedTuple):
    """What a check leaves: what is stored, the strategy's, the tickets in their order, that of the
    request itself, its start if it may wait, and whether its ticket is stored."""

    stored: Lined
    state: Any
    tickets: Sequence[Ticket]
    own: Ticket | None
    due: int | None
    is_known: bool


Parameters: TypeAlias = tuple[tuple[int, ...], Hold]


class Line(Strategy):
    """A strategy over another, which answers the same while no request waits."""

    left = verdict = later = longest_wait_us = cast(Any, None)

    def __init__(self, strategy: Strategy, base: Any, *, is_held: bool) -> None:
        self._strategy, self._base, self._is_held = strategy, base, is_held
        for same in ("left", "verdict", "later", "longest_wait_us", "share"):
            setattr(self, same, getattr(strategy if same == "share" else base, same))
        self.name = strategy.name
        self.code = f"l{strategy.code}"
        self.changes = (*strategy.changes, "leave")

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """With the longest wait, and the number of higher classes."""
        return *self._strategy.parameters(limit, now_us), limit.wait or 0, limit.rank

    def _own(self, parameters: Parameters) -> Any:
        own, hold = parameters
        return (own[:-2], hold) if self._is_held else own[:-2]

    def check(self, state: Any, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: the strategy's, with what comes first as if it were taken."""
        (*own_words, wait, rank), hold = parameters
        stored = self._lined(state, now_us, parameters)
        _, (used, part, more), checked = self._strategy.check(
            stored.inner, now_us, cost, self._own(parameters)
        )
        tickets = [each for each in stored.tickets if each.ends > now_us]
        before, most = 0, own_words[self._base.most]
        known = next((each for each in tickets if each.id == hold.id), None)
        own = known and known._replace(cost=cost, most=most, rank=rank)
        if own is None and hold.waited_us is not None:
            since = now_us - hold.waited_us
            if not hold.waited_us:  # behind all others, also if the clock was set back
                since = max([since, *(each.since + 1 for each in tickets)])
            member = more if self._base.has_turns else 0
            own = Ticket(hold.id, since, 0, 0, cost, most, rank, member)
        tickets = [each for each in tickets if each is not known]
        tickets = self._in_order([*tickets, own] if own else tickets, checked)
        for each in tickets:
            if each is own:
                break
            if own is not None or each.rank <= rank:
                before += each.cost
        missing = used + before + cost - most
        fits, due = missing + (part > 0) <= 0, None
        if not fits and hold.waited_us is not None and cost <= most:
            due = self._base.due(now_us, own_words, missing, part, more)
            if due - now_us > wait - hold.waited_us:
                due = None
        looked = Looked(stored, checked, tickets, own, due, is_known=known is not None)
        return fits, (used + before, part, more), looked

    def _in_order(self, tickets: list[Ticket], checked: Any) -> list[Ticket]:
        tickets.sort(key=lambda each: (each.rank, each.since, each.id))
        if not (tickets and self._base.has_turns):
            return tickets
        state, (calls, _) = checked
        running = Counter[int](each.receipt for each in state.records.values() if each.amount)
        return cast(list[Ticket], self._base.turns(tickets, running, calls.last))

    def place(self, looked: Looked, now_us: int, parameters: Parameters) -> Looked:
        """Return the same with the ticket of a request that does not fit."""
        (*_, wait, _), hold = parameters
        own, due = looked.own, looked.due
        assert own is not None
        assert due is not None
        left_us = wait - (hold.waited_us or 0)
        ends = min(now_us + left_us, max(due, now_us + LOOK_US) + LOOK_US)
        placed = own._replace(due=due, ends=ends)
        tickets = [placed if each is own else each for each in looked.tickets]
        stored = looked.stored._replace(tickets=tuple(tickets))
        return looked._replace(stored=stored, tickets=tickets, own=placed, is_known=True)

    def placed(self, looked: Looked) -> Any:
        return looked.stored

    def take(self, looked: Looked, now_us: int, cost: int, parameters: Parameters) -> Any:
        own, tickets, state = looked.own, looked.stored.tickets, looked.state
        if own is not None and looked.is_known and cost:
            tickets = tuple(each for each in looked.tickets if each is not own)
            if self._base.has_turns and looked.tickets[0] is own:  # it moves the ring
                held, (calls, member) = state
                state = held, (self._base.after(calls, own.member), member)
        after = self._strategy.take(state, now_us, cost, self._own(parameters))
        return self._joined(after, tickets, now_us, parameters)

    def reserve(self, state: Any, now_us: int, parameters: Parameters) -> Any:
        inner, tickets, _ = self._lined(state, now_us, parameters)
        reserved = self._strategy.reserve(inner, now_us, self._own(parameters))
        return None if reserved is None else self._joined(reserved, tickets, now_us, parameters)

    def lifetime(self, state: Any, now_us: int, parameters: Parameters) -> int:
        inner, tickets, _ = self._lined(state, now_us, parameters)
        own = 0 if inner is None else self._strategy.lifetime(inner, now_us, self._own(parameters))
        return max([own, *(each.ends - now_us for each in tickets)])

    def is_stale(self, state: Any, now_us: int, parameters: Parameters) -> bool:
        inner, _, _ = self._lined(state, now_us, parameters)
        return self._strategy.is_stale(inner, now_us, self._own(parameters))

    def usage(self, state: Any, now_us: int, parameters: Parameters) -> int:
        inner = inner_of(state)
        return 0 if inner is None else self._strategy.usage(inner, now_us, self._own(parameters))

    def filled(
        self, units: int, now_us: int, parameters: Parameters, reset_after_us: int, age_us: int
    ) -> Any:
        own = self._own(parameters)
        return self._strategy.filled(units, now_us, own, reset_after_us, age_us)

    def credited(self, state: Any, now_us: int, parameters: Parameters, units: int) -> Any:
        inner, tickets, _ = self._lined(state, now_us, parameters)
        credited = self._strategy.credited(inner, now_us, self._own(parameters), units)
        return self._joined(credited, tickets, now_us, parameters)

    def without_holds(
        self, state: Any, now_us: int, parameters: Parameters
    ) -> tuple[Any, Sequence[tuple[Hold, int, int]]]:
        """Without tickets, too: their requests leave others where the calls go."""
        return self._strategy.without_holds(inner_of(state), now_us, self._own(parameters))

    def apply(self, change: Change, state: Any, now_us: int, parameters: Parameters) -> Any:
        stored = self._lined(state, now_us, parameters)
        inner, tickets, _ = stored
        after, left = None, tickets
        if change.verb in ("settle", "release", "leave"):
            gone = change.numbers[0]
            if gone in [each.id for each in tickets if each.ends > now_us]:
                left = tuple(t for t in tickets if t.id != gone and t.ends > now_us)
        if change.verb != "leave":
            after = self._strategy.apply(change, inner, now_us, self._own(parameters))
        if after is None and left == tickets:
            return None
        if after is not None:
            return self._joined(after, left, now_us, parameters)
        return inner if inner is not None and not left else stored._replace(tickets=left)

    def _lined(self, state: Any, now_us: int, parameters: Parameters) -> Lined:
        if not isinstance(state, Lined):
            return self._with_tickets(state, (), now_us, parameters)
        return state if state.until > now_us else state._replace(inner=None)

    def _with_tickets(
        self, inner: Any, tickets: Sequence[Ticket], now_us: int, parameters: Parameters
    ) -> Lined:
        until = 0
        if inner is not None:
            lifetime_us = self._strategy.lifetime(inner, now_us, self._own(parameters))
            until = now_us + (-(-lifetime_us // 1000) + 1) * 1000 if lifetime_us > 0 else 0
        return Lined(inner, tuple(tickets), until)

    def _joined(
        self, inner: Any, tickets: Sequence[Ticket], now_us: int, parameters: Parameters
    ) -> Any:
        return self._with_tickets(inner, tickets, now_us, parameters) if tickets else inner

    def fragments(self) -> tuple[str, ...]:
        own = lua(Path(__file__).with_suffix(".lua"))
        line = f"strategies.{self.code} = strategies.line(strategies.{self._strategy.code})"
        return (*self._strategy.fragments(), f"do\n{own}end\n", line)


def inner_of(state: Any) -> Any:
    """Return the strategy's own state."""
    return state.inner if isinstance(state, Lined) else state
