"""What an algorithm offers to the engines."""

# ruff: noqa: FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from ratelimit_ext.core.limit import Limit

#: What a correction can raise a bucket's usage to: a thousand times the largest amount, and far
#: enough below 2**53 for every sum of two of them.
MOST_USED: Final = 2**50


#: Nothing is kept for longer: 142 years, in microseconds.
LONGEST_LIFETIME_US: Final = 2**52


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

    def take(self, state: Any, now_us: int, cost: int, parameters: tuple[int, ...]) -> Any:
        """The state after a cost that fitted; ``None`` if there is nothing to keep."""
        ...

    def lifetime(self, state: Any, now_us: int, parameters: tuple[int, ...]) -> int:
        """For how many microseconds the state matters: afterwards it answers as a fresh bucket.

        Every time to live comes from here. 0 or less: it is not kept.
        """
        ...

    def booked(self, state: Any, now_us: int) -> int:
        """The receipt of a charge that is taken now from a state that was brought to now."""
        ...

    def rewound(self, state: Any, now_us: int, parameters: tuple[int, ...]) -> bool:
        """Whether the state comes from a future that only a clock set back explains.

        ``check`` brings such a state to the present each time anew. The engine keeps that present
        (a ``take`` of 0) even where it denies, or the wait would begin anew with every call until
        the clock has caught up.
        """
        ...

    def adjust(
        self, state: Any, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
    ) -> Any:
        """The state after correcting the charge of ``receipt`` by ``delta`` units.

        Never denies; a positive delta may overdraw. If the window of the charge is over, a positive
        delta is charged to the present one, and a negative one changes nothing: ``None``.
        """
        ...

    def answer(self, limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
        """What the reading means for a charge of ``cost`` that was taken, or that was not.

        The cost is at most the limit's capacity.
        """
        ...

    def later(self, limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
        """The answer as it reads ``elapsed_us`` afterwards if nobody else has called.

        A view may take half a minute, and its headers speak of the moment they are sent. What an
        answer alone cannot tell stays as it was, on the safe side.
        """
        ...
