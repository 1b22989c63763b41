"""The usage of a call: as the provider reported it, or what may have been billed."""

import pytest

from chatapp import catalogue
from chatapp.calls.usage import (
    NO_USAGE,
    CallUsage,
    Meter,
    answer_usage,
    stream_usage,
    usage_so_far,
    usage_without_answer,
)
from chatapp.catalogue.usage import Usage
from chatapp.estimates.estimate import Estimate
from chatapp.upstreams import ErrorKind, Progress, UpstreamError

GPT = catalogue.load().model("gpt-5.4", "openai")
CLAUDE = catalogue.load().model("claude-opus-5", "anthropic")
EXPECTED = Estimate(5, 20, cached_input_tokens=4)


def words(count: int) -> list[str]:
    """So many tokens, in pieces."""
    return [" word"] * count


def by(
    progress: Progress,
    *,
    hidden: int | None = None,
    possible: int | None = None,
    left: bool = False,
) -> CallUsage:
    return stream_usage(
        progress,
        Meter(GPT).count(progress),
        EXPECTED,
        hidden=hidden,
        possible=possible,
        unseen_tokens=100,
        most=8_000,
        left=left,
    )


@pytest.mark.parametrize("hidden", [None, 500])
def test_a_final_usage_is_the_bill(hidden: int | None) -> None:
    """Nothing is estimated."""
    progress = Progress("m", usage=Usage(9, 4), usage_is_final=True, generated=words(999))
    assert by(progress, hidden=hidden, left=True) == CallUsage(Usage(9, 4), estimated=False)
    assert answer_usage(Usage(9, 4), EXPECTED, GPT, generated=words(9)) == CallUsage(
        Usage(9, 4), estimated=False
    )


def test_received_output_is_counted() -> None:
    """For a call that hides no output: the known input, and the output by its tokens, at least as
    many as the provider reported."""
    held = {"cached_input_tokens": 4}
    assert by(Progress("m", generated=words(7))).usage == Usage(5, 7, **held)
    reported = Progress("m", usage=Usage(9, 1, cached_input_tokens=2), generated=words(10))
    assert by(reported) == CallUsage(Usage(9, 10, cached_input_tokens=2), estimated=True)
    more = Progress("m", usage=Usage(9, 50), generated=words(10))
    assert by(more).usage == Usage(9, 50)
    whole = answer_usage(None, EXPECTED, GPT, generated=words(10))
    assert whole == CallUsage(Usage(5, 10, **held), estimated=True)


def test_dense_text_has_more_tokens() -> None:
    """By OpenAI's tokenizer, whatever pieces it comes in; Claude's is not public, and is estimated
    from above."""
    dense = list("1 2 3 4 5 6 7 8 9 ") * 50
    assert Meter(GPT).count(Progress("m", generated=dense)).output_tokens == pytest.approx(900, 5)
    prose = words(300)
    assert Meter(CLAUDE).count(Progress("m", generated=prose)).output_tokens == 500
    assert Meter(CLAUDE).count(Progress("m", generated=dense)).output_tokens > 900


def test_input_that_may_not_have_been_cached_is_paid_by_who_leaves() -> None:
    """Unless the provider has reported how much of it was."""
    assert by(Progress("m", generated=words(7)), left=True).usage == Usage(5, 7)
    reported = Progress("m", usage=Usage(9, 1, cached_input_tokens=2), generated=words(10))
    assert by(reported, left=True).usage.cached_input_tokens == 2


def test_input_is_read_again_after_a_tool_of_the_provider() -> None:
    """What was written to the cache is read from it then. A complete usage has all of it."""
    first = Usage(100, 1, cached_input_tokens=20, cache_write_tokens=30)
    progress = Progress("m", usage=first, rereads=2, tool_calls={"web_search": 2})
    progress.generated, progress.results = words(10), words(40)
    read = {"cached_input_tokens": 20 + 2 * 50, "cache_write_tokens": 30}
    again = {"readings": (100, 150, 150), "tool_calls": {"web_search": 2}}
    assert by(progress).usage == Usage(400, 10, **read, **again)
    progress.usage_is_final = True
    assert by(progress).usage == first


