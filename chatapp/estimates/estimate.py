"""An estimate of a call: made before it is admitted, compared with the bill when it is over.

::

    estimate = estimator.estimate(model, prompt)  # before the limits are decided
    …
    estimator.observe(model.slug, estimate, completion.usage)  # when the provider has told it
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from limits.storage import RedisStorage, Storage

from chatapp.catalogue import Catalogue, Model
from chatapp.estimates.accuracy import Accuracy
from chatapp.estimates.output import MemoryOutputs, Outputs, expected_output_tokens
from chatapp.estimates.redis_outputs import RedisOutputs
from chatapp.estimates.tokens import input_tokens
from chatapp.providers import Prompt, Usage

log = logging.getLogger(__name__)

EXTENSION_KEY: Final = "chatapp.estimator"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens that a call is expected to use; ``output_tokens`` of all ``choices`` together."""

    input_tokens: int
    output_tokens: int
    choices: int = 1

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Estimator:
    """Estimates calls, and learns from those that are over. Safe from any thread."""

    def __init__(self, outputs: Outputs, catalogue: Catalogue) -> None:
        self._outputs = outputs
        self._catalogue = catalogue
        #: How good the estimates were; for metrics.
        self.accuracy = Accuracy()

    def estimate(
        self,
        model: Model,
        asked: Prompt | Mapping[str, object],
        *,
        most_output_tokens: int | None = None,
        choices: int = 1,
    ) -> Estimate:
        """What this prompt, or this body in OpenAI's or Anthropic's protocol, will use.

        ``most_output_tokens`` is what all ``choices`` together cannot exceed, where there is such a
        bound; a Prompt has its own. Never raises, and asks the storage seldom: see RedisOutputs.
        """
        if isinstance(asked, Prompt) and most_output_tokens is None:
            most_output_tokens = asked.max_tokens
        choices = max(1, choices)
        input_, output = input_tokens(model, asked), self._output_tokens(model.slug) * choices
        if most_output_tokens is not None:
            output = max(0, min(output, most_output_tokens))
        # A provider refuses, and does not bill, what does not fit into the model's context.
        context = self._catalogue.context_tokens.get(model.slug)
        if context is not None:
            input_, output = min(input_, context), min(output, context * choices)
        return Estimate(input_, output, choices)

    def observe(self, slug: str, estimate: Estimate, actual: Usage) -> None:
        """A call is over, and its provider has told the usage. Once a call; never raises.

        Not for a usage that was itself estimated, as of a stream that broke off: the next estimate
        would learn from it.
        """
        self._outputs.add(slug, -(-max(0, actual.output_tokens) // estimate.choices))
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
        usage = Usage(input_tokens=estimate.input_tokens, output_tokens=estimate.output_tokens)
        return Decimal(self._catalogue.price(slug, usage)).scaleb(-6)

    def _output_tokens(self, slug: str) -> int:
        return expected_output_tokens(self._outputs.recent(slug))


def estimator_for(storage: Storage | None, catalogue: Catalogue) -> Estimator:
    """The estimator that keeps recent outputs where the limits are kept: in Redis for all workers
    (cluster and Sentinel, too), and in each worker's memory for any other storage, or none."""
    if isinstance(storage, RedisStorage):
        outputs = RedisOutputs(storage.get_connection(), storage.base_exceptions)
        return Estimator(outputs, catalogue)
    return Estimator(MemoryOutputs(), catalogue)
