"""An estimate of a call: made before it is admitted, compared with the bill when it has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from chatapp.catalogue import Catalogue, Model
from chatapp.catalogue.usage import Usage
from chatapp.estimates.outputs import History
from chatapp.estimates.tokens import input_tokens, predicted_tokens
from chatapp.upstreams import Extras

log = logging.getLogger(__name__)

NO_EXTRAS: Final = Extras()
# Of a stored conversation whose last answer was cut off: half an agent's usual one.
UNKNOWN_HISTORY_TOKENS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected tokens of a call.

    ``output_tokens`` are those of all ``choices`` together, ``cached_input_tokens`` the part of the
    input from the provider's cache, and ``least_input_tokens`` the part that is certain; the rest,
    as of files, is a guess. ``tiers`` are the requested ones, ``tools`` those that the provider
    runs and bills: how often is unknown, so one use of each is held. ``input_is_known``: no file,
    and nothing that the provider keeps, may have many more tokens than are estimated.
    """

    input_tokens: int
    output_tokens: int
    choices: int = 1
    cached_input_tokens: int = 0
    least_input_tokens: int = 0
    tiers: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    input_is_known: bool = True
    #: The same, as it would be billed.
    usage: Usage = field(init=False, repr=False, compare=False)
    #: What a limit in tokens counts: all but cached input; and the least, whatever the answer.
    tokens: int = field(init=False, repr=False, compare=False)
    least_tokens: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        derive, uncached = object.__setattr__, self.input_tokens - self.cached_input_tokens
        derive(self, "tokens", uncached + self.output_tokens)
        derive(self, "least_tokens", max(0, self.least_input_tokens - self.cached_input_tokens))
        usage = Usage(
            self.input_tokens,
            self.output_tokens,
            cached_input_tokens=self.cached_input_tokens,
            tool_calls=dict.fromkeys(self.tools, 1),
            tiers=self.tiers or None,
        )
        derive(self, "usage", usage)


class Estimator:
    """Estimates calls, and learns from those that have ended. Safe from any thread."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._history = History()

    def estimate(
        self,
        model: Model,
        body: Mapping[str, object],
        *,
        most_output_tokens: int | None = None,
        choices: int = 1,
        history_tokens: int | None = 0,
        extras: Extras = NO_EXTRAS,
        caller: str | None = None,
    ) -> Estimate:
        """Return the estimate for this body in OpenAI's or Anthropic's protocol. Never raises.

        ``most_output_tokens`` bounds all ``choices`` together, ``history_tokens`` are read besides
        the body (None: unknown), and the own calls of the ``caller`` count first.
        """
        choices = max(1, choices)
        longest = self._catalogue.longest_answer(model) * choices
        context = self._catalogue.entry(model.slug).context
        counted = input_tokens(model, body)
        output = choices * self._history.output_tokens(model.slug, caller, effort=extras.effort)
        if extras.predicts:
            output = max(output, predicted_tokens(model, body))
        output = min(output, longest)
        if most_output_tokens is not None:
            output = max(0, min(output, most_output_tokens))
        # A provider refuses, and does not bill, a call that exceeds the model's context.
        history = UNKNOWN_HISTORY_TOKENS if history_tokens is None else history_tokens
        input_ = counted.expected + history
        if context is not None:
            input_, output = min(input_, context), min(output, context * choices)
        cached = 0 if caller is None else self._history.cached_tokens(caller, model.slug, input_)
        return Estimate(
            input_,
            output,
            choices,
            cached_input_tokens=cached,
            least_input_tokens=min(counted.least, input_),
            tiers=tuple(extras.tiers.values()),
            tools=extras.tools,
            input_is_known=counted.is_known and history_tokens is not None,
        )

    def learn(self, outputs: Iterable[tuple[str, int]]) -> None:
        """Learn from earlier calls: their slugs and output tokens, the oldest first."""
        for slug, tokens in outputs:
            self._history.learn(slug, tokens)

    def observe(self, slug: str, estimate: Estimate, actual: Usage, caller: str) -> None:
        """Learn from the usage of a call that has ended: once, and only from a reported one. Never
        raises."""
        output_tokens = -(-max(0, actual.output_tokens) // estimate.choices)
        self._history.add(caller, slug, actual, output_tokens=output_tokens)
        log.debug(
            "%s used %.2f × the input and %.2f × the output estimated",
            slug,
            max(0, actual.input_tokens) / max(1, estimate.input_tokens),
            max(0, actual.output_tokens) / max(1, estimate.output_tokens),
        )
