"""What a call used: as its provider reported it, or what may have been billed where it did not.

What was received is counted. Of a call that sent nothing (a plain answer that never arrived, a
silent stream) all that was held may have been generated. A model that reasons generates before it
sends: how much, is taken from how long that took.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from chatapp.estimates.estimate import Estimate
from chatapp.providers import Progress, ProviderError, Usage
from chatapp.token_estimate import tokens_of

NOTHING = Usage(input_tokens=0, output_tokens=0)
#: What a model is taken to generate in a second: OpenAI promises 50 to 100 tokens for its current
#: models (https://openai.com/api-priority-processing/).
TOKENS_PER_S: Final = 100


@dataclass(frozen=True, slots=True)
class Spent:
    """What a call used; ``estimated`` if the provider has not reported it so, and ``unseen`` if
    nothing was received of it."""

    usage: Usage
    estimated: bool
    unseen: bool = False


def spent_on(usage: Usage | None, estimate: Estimate, *, output_bytes: int) -> Spent:
    """What a whole answer used, by the provider's usage or by its size."""
    if usage is not None:
        return Spent(usage, estimated=False)
    return Spent(_received(estimate, output_bytes), estimated=True)


def spent_by(
    progress: Progress, held: Estimate, *, expected: Estimate, silent_s: float | None, most: int
) -> Spent:
    """The usage of a stream that ended early, or is whole.

    ``silent_s`` is how long the model took before it sent anything, if it may have reasoned; None
    if it generates nothing unseen. Such a call used at least what was ``expected`` of it. An answer
    that is whole, or that the provider ended with an error, is what was received.
    """
    usage = progress.usage
    if usage is not None and progress.usage_is_final:
        return Spent(usage, estimated=False)
    output = tokens_of(progress.output_bytes)
    is_over = progress.failed or progress.finish_reason is not None
    unseen = progress.output_bytes == 0 and not is_over
    if unseen:
        output = held.output_tokens
    elif silent_s is not None and not is_over:
        reasoned = min(output + int(silent_s * TOKENS_PER_S), most)
        output = max(output, reasoned, expected.output_tokens)
    if usage is None:
        return Spent(replace(held.usage, output_tokens=output), estimated=True, unseen=unseen)
    used = replace(usage, output_tokens=max(usage.output_tokens, output))
    return Spent(used, estimated=True, unseen=unseen)


def received_by(progress: Progress, estimate: Estimate) -> Usage:
    """What a stream is known to have used that goes on."""
    received = _received(estimate, progress.output_bytes)
    if progress.usage is None:
        return received
    output = max(progress.usage.output_tokens, received.output_tokens)
    return replace(progress.usage, output_tokens=output)


def spent_without_answer(error: ProviderError, estimate: Estimate) -> Spent:
    """What a call used that brought no answer: a provider that is late, or whose answer cannot be
    read, may bill all of it; one that answers with an error bills nothing."""
    is_error = error.status is not None and error.status >= 400
    if error.kind in {"timeout", "malformed"} and not is_error:
        return Spent(estimate.usage, estimated=True, unseen=True)
    return Spent(NOTHING, estimated=False)


def _received(estimate: Estimate, output_bytes: int) -> Usage:
    return replace(estimate.usage, output_tokens=tokens_of(output_bytes))
