"""What a request asks of one model, and what it claims of the budgets that pay for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from chatapp.catalogue import RESULT_TOKENS, Catalogue, Model
from chatapp.catalogue.usage import Usage
from chatapp.estimates.estimate import Estimate
from chatapp.upstreams import OPEN_TOOLS, QuotaUnit

#: What is held for one answer beside other calls in flight, if it may be that long and is paid.
HELD_TOKENS: Final = 16_384
#: Assumed for a model whose context is unknown.
UNKNOWN_CONTEXT: Final = 1_000_000


class ClaimedCosts(NamedTuple):
    """What a budget may hold for a call, in micro-dollars: if it is the only one in flight; beside
    others the least that bounds it, what is enough for most answers, and for the longest."""

    alone: int
    beside: int
    usual: int
    most: int


class Demand(NamedTuple):
    """What a request asks of one model.

    ``bound`` is the longest single answer that the request allows, in tokens; ``may_hide_output``:
    the model may generate what is billed and not sent, each answer with at most ``speed`` tokens a
    second (None: unknown); ``is_unbounded``: nothing bounds the answer;
    ``cost_micro_usd`` is the price of the estimate, ``least_micro_usd`` the least that is billed;
    ``quota_use`` is what its upstream counts the request as; ``tiers`` have quotas of their own at
    the upstream, none for a standard call.
    """

    model: Model
    estimate: Estimate
    cost_micro_usd: int
    bound: int | None
    may_hide_output: bool
    quota_use: Mapping[QuotaUnit, int]
    is_unbounded: bool = False
    least_micro_usd: int = 0
    tiers: tuple[str, ...] = ()
    speed: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the call may cost far more than its estimate, whatever bounds it is sent."""
        has_open_tools = not OPEN_TOOLS.isdisjoint(self.estimate.tools)
        return self.is_unbounded or has_open_tools or not self.estimate.input_is_known

    def longest(self, catalogue: Catalogue, bound: int | None = None) -> int:
        """Return the most output tokens that all answers together can have."""
        return self.estimate.choices * catalogue.longest_answer(self.model, bound or self.bound)

    def prompt(self, catalogue: Catalogue) -> Usage:
        """Return the input as it may be billed at worst: nothing from the provider's cache, and as
        long as the model takes if that is unknown."""
        estimate = self.estimate
        context = catalogue.entry(self.model.slug).context or UNKNOWN_CONTEXT
        tokens = estimate.input_tokens if estimate.input_is_known else context
        usage = estimate.usage
        return usage._replace(input_tokens=tokens, cached_input_tokens=0, output_tokens=0)

    def claim(self, catalogue: Catalogue) -> ClaimedCosts:
        """Return what a budget may hold. A tool is used once; after an open one, the model reads as
        much again as it takes. What nothing bounds claims its worst cost, also alone."""
        estimate, slug, prompt = self.estimate, self.model.slug, self.prompt(catalogue)
        longest = self.longest(catalogue)
        expected = estimate.output_tokens
        usual = min(longest, max(expected, HELD_TOKENS * estimate.choices))
        most = catalogue.price(slug, prompt._replace(output_tokens=longest))
        least = enough = most
        if expected < longest and not self.is_unbounded:  # a price is a line of output
            least = catalogue.price(slug, prompt._replace(output_tokens=expected))
            part = (most - least) * (usual - expected)
            enough = least - -part // (longest - expected)
        if not OPEN_TOOLS.isdisjoint(estimate.tools):
            context = catalogue.entry(slug).context or UNKNOWN_CONTEXT
            reading = catalogue.price(slug, Usage(context, 0, tiers=prompt.tiers))
            least, enough, most = least + reading, enough + reading, most + reading
        elif estimate.tools:  # half of it
            result = Usage(prompt.input_tokens + RESULT_TOKENS, 0, tiers=prompt.tiers)
            least = 2 * max(least, catalogue.price(slug, result))
            enough, most = 2 * enough, 2 * most
        alone = least if self.is_open else self.cost_micro_usd
        return ClaimedCosts(alone, least, enough, most)
