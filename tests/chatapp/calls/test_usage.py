"""The usage of a call: as the provider reported it, or what may have been billed."""

from __future__ import annotations

import pytest

from chatapp.calls.usage import (
    NO_USAGE,
    CallUsage,
    answer_usage,
    received_usage,
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
    """Nothing is estimated."""
    progress = Progress("m", usage=Usage(9, 4), usage_is_final=True, output_bytes=999)
    assert by(progress, silent_s=silent_s) == CallUsage(Usage(9, 4), estimated=False)
    assert answer_usage(Usage(9, 4), HELD, output_bytes=9) == CallUsage(
        Usage(9, 4), estimated=False
    )


def test_received_output_is_counted() -> None:
    """For a call that hides no output: the known input, and the output by its size, at least as
    much as the provider reported."""
    assert by(Progress("m", output_bytes=7)).usage == Usage(5, 3)
    reported = Progress("m", usage=Usage(9, 1, cached_input_tokens=2), output_bytes=30)
    assert by(reported) == CallUsage(Usage(9, 10, cached_input_tokens=2), estimated=True)
    more = Progress("m", usage=Usage(9, 50), output_bytes=30)
    assert by(more).usage == Usage(9, 50)
    whole = answer_usage(None, HELD, output_bytes=30)
    assert whole == CallUsage(Usage(5, 10), estimated=True)


def test_input_is_read_again_after_a_tool_of_the_provider() -> None:
    """What was written to the cache is read from it then. A complete usage has all of it."""
    first = Usage(100, 1, cached_input_tokens=20, cache_write_tokens=30)
    progress = Progress("m", usage=first, output_bytes=30, rereads=2, tool_calls={"web_search": 2})
    read = {"cached_input_tokens": 20 + 2 * 50, "cache_write_tokens": 30}
    assert by(progress).usage == Usage(300, 10, **read, tool_calls={"web_search": 2})
    assert received_usage(progress, HELD) == by(progress).usage
    assert by(Progress("m", output_bytes=30, rereads=1)).usage == Usage(10, 10)
    progress.usage_is_final = True
    assert by(progress).usage == first
    assert received_usage(progress, HELD).input_tokens == 100


@pytest.mark.parametrize(
    ("output_bytes", "silent_s", "output"),
    [(7, 0.0, 20), (900, 0.0, 300), (7, 3.5, 353), (7, 600.0, 8_000)],
)
def test_reasoning_is_estimated_from_its_time(
    output_bytes: int, silent_s: float, output: int
) -> None:
    """A reasoning model generates before it sends. It is charged at least what was expected and at
    most what an answer may have, not what is held for a caller with unbilled calls."""
    progress = Progress("m", output_bytes=output_bytes)
    assert by(progress, silent_s=silent_s) == CallUsage(Usage(5, output), estimated=True)


@pytest.mark.parametrize("silent_s", [None, 0.5])
@pytest.mark.parametrize("usage", [None, Usage(9, 1)])
def test_a_silent_stream_is_charged_as_held(usage: Usage | None, silent_s: float | None) -> None:
    """Any model may have generated that much."""
    spent = by(Progress("m", usage=usage), silent_s=silent_s)
    assert spent == CallUsage(Usage(9 if usage else 5, 100), estimated=True, unseen=True)


@pytest.mark.parametrize(
    "progress",
    [
        Progress("m", output_bytes=30, failed=True),
        Progress("m", output_bytes=30, finish_reason="stop"),
    ],
)
def test_a_stream_that_the_provider_has_ended_is_charged_as_received(progress: Progress) -> None:
    """With an error, or whole and without a usage: nothing more is generated."""
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
def test_a_call_without_an_answer_may_be_billed(
    kind: ErrorKind, status: int | None, usage: Usage
) -> None:
    """After a timeout or an unreadable answer, not after an error."""
    spent = usage_without_answer(ProviderError("p", kind, status=status), HELD)
    assert (spent.usage, spent.estimated) == (usage, usage != NO_USAGE)
