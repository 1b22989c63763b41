"""An estimate of a call: made before it is admitted, compared with the bill when it is over.

::

    estimate = estimator.estimate(model, body, caller=user)  # before the limits are decided
    …
    estimator.observe(model.slug, estimate, usage, user)  # when the provider has reported it
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from limits.storage import RedisStorage, Storage

from chatapp.catalogue import Catalogue, Model
from chatapp.estimates.accuracy import Accuracy
from chatapp.estimates.callers import Callers
from chatapp.estimates.outputs import (
    LEAST_OUTPUT_TOKENS,
    MemoryOutputs,
    Outputs,
    expected_output_tokens,
)
from chatapp.estimates.redis_outputs import RedisOutputs
from chatapp.estimates.tokens import input_tokens
from chatapp.providers import Usage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens that a call is expected to use: ``output_tokens`` of all ``choices`` together, and of
    the input ``cached_input_tokens`` from the provider's cache. ``least_input_tokens`` is what the
    prompt has at the least; the rest is a guess, as of files. ``tiers`` are those asked for."""

    input_tokens: int
    output_tokens: int
    choices: int = 1
    cached_input_tokens: int = 0
    least_input_tokens: int = 0
    tiers: tuple[str, ...] = ()

    @property
    def usage(self) -> Usage:
        """The estimate in the form of a bill."""
        return Usage(
            self.input_tokens,
            self.output_tokens,
            cached_input_tokens=self.cached_input_tokens,
            tiers=self.tiers or None,
        )

    @property
    def tokens(self) -> int:
        """What a limit in tokens counts: input that was cached is left out."""
        return self.input_tokens - self.cached_input_tokens + self.output_tokens

    @property
    def least_tokens(self) -> int:
        """What a limit in tokens counts at the least, whatever the answer."""
        return max(0, self.least_input_tokens - self.cached_input_tokens)


class Estimator:
    """Estimates calls, and learns from those that are over. Safe from any thread."""

    def __init__(self, outputs: Outputs, catalogue: Catalogue) -> None:
        self._outputs = outputs
        self._catalogue = catalogue
        self._callers = Callers()
        #: How good the estimates were; for metrics.
        self.accuracy = Accuracy()

    def estimate(
        self,
        model: Model,
        asked: Mapping[str, object],
        *,
        most_output_tokens: int | None = None,
        choices: int = 1,
        caller: str | None = None,
        tiers: tuple[str, ...] = (),
    ) -> Estimate:
        """What this body in OpenAI's or Anthropic's protocol will use.

        ``most_output_tokens`` is what all ``choices`` together cannot exceed, if there is such a
        bound; ``caller`` is the identity whose own calls are looked at first. Never raises, and
        asks the storage seldom: see RedisOutputs.
        """
        choices = max(1, choices)
        counted = input_tokens(model, asked)
        output = choices * self._output_tokens(model.slug, caller)
        longest = self._catalogue.longest_answer(model) * choices
        output = max(0, min(output, longest, *filter(None, [most_output_tokens])))
        # A provider refuses, and does not bill, what does not fit into the model's context.
        input_, context = counted.expected, self._catalogue.context_tokens.get(model.slug)
        if context is not None:
            input_, output = min(input_, context), min(output, context * choices)
        cached = 0 if caller is None else self._callers.cached_tokens(caller, model.slug, input_)
        return Estimate(
            input_,
            output,
            choices,
            cached_input_tokens=cached,
            least_input_tokens=min(counted.least, input_),
            tiers=tiers,
        )

    def _output_tokens(self, slug: str, caller: str | None) -> int:
        """What one answer is expected to have: by the caller's own calls, else by the model's."""
        own = None if caller is None else self._callers.output_tokens(caller, slug)
        if own is None:
            return expected_output_tokens(self._outputs.recent(slug))
        return max(LEAST_OUTPUT_TOKENS, own)

    def observe(self, slug: str, estimate: Estimate, actual: Usage, caller: str) -> None:
        """A call is over, and its provider has reported the usage. Once a call; never raises.

        Not for a usage that was itself estimated, as of a stream that broke off: the next estimate
        would learn from it.
        """
        output_tokens = -(-max(0, actual.output_tokens) // estimate.choices)
        self._outputs.add(slug, output_tokens)
        self._callers.billed(caller, slug, actual, output_tokens=output_tokens)
        ratios = (
            self.accuracy.observe(
                slug, "input", estimated=estimate.input_tokens, actual=actual.input_tokens
            ),
            self.accuracy.observe(
                slug, "output", estimated=estimate.output_tokens, actual=actual.output_tokens
            ),
        )
        log.debug("%s used %.2f × the input and %.2f × the output estimated", slug, *ratios)

    def close(self) -> None:
        """Share what was learned last, and end; the end of the process does that by itself."""
        self._outputs.close()

    def cost_usd(self, estimate: Estimate, slug: str) -> Decimal:
        """The price of an estimate in dollars, for limits in `usd`; exact, in micro-dollars."""
        return Decimal(self._catalogue.price(slug, estimate.usage)).scaleb(-6)

    def least_usd(self, estimate: Estimate, slug: str) -> Decimal:
        """What the call costs at the least: its prompt, all of it cached, and no answer."""
        least = Usage(estimate.least_input_tokens, 0, estimate.least_input_tokens)
        return Decimal(self._catalogue.price(slug, least)).scaleb(-6)


def estimator_for(storage: Storage | None, catalogue: Catalogue) -> Estimator:
    """The estimator that keeps recent outputs where the limits are kept: in Redis for all workers
    (cluster and Sentinel, too), and in each worker's memory for any other storage, or none."""
    if isinstance(storage, RedisStorage):
        outputs = RedisOutputs(storage.get_connection(), storage.base_exceptions)
        return Estimator(outputs, catalogue)
    return Estimator(MemoryOutputs(), catalogue)
