"""What an algorithm offers to the engines."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from ratelimit_ext.core.limit import Limit


class Reading(NamedTuple):
    """A bucket brought to the present: three integers whose meaning is the strategy's own.

    The Lua fragment returns the same three, so that one function, :meth:`Strategy.answer`, turns
    a reading of either engine into an answer.
    """

    x: int
    y: int
    z: int


class Answer(NamedTuple):
    """What a reading means for one charge: see :class:`~ratelimit_ext.core.decision.Verdict`."""

    remaining: int
    retry_after_us: int
    reset_after_us: int
    receipt: int


class Strategy(Protocol):
    """A rate-limiting algorithm. ``State`` is opaque to the engines; ``None`` is a fresh bucket.

    ``parameters`` are the numbers that stand behind code, mode and cost in the script's arguments.
    """

    #: Two letters that name the algorithm in keys and in the script's arguments.
    CODE: str

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """The limit as numbers, the same for Lua and for the functions below."""
        ...

    def check(
        self, state: Any, now_us: int, cost: int, parameters: tuple[int, ...]
    ) -> tuple[bool, Reading, Any]:
        """Whether ``cost`` fits at ``now_us``; the reading; the state brought to ``now_us``."""
        ...

    def take(
        self, state: Any, now_us: int, cost: int, parameters: tuple[int, ...]
    ) -> tuple[Any, int]:
        """The state after a cost that fitted, and for how many microseconds it matters."""
        ...

    def adjust(
        self, state: Any, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
    ) -> tuple[Any, int] | None:
        """The state after correcting the charge of ``receipt`` by ``delta`` units.

        ``None`` where the charge no longer matters. Never denies; a positive delta may overdraw.
        """
        ...

    def answer(
        self, limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading
    ) -> Answer:
        """What the reading means for a charge of ``cost`` that was taken, or that was not.

        The cost is at most the limit's capacity.
        """
        ...
