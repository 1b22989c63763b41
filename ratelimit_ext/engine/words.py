"""Charges and changes as the words of a script: what ``admit.lua`` and ``settle.lua`` read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ratelimit_ext.core import clock
from ratelimit_ext.core.charge import Change, Charge, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.scripts import Script, composed
from ratelimit_ext.engine.verdicts import sent_cost
from ratelimit_ext.strategies import strategy_of
from ratelimit_ext.strategies.strategy import Strategy

#: For how many limits the words are kept.
MOST_WORDS: Final = 4096


class Words:
    """The words of one engine's scripts. Windows of the calendar are computed here, by the server's
    clock as of its last reply."""

    def __init__(self) -> None:
        #: By how much the server's clock is ahead of this one.
        self.ahead_us = 0
        self._known: dict[int, tuple[Strategy, str, Limit]] = {}
        #: The same for a charge of a limit and a cost, up to its hold.
        self._ready: dict[tuple[int, int], tuple[Strategy, str, Limit]] = {}

    def read_clock(self, now_us: int | None) -> int:
        """The server's clock, unless ``now_us`` replaces it."""
        return clock.now_us() + self.ahead_us if now_us is None else now_us

    def admission(
        self,
        charges: Sequence[Charge],
        hold: Hold,
        now_us: int | None,
        *,
        part: str | None = None,
    ) -> tuple[Script, str]:
        """The script that decides the charges, and its words. ``part`` replaces the part of each
        charge, as in admit.lua; such charges must be meta."""
        strategies, words = [], []
        for charge in charges:
            limit, _, cost, is_meta, _ = charge
            known = None if is_meta else self._ready.get((id(limit), cost))
            if known is None:
                strategy, parameters, _ = self._prepared(limit, now_us)
                own = _part(charge) if part is None else part
                stated = f'"{strategy.code}","{own}",{sent_cost(charge)}{parameters}'
                known = strategy, stated, limit
                if not is_meta and limit.anchor is None:
                    if len(self._ready) >= MOST_WORDS:
                        self._ready.clear()
                    self._ready[id(limit), cost] = known
            strategies.append(known[0])
            words.append(f"{known[1]},{hold.id},{hold.lease_us}" if limit.held else known[1])
        return composed("admit", tuple(strategies)), f"[{','.join(words)}]"

    def settlement(self, changes: Sequence[Change], now_us: int | None) -> tuple[Script, str]:
        """The script that applies the changes, and its words. Raises ``ValueError`` for a change
        that its strategy does not take."""
        strategies, words = [], []
        for change in changes:
            limit, hold = change.charge.limit, change.hold
            strategy, parameters, _ = self._prepared(limit, now_us)
            strategy.check_change(change)
            strategies.append(strategy)
            numbers = change.numbers
            own = f",{hold.id},{hold.lease_us}" if limit.held else ""
            stated = "".join([f",{number}" for number in numbers])
            words.append(
                f'"{strategy.code}","{change.verb}",{len(numbers)}{stated}{parameters}{own}'
            )
        return composed("settle", tuple(strategies)), f"[{','.join(words)}]"

    def _prepared(self, limit: Limit, now_us: int | None) -> tuple[Strategy, str, Limit]:
        """The strategy, and its own arguments as they follow other words of a script.

        They are kept, except with an anchor, whose windows depend on now. The key is the limit's
        ``id``, as hashing a limit takes longer than the rest of this; the entry holds the limit, so
        that no other gets its ``id``.
        """
        known = self._known.get(id(limit))
        if known is None:
            strategy = strategy_of(limit)
            now = 0 if limit.anchor is None else self.read_clock(now_us)
            parameters = "".join([f",{each}" for each in strategy.parameters(limit, now)])
            known = (strategy, parameters, limit)
            if limit.anchor is None:
                if len(self._known) >= MOST_WORDS:
                    self._known.clear()
                self._known[id(limit)] = known
        return known


def _part(charge: Charge) -> str:
    """The charge's part as in admit.lua: enforced, shadow, or meta with its triggers."""
    enforced = charge.limit.mode == "enforce"
    if charge.meta:
        triggers = ",".join(str(position + 1) for position in charge.on_denial)
        return ("m" if enforced else "n") + triggers
    return "e" if enforced else "s"
