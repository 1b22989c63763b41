"""The usage of a call: as its provider reported it, or what may have been billed otherwise.

What was received is counted. A call that sent nothing (a plain answer that never arrived, a silent
stream) may have generated everything that was held for it. A reasoning model also generates while
it sends nothing. How much either can have generated is bounded by that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from chatapp.catalogue import Model
from chatapp.catalogue.usage import Usage
from chatapp.estimates.estimate import Estimate
from chatapp.estimates.tokens import OPAQUE_BYTES_PER_TOKEN, generated_tokens
from chatapp.ledger.call import Basis
from chatapp.upstreams import Progress, UpstreamError

NO_USAGE: Final = Usage(input_tokens=0, output_tokens=0)
#: The assumed speed of a model: OpenAI promises 50 to 100 tokens per second for its current
#: models (https://openai.com/api-priority-processing/).
TOKENS_PER_S: Final = 100
#: The highest speed of a model without one in the catalogue, for a client that chose the moment at
#: which it left.
MOST_TOKENS_PER_S: Final = 250


@dataclass(frozen=True, slots=True)
class CallUsage:
    """``estimated``: the provider has not reported it, and what it was estimated from is the
    ``basis``; ``unseen``: nothing was received."""

    usage: Usage
    estimated: bool
    unseen: bool = False
    basis: Basis = field(default="received", compare=False)


class Received(NamedTuple):
    """What a stream has brought: the tokens of its output, and for each time that the model has
    read its input again, or is about to, how many it read besides."""

    output_tokens: int
    added: tuple[int, ...] = ()


class Meter:
    """Counts what a stream brings. To be asked whenever the model reads again."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._added: list[int] = []

    def count(self, progress: Progress) -> Received:
        output = generated_tokens(self._model, progress.generated)
        if not (progress.rereads or progress.has_result):
            return Received(output)
        more = output + generated_tokens(self._model, progress.results)
        more += progress.opaque_bytes // OPAQUE_BYTES_PER_TOKEN
        self._added += [more] * (progress.rereads - len(self._added))
        return Received(output, (*self._added, *([more] if progress.has_result else ())))


def answer_usage(
    usage: Usage | None, estimate: Estimate, model: Model, *, generated: Sequence[str]
) -> CallUsage:
    """Return the usage of a whole answer, as reported or by its size."""
    if usage is not None:
        return CallUsage(usage, estimated=False)
    received = estimate.usage._replace(output_tokens=generated_tokens(model, generated))
    return CallUsage(received, estimated=True)


def stream_usage(
    progress: Progress,
    received: Received,
    expected: Estimate,
    *,
    hidden: int | None,
    possible: int | None,
    unseen_tokens: int,
    most: int,
    left: bool,
) -> CallUsage:
    """Return the usage of a stream that ended, whole or not.

    ``hidden`` are the tokens that the model has probably generated without output; None if it sends
    all that it generates. Such a call used at least what was ``expected``, and at most ``most``
    output tokens; one without any output used ``unseen_tokens``. But nothing was generated beyond
    what was received and what was ``possible`` in the time without output (None: unknown). An
    answer that is whole, or that the provider ended with an error, used what was received. A client
    that ``left`` pays for input that the provider has not reported as if none of it had been
    cached.
    """
    usage = progress.usage
    if usage is not None and progress.usage_is_final:
        return CallUsage(usage, estimated=False)
    output = received.output_tokens
    is_over = progress.failed or progress.finish_reason is not None
    unseen = not (progress.generated or is_over)
    basis: Basis = "received"
    if not is_over and (unseen or hidden is not None):
        held = unseen_tokens if unseen else expected.output_tokens
        by_time = held if possible is None else output + possible
        seen = output if unseen or hidden is None else min(output + hidden, most)
        output = max(output, seen, min(held, by_time))
        if output > received.output_tokens:
            basis = "hold" if output == held <= by_time else "time"
    prompt = expected.usage._replace(cached_input_tokens=0) if left else expected.usage
    used = usage_so_far(progress, received, prompt, output_tokens=output)
    return CallUsage(used, estimated=True, unseen=unseen, basis=basis)


def usage_so_far(
    progress: Progress, received: Received, held: Usage, *, output_tokens: int
) -> Usage:
    """Return the usage of a stream that is not over: its input as reported, or as held, and once
    more for each time that the model has read it again."""
    first = progress.usage or held._replace(output_tokens=0, tool_calls={})
    added = () if progress.usage_is_final else received.added
    return first._replace(
        input_tokens=first.input_tokens * (1 + len(added)) + sum(added),
        cached_input_tokens=first.cached_input_tokens
        + len(added) * (first.cached_input_tokens + first.cache_write_tokens),
        output_tokens=max(first.output_tokens, output_tokens),
        tool_calls=progress.tool_calls or first.tool_calls,
        tiers=first.tiers if progress.tiers is None else progress.tiers,
        readings=tuple(first.input_tokens + more for more in (0, *added)) if added else (),
    )


def usage_without_answer(error: UpstreamError, estimate: Estimate) -> CallUsage:
    """Return the usage of a call without an answer. A provider that timed out or sent an unreadable
    answer may bill all of it; one that answers with an error bills nothing."""
    is_error = error.status is not None and error.status >= 400
    if error.kind in {"timeout", "malformed"} and not is_error:
        return CallUsage(estimate.usage, estimated=True, unseen=True)
    return CallUsage(NO_USAGE, estimated=False)
