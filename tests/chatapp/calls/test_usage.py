"""What a call used: as the provider reports it, else what may have been billed."""

from __future__ import annotations

import pytest

from chatapp.calls.usage import (
    NO_USAGE,
    CallUsage,
    answer_usage,
    stream_usage,
    usage_without_answer,
)
from chatapp.estimates.estimate import Estimate
from chatapp.providers import ErrorKind, Progress, ProviderError, Usage

HELD, EXPECTED = Estimate(5, 100), Estimate(5, 20)


def by(progress: Progress, *, silent_s: float | None = None) -> CallUsage:
    return stream_usage(progress, HELD, expected=EXPECTED, silent_s=silent_s, most=8_000)


@pytest.mark.parametrize("silent_s", [None, 5.0])
def test_a_final_usage_is_the_bill(silent_s: float | None) -> None:
    """Nothing is estimated beside it."""
    progress = Progress("m", usage=Usage(9, 4), usage_is_final=True, output_bytes=999)
    assert by(progress, silent_s=silent_s) == CallUsage(Usage(9, 4), estimated=False)
    assert answer_usage(Usage(9, 4), HELD, output_bytes=9) == CallUsage(
        Usage(9, 4), estimated=False
    )


def test_what_was_received_is_counted() -> None:
    """Of a call that hides nothing: the input as far as it is known, the output by its size, and
    never less than the provider reported."""
    assert by(Progress("m", output_bytes=7)).usage == Usage(5, 3)
    reported = Progress("m", usage=Usage(9, 1, cached_input_tokens=2), output_bytes=30)
    assert by(reported) == CallUsage(Usage(9, 10, cached_input_tokens=2), estimated=True)
    more = Progress("m", usage=Usage(9, 50), output_bytes=30)
    assert by(more).usage == Usage(9, 50)
    whole = answer_usage(None, HELD, output_bytes=30)
    assert whole == CallUsage(Usage(5, 10), estimated=True)


@pytest.mark.parametrize(
    ("output_bytes", "silent_s", "output"),
    [(7, 0.0, 20), (900, 0.0, 300), (7, 3.5, 353), (7, 600.0, 8_000)],
)
def test_reasoning_is_taken_from_the_time_it_took(
    output_bytes: int, silent_s: float, output: int
) -> None:
    """A model that reasons generates before it sends anything; at least what was expected of the
    call is charged, never more than an answer may have, and not what is held for a caller whose
    calls are not billed."""
    progress = Progress("m", output_bytes=output_bytes)
    assert by(progress, silent_s=silent_s) == CallUsage(Usage(5, output), estimated=True)


@pytest.mark.parametrize("silent_s", [None, 0.5])
@pytest.mark.parametrize("usage", [None, Usage(9, 1)])
def test_of_a_silent_stream_the_hold_is_charged(
    usage: Usage | None, silent_s: float | None
) -> None:
    """It may have generated anything, whatever model it is."""
    spent = by(Progress("m", usage=usage), silent_s=silent_s)
    assert spent == CallUsage(Usage(9 if usage else 5, 100), estimated=True, unseen=True)


@pytest.mark.parametrize(
    "progress",
    [
        Progress("m", output_bytes=30, failed=True),
        Progress("m", output_bytes=30, finish_reason="stop"),
    ],
)
def test_a_stream_that_its_provider_has_ended_is_what_it_sent(progress: Progress) -> None:
    """With an error, or whole and without a usage: the provider says that it generates no more."""
    assert by(progress, silent_s=9.0) == CallUsage(Usage(5, 10), estimated=True)


@pytest.mark.parametrize(
    ("kind", "status", "usage"),
    [
        ("timeout", None, Usage(5, 100)),
        ("timeout", 504, NO_USAGE),
        ("malformed", 200, Usage(5, 100)),
        ("overloaded", 529, NO_USAGE),
        ("unavailable", None, NO_USAGE),
        ("bad_request", 400, NO_USAGE),
    ],
)
def test_without_an_answer_what_may_be_billed_is_charged(
    kind: ErrorKind, status: int | None, usage: Usage
) -> None:
    """A provider that is late or unreadable may bill; one that answers with an error does not."""
    spent = usage_without_answer(ProviderError("p", kind, status=status), HELD)
    assert (spent.usage, spent.estimated) == (usage, usage != NO_USAGE)
