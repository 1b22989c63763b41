"""Recent outputs of models."""

from __future__ import annotations

import threading

import pytest

from chatapp.estimates.outputs import (
    ENOUGH_CALLS,
    MOST_CALLS,
    UNKNOWN_OUTPUT_TOKENS,
    Histogram,
    Outputs,
    expected_output_tokens,
)


@pytest.fixture
def outputs() -> Outputs:
    return Outputs()


def test_nothing_is_known_of_a_new_model(outputs: Outputs) -> None:
    """A model without calls has the documented default."""
    assert outputs.recent("gpt-4o") == Histogram()
    assert expected_output_tokens(outputs.recent("gpt-4o")) == UNKNOWN_OUTPUT_TOKENS


def test_enough_calls_make_an_expectation(outputs: Outputs) -> None:
    """With too few calls the default applies; with enough, what 95 of 100 did not exceed, and never
    less than the default."""
    for _ in range(ENOUGH_CALLS - 1):
        outputs.add("gpt-4o", 2_000)
    assert expected_output_tokens(outputs.recent("gpt-4o")) == UNKNOWN_OUTPUT_TOKENS
    outputs.add("gpt-4o", 3_000)
    assert 2_000 <= expected_output_tokens(outputs.recent("gpt-4o")) < 2_400
    outputs.add("gpt-4o", 3_000)
    assert 3_000 <= expected_output_tokens(outputs.recent("gpt-4o")) < 3_600


def test_models_are_apart(outputs: Outputs) -> None:
    """The calls of one model do not change the estimate of another."""
    outputs.add("gpt-4o", 200)
    assert outputs.recent("gpt-4.1") == Histogram()


def varied_tokens(calls: int) -> list[int]:
    """Outputs of that many calls, short and long ones mixed."""
    return [call * call % 5_003 if call % 7 else call // 20 for call in range(calls)]


def test_memory_is_the_reference() -> None:
    """Thousands of calls, one by one, with several halvings."""
    outputs, reference = Outputs(), Histogram()
    for tokens in varied_tokens(3 * MOST_CALLS):
        outputs.add("gpt-4o", tokens)
        reference = reference.added(tokens)
    assert outputs.recent("gpt-4o") == reference


def test_threads_lose_no_call(outputs: Outputs) -> None:
    """Concurrent calls are all counted."""
    workers = [
        threading.Thread(target=lambda: [outputs.add("gpt-4o", 100) for _ in range(50)])
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    outputs.add("gpt-4o", 100)
    assert outputs.recent("gpt-4o").calls == 401
