"""A guess: an estimate that is known to be rough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Guess:
    """What a request is expected to cost, and what it costs at the least.

    An estimator or a cost function returns it in place of a plain number, in the same unit
    (``usd`` in dollars). A limit that can never hold ``cost`` is charged its capacity; only a
    ``least`` above the capacity makes the request too large.

    >>> Guess(5000, least=100)
    Guess(cost=5000, least=100)
    """

    cost: Any
    least: Any = 0
