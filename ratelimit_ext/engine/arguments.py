"""What is sent to a server: Lua scripts, put together from the parts that one evaluation needs, and
their arguments, which ``admit.lua`` and ``settle.lua`` read as one flat list.

An admission is the prelude, one fragment per strategy in use, and the driver: a script for each
set of strategies, so that none pays for algorithms that it does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold, PreparedCharges
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies import check_changes, strategy_of
from ratelimit_ext.strategies.strategy import Strategy

#: All Lua files here, read at the start: later there may be no descriptor, or another version.
TEXTS: Final = {file.stem: file.read_text("utf-8") for file in Path(__file__).parent.glob("*.lua")}


class Script(NamedTuple):
    """A script's text, the digest by which a server knows it, and the same as a function library.

    Both the library and its only function have the name ``function``.
    """

    text: str
    sha: str
    library: str
    function: str


@lru_cache(maxsize=1024)
def composed(driver: str, strategies: tuple[Strategy, ...]) -> Script:
    """Return the script of a driver (``admit`` or ``settle``) over these strategies.

    Neither their order nor how often they come makes another script.
    """
    distinct = tuple(sorted(set(strategies), key=lambda strategy: strategy.code))
    if distinct != strategies:
        return composed(driver, distinct)
    fragments = dict.fromkeys(part for strategy in distinct for part in strategy.fragments())
    head, body = "\n".join([TEXTS["prelude"], *fragments]), TEXTS[driver]
    text = f"{head}\n{body}"
    sha = sha1(text.encode("utf-8"), usedforsecurity=False).hexdigest()
    name = f"ratelimit_{sha}"
    library = (
        f"#!lua name={name}\n{head}\n"
        f"redis.register_function('{name}', function(KEYS, ARGV)\n{body}\nend)"
    )
    return Script(text, sha, library, name)


#: For how many limits the words are kept.
MOST_ARGUMENTS: Final = 4096
#: And for how long: those of the calendar are right for as long as a window.
KEPT_US: Final = 60_000_000


class Arguments:
    """The words of one engine's scripts. Windows of the calendar are computed here, by the server's
    clock as of its last reply."""

    def __init__(self) -> None:
        #: By how much the server's clock is ahead of this one.
        self.ahead_us = 0
        #: Since when the words below are kept, in KEPT_US.
        self._since = 0
        self._known: dict[int, tuple[Strategy, str, Limit]] = {}
        #: The same for a charge, with the largest cost, by its limit and what its part adds.
        self._ready: dict[tuple[int, str], tuple[Strategy, str, int, Limit]] = {}

    def read_clock(self, now_us: int | None) -> int:
        """Return the server's clock, unless ``now_us`` replaces it."""
        return clock.now_us() + self.ahead_us if now_us is None else now_us

    def admission(
        self,
        charges: Sequence[Charge],
        now_us: int | None,
        *,
        part: str | None = None,
    ) -> tuple[Script, str, str]:
        """Return the script that decides the charges, its words, and its numbers. The words are the
        same for all requests with these limits, so a server decodes them once. ``part`` replaces
        the part of each charge, as in admit.lua; such charges must be meta."""
        now = clock.now_us() + self.ahead_us if now_us is None else now_us
        since = now // KEPT_US
        kept = None if part is not None else getattr(charges, "prepared", None)
        if kept is not None and kept[0] == since and kept[1] is self:
            return cast(tuple[Script, str, str], kept[2])
        if since != self._since:
            self._forget(now)
        strategies, words = [], []
        numbers: list[int] = []
        for charge in charges:
            limit, _, cost, is_meta, _, at_once, claim = charge
            more = "" if is_meta else ">" if claim is not None else "" if at_once is None else "="
            known = None if is_meta else self._ready.get((id(limit), more))
            if known is None:
                known = self._stated(charge, more, now, part)
            strategy, stated, most, _ = known
            strategies.append(strategy)
            words.append(stated)
            numbers.append(min(cost, most))
            if more == ">" and claim is not None:
                numbers += claim
            elif more == "=" and at_once is not None:
                numbers.append(at_once)
        lists = f"[{','.join(words)}]", f"[{','.join(map(str, numbers))}]"
        made = composed("admit", tuple(strategies)), *lists
        if isinstance(charges, PreparedCharges) and part is None:
            charges.prepared = since, self, made
        return made

    def _stated(
        self, charge: Charge, more: str, now_us: int, part: str | None
    ) -> tuple[Strategy, str, int, Limit]:
        limit, is_meta = charge.limit, charge.meta
        strategy, parameters, _ = self._prepared(limit, now_us)
        own = part or _PARTS[limit.mode == "enforce", is_meta]
        if is_meta and part is None:
            more = ",".join([str(position + 1) for position in charge.on_denial])
        most = limit.capacity + 1  # higher costs are as impossible
        stated = strategy, f'"{strategy.code}","{own}","{more}"{parameters}', most, limit
        if not is_meta:
            if len(self._ready) >= MOST_ARGUMENTS:
                self._ready.clear()
            self._ready[id(limit), more] = stated
        return stated

    def settlement(self, changes: Sequence[Change], now_us: int | None) -> tuple[Script, str, str]:
        """Return the script that applies the changes, its words, and its numbers. Raises
        ``ValueError`` for a change that its strategy does not take."""
        check_changes(changes)
        now = clock.now_us() + self.ahead_us if now_us is None else now_us
        if now // KEPT_US != self._since:
            self._forget(now)
        strategies, words = [], []
        numbers: list[int] = []
        for change in changes:
            limit = change.charge.limit
            strategy, parameters, _ = self._prepared(limit, now)
            strategies.append(strategy)
            if limit.held:
                numbers += change.hold[:2]
            numbers += change.numbers
            words.append(f'"{strategy.code}","{change.verb}",{len(change.numbers)}{parameters}')
        lists = f"[{','.join(words)}]", f"[{','.join(map(str, numbers))}]"
        return composed("settle", tuple(strategies)), *lists

    def alone(self, driver: str, limit: Limit, now_us: int) -> tuple[Script, str]:
        """Return the script of a driver for one bucket of the limit, and its words."""
        if now_us // KEPT_US != self._since:
            self._forget(now_us)
        strategy, parameters, _ = self._prepared(limit, now_us)
        return composed(driver, (strategy,)), f'["{strategy.code}"{parameters}]'

    def _forget(self, now_us: int) -> None:
        self._since = now_us // KEPT_US
        self._known.clear()
        self._ready.clear()

    def _prepared(self, limit: Limit, now_us: int) -> tuple[Strategy, str, Limit]:
        """Return the strategy, and its own arguments as they follow other words of a script.

        The key is the limit's ``id``, as hashing a limit takes longer than the rest of this; the
        entry holds the limit, so that no other gets its ``id``.
        """
        known = self._known.get(id(limit))
        if known is None:
            strategy = strategy_of(limit)
            parameters = "".join([f",{each}" for each in strategy.parameters(limit, now_us)])
            known = (strategy, parameters, limit)
            if len(self._known) >= MOST_ARGUMENTS:
                self._known.clear()
            self._known[id(limit)] = known
        return known


def hold_words(hold: Hold) -> tuple[Any, ...]:
    """Return what an admission says of the call's hold."""
    if not hold.id:
        return ()
    if hold.keeps:
        return hold.id, hold.lease_us, "" if hold.waited_us is None else hold.waited_us, 1
    return hold[: 2 + (hold.waited_us is not None)]


#: The parts of charges in admit.lua, by whether they are enforced, and meta.
_PARTS: Final = {(True, False): "e", (False, False): "s", (True, True): "m", (False, True): "n"}
