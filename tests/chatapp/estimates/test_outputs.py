"""Recent outputs of models."""

import doctest
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatapp.catalogue.usage import Usage
from chatapp.estimates import outputs as module
from chatapp.estimates.outputs import (
    ENOUGH_CALLS,
    MOST_CALLS,
    UNKNOWN_OUTPUT_TOKENS,
    History,
    quantile,
)


@pytest.fixture
def history() -> History:
    return History()


def test_examples_hold() -> None:
    """The example in the docstring prints what it says."""
    assert doctest.testmod(module) == (0, 1)


@given(st.lists(st.integers(min_value=0, max_value=10**6), min_size=1, max_size=200))
def test_a_quantile_covers_95_of_100_calls(calls: list[int]) -> None:
    """And one token less would not."""
    found = quantile(calls)
    assert sum(tokens <= found for tokens in calls) >= math.ceil(len(calls) * 0.95)
    assert sum(tokens < found for tokens in calls) < math.ceil(len(calls) * 0.95)


def test_enough_calls_make_an_expectation(history: History) -> None:
    """With too few calls the default applies; with enough, what 95 of 100 did not exceed, and never
    less than the default."""
    assert history.output_tokens("gpt-4o") == UNKNOWN_OUTPUT_TOKENS
    history.learn("gpt-4o", *[2_000] * (ENOUGH_CALLS - 1))
    assert history.output_tokens("gpt-4o") == UNKNOWN_OUTPUT_TOKENS
    history.learn("gpt-4o", 3_000)
    assert history.output_tokens("gpt-4o") == 2_000
    history.learn("gpt-4o", 3_000)
    assert history.output_tokens("gpt-4o") == 3_000
    assert history.output_tokens("gpt-4.1") == UNKNOWN_OUTPUT_TOKENS
    history.learn("gpt-4.1", *[9] * ENOUGH_CALLS)
    assert history.output_tokens("gpt-4.1") == UNKNOWN_OUTPUT_TOKENS


def test_the_latest_calls_count(history: History) -> None:
    """Of many calls of a model."""
    history.learn("gpt-4o", *[9_000] * MOST_CALLS, *[2_000] * MOST_CALLS)
    assert history.output_tokens("gpt-4o") == 2_000


def test_who_has_not_called_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not who has called first."""
    monkeypatch.setattr(module, "MOST_CALLERS", 2)
    history = History()
    used = Usage(100, 1, cached_input_tokens=50, cache_write_tokens=50)
    for caller in "abac":
        history.add(caller, "m", used, output_tokens=1)
    assert [history.cached_tokens(caller, "m", 100) for caller in "abc"] == [100, 0, 100]


def test_threads_lose_no_call(history: History) -> None:
    """Concurrent calls are all counted."""
    workers = [
        threading.Thread(target=history.learn, args=("gpt-4o", *[5_000] * 5)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert history.output_tokens("gpt-4o") == 5_000
