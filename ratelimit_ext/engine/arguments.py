"""What is sent to a server: Lua scripts, put together from the parts that one evaluation needs, and
their arguments, which ``admit.lua`` and ``settle.lua`` read as one flat list.

An admission is the prelude, one fragment per strategy in use, and the driver: a script for each
set of strategies, so that none pays for algorithms that it does not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha1
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold, PreparedCharges
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies import check_change, strategy_of
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


#: A limit's strategy, its part of a script's words, and the limit.
_Words: TypeAlias = tuple[Strategy, str, Limit]
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
        #: By the limit's id, because hashing a limit takes longer than the rest of this, and by the
        #: words before its numbers. An entry has the limit, so that no other gets its id.
        self._words: dict[tuple[int, str], _Words] = {}

    def read_clock(self, now_us: int | None) -> int:
        """Return the server's clock, unless ``now_us`` replaces it."""
        return clock.now_us() + self.ahead_us if now_us is None else now_us

    def admission(
        self, charges: Sequence[Charge], now_us: int | None, *, part: str | None = None
    ) -> tuple[Script, str, str]:
        """Return the script that decides the charges, its words, and its numbers. The words are the
        same for all requests with these limits, so a server decodes them once. ``part`` replaces
        the part of each charge, as in admit.lua; such charges must be meta."""
        now = clock.now_us() + self.ahead_us if now_us is None else now_us
        since = now // KEPT_US
        base, kept, claimed = None, None, None
        if part is None and isinstance(charges, PreparedCharges):
            base = charges if charges.kept is None else charges.kept
            kept = base.prepared
            if base.unpriced:
                claimed = [charges[place].claim is not None for place in base.unpriced]
        places: Iterable[int] = range(len(charges))
        if kept is not None and kept[:3] == (since, self, claimed):
            script, words, mosts, numbers, text = kept[3:]
            if claimed is None or base is None:
                return script, words, text
            places, numbers = base.unpriced, numbers.copy()
        else:
            kept, numbers = None, [""] * len(charges)
            parts = [self._of_charge(charge, now, part) for charge in charges]
            script, words = _together("admit", parts)
            mosts = [limit.capacity + 1 for _, _, limit in parts]  # higher costs are as impossible
        for place in places:
            _, _, cost, is_meta, _, at_once, claim = charges[place]
            number = str(min(cost, mosts[place]))
            if not is_meta and (at_once is not None or claim is not None):
                number = ",".join(map(str, (number, *(claim or (at_once,)))))
            numbers[place] = number
        text = f"[{','.join(numbers)}]"
        if base is not None and kept is None:
            base.prepared = since, self, claimed, script, words, mosts, numbers, text
        return script, words, text

    def _of_charge(self, charge: Charge, now_us: int, part: str | None) -> _Words:
        limit, _, _, is_meta, on_denial, at_once, claim = charge
        kind = part or _PARTS[limit.mode == "enforce", is_meta]
        more = "" if at_once is None else "="
        if is_meta:
            more = "" if part else ",".join([str(position + 1) for position in on_denial])
        elif claim is not None:
            more = ">"
        return self._of(limit, f',"{kind}","{more}"', now_us)

    def settlement(self, changes: Sequence[Change], now_us: int | None) -> tuple[Script, str, str]:
        """Return the script that applies the changes, its words, and its numbers. Raises
        ``ValueError`` for a change that its strategy does not take."""
        now = clock.now_us() + self.ahead_us if now_us is None else now_us
        is_old = now // KEPT_US != self._since
        numbers: list[int] = []
        parts = []
        for change in changes:  # a strategy may have a class of its own
            limit, values = change.charge.limit, change.numbers
            prefix = f',"{change.verb}",{len(values)}'
            words = None if is_old else self._words.get((id(limit), prefix))
            if words is None:
                check_change(limit, change.verb)
                words = self._of(limit, prefix, now)
            parts.append(words)
            if limit.held:
                numbers += change.hold[:2]
            numbers += values
        return *_together("settle", parts), f"[{','.join(map(str, numbers))}]"

    def alone(self, driver: str, limit: Limit, now_us: int) -> tuple[Script, str]:
        """Return the script of a driver for one bucket of the limit, and its words."""
        return _together(driver, [self._of(limit, "", now_us)])

    def _of(self, limit: Limit, prefix: str, now_us: int) -> _Words:
        """Return the limit as the words of a script, with the prefix before its numbers."""
        if now_us // KEPT_US != self._since:
            self._since = now_us // KEPT_US
            self._words.clear()
        words = self._words.get((id(limit), prefix))
        if words is None:
            strategy = strategy_of(limit)
            parameters = "".join([f",{each}" for each in strategy.parameters(limit, now_us)])
            words = strategy, f'"{strategy.code}"{prefix}{parameters}', limit
            if len(self._words) >= MOST_ARGUMENTS:
                self._words.clear()
            self._words[id(limit), prefix] = words
        return words


def _together(driver: str, words: Sequence[_Words]) -> tuple[Script, str]:
    strategies, texts = tuple(map(itemgetter(0), words)), ",".join(map(itemgetter(1), words))
    return composed(driver, strategies), f"[{texts}]"


def hold_words(hold: Hold) -> tuple[Any, ...]:
    if not hold.id:
        return ()
    if hold.keeps or hold.price:
        waited = "" if hold.waited_us is None else hold.waited_us
        words = hold.id, hold.lease_us, waited, hold.keeps
        return (*words, hold.price) if hold.price else words
    return hold[: 2 + (hold.waited_us is not None)]


#: The parts of charges in admit.lua, by whether they are enforced, and meta.
_PARTS: Final = {(True, False): "e", (False, False): "s", (True, True): "m", (False, True): "n"}
