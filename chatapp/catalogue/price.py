"""The prices of models, and the cost of a call in integer micro-dollars."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from math import prod
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from chatapp.catalogue.usage import Usage
from chatapp.validation import type_name

TOKENS_PER_PRICE: Final = 1_000_000
#: The cost of a call must fit into the ledger and into what is counted.
MOST_DOLLARS: Final = 1_000_000
#: Multiples of a price are in thousandths, so that costs are integers.
ONE: Final = 1000
#: The number of output tokens that an amount pays if output is free.
NO_BOUND: Final = 2**53


def _number(value: object) -> Decimal:
    # Decimals, because 0.1 as a float is not a tenth of a dollar.
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(f"is {type_name(value)}; write a number")  # noqa: TRY004 - pydantic's rule
    if not (number := Decimal(value)).is_finite():
        raise ValueError(f"is {value}; write a finite number")
    return number


def _micro_dollars(value: object) -> int:
    number = _number(value)
    if number > MOST_DOLLARS:
        raise ValueError(f"is {number:.3g}; write at most {MOST_DOLLARS}")
    micro = number * 1_000_000
    if micro < 0 or micro != int(micro):
        raise ValueError(f"is {value}; write an amount of whole micro-dollars")
    return int(micro)


def _thousandths(value: object) -> int:
    multiple = _number(value)
    if not 0 < multiple <= 100:
        raise ValueError(f"is {value}; write a multiple of a price above 0 and at most 100")
    return int(-(-multiple * ONE // 1))


#: Written in dollars, kept in micro-dollars.
Dollars = Annotated[int, BeforeValidator(_micro_dollars)]
#: A multiple of a price, kept in thousandths.
Multiple = Annotated[int, BeforeValidator(_thousandths)]


class Price(BaseModel):
    """Micro-dollars per million tokens of each kind."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)
    input: Dollars
    cached_input: Dollars
    cache_write: Dollars
    cache_write_1h: Dollars = 0
    output: Dollars

    @model_validator(mode="before")
    @classmethod
    def _with_default(cls, written: object) -> object:
        if isinstance(written, dict) and isinstance(written.get("input"), int | Decimal):
            return {"cache_write_1h": 2 * written["input"], **written}
        return written

    def millionths(self, usage: Usage) -> int:
        """Return the cost in millionths of a micro-dollar.

        Cached input and cache writes are parts of the input. A usage with larger parts than input,
        which no provider should report, is priced by its parts.
        """
        cached, written = max(0, usage.cached_input_tokens), max(0, usage.cache_write_tokens)
        for_an_hour = min(written, max(0, usage.cache_write_1h_tokens))
        return (
            max(0, usage.input_tokens - cached - written) * self.input
            + cached * self.cached_input
            + (written - for_an_hour) * self.cache_write
            + for_an_hour * self.cache_write_1h
            + max(0, usage.output_tokens) * self.output
        )


class LongPrice(Price):
    """The price of a whole call whose input exceeds ``over`` tokens."""

    over: Annotated[int, Field(gt=0)]


class LaterPrice(Price):
    """The price from the beginning of a day on, by UTC."""

    since: Annotated[date, Field(alias="from")]
    long_context: LongPrice | None = None

    @property
    def begins_s(self) -> float:
        """Return when that is, in seconds since 1970."""
        return datetime(*self.since.timetuple()[:3], tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """The prices of a model.

    ``later`` replace ``usual`` and ``long``, each from its day on; the first comes first.
    ``tiers`` are multiples by tier or speed, in thousandths; ``other_tiers`` are the highest of all
    models, for a tier without a multiple here. A tier that is unknown everywhere is standard.
    ``tools`` are the prices of one use of each tool, in micro-dollars.
    """

    usual: Price
    long: LongPrice | None = None
    later: tuple[LaterPrice, ...] = ()
    tiers: Mapping[str, int] = field(default_factory=dict)
    other_tiers: Mapping[str, int] = field(default_factory=dict)
    tools: Mapping[str, int] = field(default_factory=dict)

    def of(self, usage: Usage) -> int:
        """Return the cost in micro-dollars, rounded up once for the call. Each reading has the
        price of its own length; what else is used is shared among them by their input."""
        usual, above = self.prices() if self.later else (self.usual, self.long)
        total = usual.millionths(usage)
        if above is not None and (usage.readings or usage.input_tokens > above.over):
            inputs = usage.readings or (usage.input_tokens,)
            if long := sum(tokens for tokens in inputs if tokens > above.over):
                rest = sum(inputs) - long
                total = total * rest + above.millionths(usage) * long
                total = -(-total // (rest + long))
        multiple, scale = self._multiple(usage.tiers) if usage.tiers else (1, 1)
        tokens = -(-total * multiple // (TOKENS_PER_PRICE * scale))
        for name, uses in usage.tool_calls.items():
            tokens += max(0, uses) * self.tools.get(name, 0)
        return tokens

    def is_long(self, input_tokens: int) -> bool:
        long = self.prices()[1] if self.later else self.long
        return long is not None and input_tokens > long.over

    def output_tokens_for(self, micro_usd: int, prompt: Usage) -> int:
        """Return how many output tokens an amount pays in addition to the prompt."""
        usual, long = self.prices() if self.later else (self.usual, self.long)
        price = long if long and prompt.input_tokens > long.over else usual
        multiple, scale = self._multiple(prompt.tiers) if prompt.tiers else (1, 1)
        per_token = price.output * multiple
        left = max(0, micro_usd - self.of(prompt)) * TOKENS_PER_PRICE * scale
        return left // per_token if per_token else NO_BOUND

    def prices(self) -> tuple[Price, LongPrice | None]:
        """Return what is in force now: the price, and that of a long call."""
        begun = [price for price in self.later if price.begins_s <= time.time()]
        return (begun[-1], begun[-1].long_context) if begun else (self.usual, self.long)

    @property
    def changed_s(self) -> float:
        """Return when the price in force began, in seconds since 1970; 0 for the first one."""
        return max([p.begins_s for p in self.later if p.begins_s <= time.time()], default=0)

    def _multiple(self, tiers: Collection[str]) -> tuple[int, int]:
        """Return the product of the tiers' multiples, as a fraction."""
        others = self.other_tiers
        multiples = [self.tiers.get(tier, others.get(tier, ONE)) for tier in tiers]
        return prod(multiples), pow(ONE, len(multiples))
