"""What a call has used, as it is billed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Usage(NamedTuple):
    """Tokens as the provider bills them.

    ``input_tokens`` is the whole prompt. ``cached_input_tokens`` (read from the provider's cache)
    and ``cache_write_tokens`` (written to it) are parts of it, however the provider reports them;
    ``cache_write_1h_tokens``, written for an hour, are a part of the latter. ``output_tokens`` is
    everything generated, ``reasoning_tokens`` a part of it. ``tool_calls`` counts the uses of the
    provider's own tools, by the name of their price. ``tiers`` are the tiers and speeds that change
    the price ("priority", "fast", …): empty for a standard call, None if none was reported.
    ``readings`` is the input of each reading of a model that went on after such tools, ``()`` for a
    single one.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0
    tool_calls: Mapping[str, int] = {}
    tiers: tuple[str, ...] | None = None
    readings: tuple[int, ...] = ()

    @property
    def counted_tokens(self) -> int:
        """What limits in tokens count: not cached input, as in the providers' own limits."""
        cached = min(self.cached_input_tokens, self.input_tokens)
        return self.input_tokens - cached + self.output_tokens
