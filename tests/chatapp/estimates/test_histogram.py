"""The histogram of recent outputs, in virtual calls."""

from __future__ import annotations

import doctest
import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from chatapp.estimates import outputs as module
from chatapp.estimates.outputs import BOUNDS, MOST_CALLS, MOST_WEIGHT, Histogram, bucket_of

token_counts = st.lists(st.integers(min_value=0, max_value=BOUNDS[-1]), min_size=1, max_size=200)


def of(outputs: list[int]) -> Histogram:
    known = Histogram()
    for tokens in outputs:
        known = known.added(tokens)
    return known


def test_examples_hold() -> None:
    """The example in the docstring prints what it says."""
    assert doctest.testmod(module) == (0, 1)


@given(outputs=token_counts, percent=st.integers(min_value=1, max_value=100))
def test_a_quantile_is_never_too_low(outputs: list[int], percent: int) -> None:
    """A quantile is at least the exact one, and at most 19 % and a token more."""
    exact = sorted(outputs)[math.ceil(len(outputs) * percent / 100) - 1]
    assert exact <= of(outputs).quantile(percent) <= exact * 1.19 + 1


@given(outputs=token_counts)
def test_calls_are_counted(outputs: list[int]) -> None:
    """It counts its calls exactly while they are few."""
    assert of(outputs).calls == len(outputs)


@given(outputs=token_counts)
def test_calls_are_added_together_as_one_by_one(outputs: list[int]) -> None:
    """While they are few; in any order."""
    assert Histogram().with_calls(Counter(map(bucket_of, outputs))) == of(outputs)


def test_a_thousand_calls_more_are_halved_once() -> None:
    """One halving brings a histogram within its bound, rounding down once."""
    known = Histogram({0: 1, 1: 17, 40: MOST_WEIGHT - 18}).with_calls({2: MOST_CALLS})
    assert known == Histogram({1: 8, 2: MOST_WEIGHT // 2, 40: MOST_WEIGHT // 2 - 9})
    assert known.calls <= MOST_CALLS


def test_without_calls_there_is_no_quantile() -> None:
    """Without calls there is no quantile."""
    assert Histogram().quantile(95) == 0


def test_more_than_the_largest_is_the_largest() -> None:
    """An absurd number of tokens does not break the histogram."""
    assert of([10**12, -5]).quantile(100) == BOUNDS[-1]


def test_it_forgets() -> None:
    """The last thousand calls decide, and not the ten thousand before them: for answers that become
    shorter and for those that become longer."""
    long_ago = of([8_000] * 10_000)
    assert 8_000 <= long_ago.quantile(95) <= 8_000 * 1.19
    for tokens, before in [(50, long_ago), (8_000, of([50] * 10_000))]:
        now = before
        for _ in range(5 * MOST_CALLS):
            now = now.added(tokens)
        assert tokens <= now.quantile(95) <= tokens * 1.19 + 1


def test_halving_keeps_the_tail() -> None:
    """One long answer in ten stays one in ten: halving keeps rare calls."""
    known = of(([100] * 9 + [5_000]) * 1_000)
    assert 5_000 <= known.quantile(95) <= 5_000 * 1.19
    assert known.quantile(88) <= 100 * 1.19


def test_halving_keeps_a_thin_tail() -> None:
    """57 different long answers in a thousand are still above the 95th percentile."""
    long = [int(1_000 * 1.2**step) for step in range(21)]
    known = of([long[call % 21] if call * 7_919 % 1_000 < 57 else 100 for call in range(10_000)])
    assert known.quantile(95) > 1_000
    assert known.quantile(90) <= 100 * 1.19


@given(seed=st.lists(st.integers(min_value=1, max_value=20), min_size=1, max_size=5))
def test_it_is_bounded(seed: list[int]) -> None:
    """For any number of calls, the sum of the weights is bounded."""
    known = of([2**exponent for exponent in seed] * (3 * MOST_CALLS // len(seed)))
    assert sum(known.weights.values()) <= MOST_WEIGHT
    assert len(known.weights) <= len(BOUNDS)
