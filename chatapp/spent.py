"""What a call used: told by the provider, or estimated where it told nothing final."""

from __future__ import annotations

from dataclasses import dataclass, replace

from chatapp.providers import Progress, ProviderError, Usage
from chatapp.token_estimate import tokens_of

NOTHING = Usage(input_tokens=0, output_tokens=0)


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that a call used; ``estimated`` where the provider has not billed them so."""

    usage: Usage
    estimated: bool


def spent_on(usage: Usage | None, *, input_estimate: int, output_bytes: int) -> Spent:
    """What a whole answer used, by the provider's usage or by its size."""
    if usage is not None:
        return Spent(usage, estimated=False)
    return Spent(Usage(input_estimate, tokens_of(output_bytes)), estimated=True)


def spent_by(progress: Progress, *, input_estimate: int) -> Spent:
    """What a stream used that has come so far."""
    usage = progress.usage
    if usage is not None and progress.usage_is_final:
        return Spent(usage, estimated=False)
    generated = tokens_of(progress.output_bytes)
    if usage is None:
        return Spent(Usage(input_estimate, generated), estimated=True)
    return Spent(replace(usage, output_tokens=max(usage.output_tokens, generated)), estimated=True)


def spent_in_vain(error: ProviderError, *, input_estimate: int) -> Spent:
    """What a call used that brought no answer: a provider that is late may have read the prompt,
    one that refuses has not."""
    if error.kind in {"timeout", "malformed"}:
        return Spent(Usage(input_estimate, 0), estimated=True)
    return Spent(NOTHING, estimated=False)
