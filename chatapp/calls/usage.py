"""The usage of a call: as its provider reported it, or what may have been billed otherwise.

What was received is counted. A call that sent nothing (a plain answer that never arrived, a silent
stream) may have generated everything that was held for it. A reasoning model also generates while
it sends nothing: how much is derived from that time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from chatapp.estimates.estimate import Estimate
from chatapp.providers import Progress, ProviderError, Usage

NO_USAGE: Final = Usage(input_tokens=0, output_tokens=0)
#: The assumed speed of a model: OpenAI promises 50 to 100 tokens per second for its current
#: models (https://openai.com/api-priority-processing/).
TOKENS_PER_S: Final = 100
#: English has 4 to 5 bytes per token with either vendor's tokenizer, code and other scripts have
#: fewer. An estimate that is billed should rather be too high.
BYTES_PER_TOKEN: Final = 3


@dataclass(frozen=True, slots=True)
class CallUsage:
    """The usage of a call. ``estimated``: the provider has not reported it. ``unseen``: nothing of
    the answer was received."""

    usage: Usage
    estimated: bool
    unseen: bool = False


def answer_usage(usage: Usage | None, estimate: Estimate, *, output_bytes: int) -> CallUsage:
    """The usage of a whole answer, as reported or by its size."""
    if usage is not None:
        return CallUsage(usage, estimated=False)
    received = replace(estimate.usage, output_tokens=tokens_of(output_bytes))
    return CallUsage(received, estimated=True)


def stream_usage(
    progress: Progress, held: Estimate, *, expected: Estimate, silent_s: float | None, most: int
) -> CallUsage:
    """The usage of a stream that ended, whole or not.

    ``silent_s`` is the time without output if the model may have reasoned meanwhile; None if it
    generates nothing unseen. A reasoning call used at least what was ``expected``, and at most
    ``most`` output tokens. An answer that is whole, or that the provider ended with an error, used
    what was received.
    """
    usage = progress.usage
    if usage is not None and progress.usage_is_final:
        return CallUsage(usage, estimated=False)
    output = tokens_of(progress.output_bytes)
    is_over = progress.failed or progress.finish_reason is not None
    unseen = progress.output_bytes == 0 and not is_over
    if unseen:
        output = held.output_tokens
    elif silent_s is not None and not is_over:
        reasoned = min(output + int(silent_s * TOKENS_PER_S), most)
        output = max(output, reasoned, expected.output_tokens)
    used = _so_far(progress, held.usage, output_tokens=output)
    return CallUsage(used, estimated=True, unseen=unseen)


def received_usage(progress: Progress, estimate: Estimate) -> Usage:
    """The usage so far of a stream that goes on."""
    return _so_far(progress, estimate.usage, output_tokens=tokens_of(progress.output_bytes))


def _so_far(progress: Progress, held: Usage, *, output_tokens: int) -> Usage:
    """The usage of a stream that is not over: its input as reported, or as held, and once more for
    each time that the model has read it again."""
    first = progress.usage or replace(held, output_tokens=0, tool_calls={})
    again = 0 if progress.usage_is_final else progress.rereads
    return replace(
        first,
        input_tokens=first.input_tokens * (1 + again),
        cached_input_tokens=first.cached_input_tokens
        + again * (first.cached_input_tokens + first.cache_write_tokens),
        output_tokens=max(first.output_tokens, output_tokens),
        tool_calls=progress.tool_calls or first.tool_calls,
        tiers=first.tiers if progress.tiers is None else progress.tiers,
    )


def usage_without_answer(error: ProviderError, estimate: Estimate) -> CallUsage:
    """The usage of a call without an answer. A provider that timed out or sent an unreadable answer
    may bill all of it; one that answers with an error bills nothing."""
    is_error = error.status is not None and error.status >= 400
    if error.kind in {"timeout", "malformed"} and not is_error:
        return CallUsage(estimate.usage, estimated=True, unseen=True)
    return CallUsage(NO_USAGE, estimated=False)


def tokens_of(size_bytes: int) -> int:
    """The tokens of a text of that size in UTF-8, by a rule of thumb."""
    return -(-size_bytes // BYTES_PER_TOKEN)
