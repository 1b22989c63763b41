"""Dollars outside, whole micro-dollars inside."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Final, TypeAlias

Dollars: TypeAlias = Decimal | int | float | str

MICRO: Final = 1_000_000
#: In micro-dollars it stays below 2**53, like everything that is counted.
MOST_DOLLARS: Final = 10**9


def micro_dollars(dollars: Dollars) -> int:
    """Return the amount in micro-dollars, rounded up.

    Raises ``ValueError`` for an amount that is negative, infinite, or not a number.

    >>> micro_dollars("0.0000015"), micro_dollars(5), micro_dollars(0.1)
    (2, 5000000, 100000)
    """
    try:
        amount = dollars if type(dollars) is Decimal else Decimal(str(dollars))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount <= MOST_DOLLARS:
        raise ValueError(f"{dollars!r} is not an amount of dollars from 0 to {MOST_DOLLARS}")
    return int((amount * MICRO).to_integral_value(ROUND_CEILING))


def shown_dollars(micro: int) -> str:
    """Return the amount for a person.

    >>> shown_dollars(5_000_000), shown_dollars(500_000), shown_dollars(2)
    ('5', '0.5', '0.000002')
    """
    return f"{Decimal(micro) / MICRO:f}"
