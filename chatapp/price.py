"""What tokens of a model cost, in integer micro-dollars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chatapp.providers import Usage

TOKENS_PER_PRICE: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Micro-dollars per million tokens of each kind, as models.toml has them in dollars."""

    input: int
    cached_input: int
    cache_write: int
    output: int

    def of(self, usage: Usage) -> int:
        """The cost in micro-dollars. What is no whole one is rounded up, once for the call.

        Cached input and cache writes are parts of the input. A usage that claims more parts than
        input, as no provider should, is priced by its parts.
        """
        cached, written = max(0, usage.cached_input_tokens), max(0, usage.cache_write_tokens)
        plain = max(0, usage.input_tokens - cached - written)
        total = (
            plain * self.input
            + cached * self.cached_input
            + written * self.cache_write
            + max(0, usage.output_tokens) * self.output
        )
        return -(-total // TOKENS_PER_PRICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """A model's price, and the one for everything in a call whose input is long: longer than
    ``long_over_tokens``, where there is such a price."""

    usual: Price
    long: Price | None = None
    long_over_tokens: int = 0

    def of(self, usage: Usage) -> int:
        """The cost in micro-dollars."""
        is_long = self.long is not None and usage.input_tokens > self.long_over_tokens
        return (self.long if is_long and self.long else self.usual).of(usage)
