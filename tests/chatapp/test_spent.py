"""What a call used: as the provider reports it, else what may have been billed."""

from __future__ import annotations

import pytest

from chatapp.estimates.estimate import Estimate
from chatapp.providers import ErrorKind, Progress, ProviderError, Usage
from chatapp.spent import NOTHING, Spent, spent_by, spent_on, spent_without_answer

HELD = Estimate(5, 100)


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_final_usage_is_the_bill(is_hidden: bool) -> None:
    """Nothing is estimated beside it."""
    progress = Progress("m", usage=Usage(9, 4), usage_is_final=True, output_bytes=999)
    assert spent_by(progress, HELD, is_hidden=is_hidden) == Spent(Usage(9, 4), estimated=False)
    whole = spent_on(Usage(9, 4), HELD, output_bytes=9)
    assert whole == Spent(Usage(9, 4), estimated=False)


def test_what_was_received_is_counted() -> None:
    """Of a call that hides nothing: the input as far as it is known, the output by its size, and
    never less than the provider reported."""
    assert spent_by(Progress("m", output_bytes=7), HELD, is_hidden=False).usage == Usage(5, 3)
    reported = Progress("m", usage=Usage(9, 1, cached_input_tokens=2), output_bytes=30)
    counted = spent_by(reported, HELD, is_hidden=False)
    assert counted == Spent(Usage(9, 10, cached_input_tokens=2), estimated=True)
    more = Progress("m", usage=Usage(9, 50), output_bytes=30)
    assert spent_by(more, HELD, is_hidden=False).usage == Usage(9, 50)
    whole = spent_on(None, HELD, output_bytes=30)
    assert whole == Spent(Usage(5, 10), estimated=True)


def test_where_output_is_hidden_the_hold_is_charged() -> None:
    """Or what was received, if that is more; a stream that sent nothing hides everything."""
    for progress, output in [
        (Progress("m", output_bytes=7), 100),
        (Progress("m", output_bytes=900), 300),
        (Progress("m", usage=Usage(9, 1)), 100),
    ]:
        spent = spent_by(progress, HELD, is_hidden=True)
        assert (spent.usage.output_tokens, spent.unseen) == (output, True)
    silent = spent_by(Progress("m"), HELD, is_hidden=False)
    assert silent == Spent(Usage(5, 100), estimated=True, unseen=True)


@pytest.mark.parametrize(
    "progress",
    [
        Progress("m", output_bytes=30, failed=True),
        Progress("m", output_bytes=30, finish_reason="stop"),
    ],
)
def test_a_stream_that_its_provider_has_ended_is_what_it_sent(progress: Progress) -> None:
    """With an error, or whole and without a usage: the provider says that it generates no more."""
    spent = spent_by(progress, HELD, is_hidden=True)
    assert spent == Spent(Usage(5, 10), estimated=True)


@pytest.mark.parametrize(
    ("kind", "usage"),
    [
        ("timeout", Usage(5, 100)),
        ("malformed", Usage(5, 100)),
        ("overloaded", NOTHING),
        ("unavailable", NOTHING),
        ("bad_request", NOTHING),
    ],
)
def test_without_an_answer_what_may_be_billed_is_charged(kind: ErrorKind, usage: Usage) -> None:
    """A provider that is late or cannot be read may bill; one that refuses does not."""
    spent = spent_without_answer(ProviderError("p", kind), HELD)
    assert (spent.usage, spent.estimated) == (usage, usage != NOTHING)
