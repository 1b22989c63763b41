"""What a call used: as its provider reported it, or what may have been billed where it did not.

What was received is counted. Where more may have been generated than was received (a plain answer
that never arrived, a silent stream, reasoning), the call used at least what was held for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from chatapp.estimates.estimate import Estimate
from chatapp.providers import Progress, ProviderError, Usage
from chatapp.token_estimate import tokens_of

NOTHING = Usage(input_tokens=0, output_tokens=0)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a call used; ``estimated`` if the provider has not reported it so, and ``unseen`` if it
    may have generated more than was received."""

    usage: Usage
    estimated: bool
    unseen: bool = False


def spent_on(usage: Usage | None, estimate: Estimate, *, output_bytes: int) -> Spent:
    """What a whole answer used, by the provider's usage or by its size."""
    if usage is not None:
        return Spent(usage, estimated=False)
    return Spent(_estimated(estimate, tokens_of(output_bytes), is_hidden=False), estimated=True)


def spent_by(progress: Progress, estimate: Estimate, *, is_hidden: bool) -> Spent:
    """What a stream used that has ended there. ``is_hidden``: the model may have generated more
    than it sent; not in an answer that is whole, or that the provider ended with an error."""
    usage = progress.usage
    if usage is not None and progress.usage_is_final:
        return Spent(usage, estimated=False)
    is_silent = usage is None and progress.output_bytes == 0
    is_over = progress.failed or progress.finish_reason is not None
    unseen = (is_hidden or is_silent) and not is_over
    at_least = _estimated(estimate, tokens_of(progress.output_bytes), is_hidden=unseen)
    if usage is not None:
        at_least = replace(usage, output_tokens=max(usage.output_tokens, at_least.output_tokens))
    return Spent(at_least, estimated=True, unseen=unseen)


def received_by(progress: Progress, estimate: Estimate) -> Usage:
    """What a stream is known to have used that goes on."""
    generated = tokens_of(progress.output_bytes)
    if progress.usage is None:
        return _estimated(estimate, generated, is_hidden=False)
    return replace(progress.usage, output_tokens=max(progress.usage.output_tokens, generated))


def spent_without_answer(error: ProviderError, estimate: Estimate) -> Spent:
    """What a call used that brought no answer: a provider that is late, or whose answer cannot be
    read, may bill all of it; one that refuses bills nothing."""
    if error.kind in {"timeout", "malformed"}:
        return Spent(_estimated(estimate, 0, is_hidden=True), estimated=True, unseen=True)
    return Spent(NOTHING, estimated=False)


def _estimated(estimate: Estimate, received: int, *, is_hidden: bool) -> Usage:
    held = estimate.output_tokens if is_hidden else 0
    return replace(estimate.usage, output_tokens=max(received, held))