def test_each_reading_has_what_came_before_it() -> None:
    """Also the one that begins with the latest result."""
    progress, meter = Progress("m", generated=words(10)), Meter(GPT)
    progress.results, progress.has_result = words(100), True
    assert meter.count(progress).added == (110,)
    progress.rereads, progress.has_result = 1, False
    assert meter.count(progress).added == (110,)
    progress.results, progress.has_result = words(300), True
    progress.opaque_bytes = 30
    assert meter.count(progress).added == (110, 320)
    used = usage_so_far(progress, meter.count(progress), Usage(5, 0), output_tokens=10)
    assert used == Usage(3 * 5 + 430, 10, readings=(5, 115, 325))


@pytest.mark.parametrize(
    ("received", "hidden", "output"), [(3, 0, 20), (300, 0, 300), (3, 350, 353), (3, 60_000, 8_000)]
)
def test_hidden_reasoning_is_charged(received: int, hidden: int, output: int) -> None:
    """A reasoning model generates before it sends. It is charged at least what was expected and at
    most what an answer may have."""
    spent = by(Progress("m", generated=words(received)), hidden=hidden, left=True)
    assert spent == CallUsage(Usage(5, output), estimated=True)


@pytest.mark.parametrize("hidden", [None, 50])
@pytest.mark.parametrize("usage", [None, Usage(9, 1)])
def test_a_silent_stream_is_charged_as_held(usage: Usage | None, hidden: int | None) -> None:
    """Any model may have generated that much."""
    spent = by(Progress("m", usage=usage), hidden=hidden, left=True)
    assert spent == CallUsage(Usage(9 if usage else 5, 100), estimated=True, unseen=True)


@pytest.mark.parametrize(
    ("received", "possible", "output", "basis"),
    [
        (0, 30, 30, "time"),
        (0, 3_000, 100, "hold"),
        (0, None, 100, "hold"),
        (3, 9, 12, "time"),
        (3, 3_000, 20, "hold"),
        (300, 3_000, 300, "received"),
    ],
)
def test_time_bounds_what_was_not_seen(
    received: int, possible: int | None, output: int, basis: str
) -> None:
    """Never more than was held, never less than was received, and the basis says which."""
    progress = Progress("m", generated=words(received))
    spent = by(progress, hidden=0, possible=possible, left=True)
    assert (spent.usage.output_tokens, spent.basis) == (output, basis)


@pytest.mark.parametrize(
    "progress",
    [
        Progress("m", generated=words(10), failed=True),
        Progress("m", generated=words(10), finish_reason="stop"),
    ],
)
def test_a_stream_that_the_provider_has_ended_is_charged_as_received(progress: Progress) -> None:
    """With an error, or whole and without a usage: nothing more is generated."""
    held = Usage(5, 10, cached_input_tokens=4)
    assert by(progress, hidden=900) == CallUsage(held, estimated=True)


@pytest.mark.parametrize(
    ("kind", "status", "usage"),
    [
        ("timeout", None, EXPECTED.usage),
        ("timeout", 504, NO_USAGE),
        ("malformed", 200, EXPECTED.usage),
        ("overloaded", 529, NO_USAGE),
        ("unavailable", None, NO_USAGE),
        ("bad_request", 400, NO_USAGE),
    ],
)
def test_a_call_without_an_answer_may_be_billed(
    kind: ErrorKind, status: int | None, usage: Usage
) -> None:
    """After a timeout or an unreadable answer, not after an error."""
    spent = usage_without_answer(UpstreamError(kind, status=status), EXPECTED)
    assert (spent.usage, spent.estimated) == (usage, usage != NO_USAGE)
