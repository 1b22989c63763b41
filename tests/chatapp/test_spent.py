"""What a call used: as the provider says, else an estimate that says it is one."""

from __future__ import annotations

from chatapp.providers import Progress, ProviderError, Usage
from chatapp.spent import NOTHING, Spent, spent_by, spent_in_vain, spent_on


def test_a_final_usage_is_the_bill() -> None:
    """No estimate beside it."""
    progress = Progress("m", usage=Usage(9, 4), usage_is_final=True, output_bytes=999)
    assert spent_by(progress, input_estimate=77) == Spent(Usage(9, 4), estimated=False)
    assert spent_on(Usage(9, 4), input_estimate=7, output_bytes=9).estimated is False


def test_what_was_cut_off_is_estimated() -> None:
    """The input as far as it is known, the output by its size, never less than was told."""
    assert spent_by(Progress("m", output_bytes=7), input_estimate=5) == Spent(Usage(5, 3), True)
    told = Progress("m", usage=Usage(9, 1, cached_input_tokens=2), output_bytes=30)
    assert spent_by(told, input_estimate=5).usage == Usage(9, 10, cached_input_tokens=2)
    more = Progress("m", usage=Usage(9, 50), output_bytes=30)
    assert spent_by(more, input_estimate=5).usage == Usage(9, 50)
    assert spent_on(None, input_estimate=5, output_bytes=30) == Spent(Usage(5, 10), True)


def test_a_refusal_cost_nothing_and_a_late_answer_its_prompt() -> None:
    """A provider that reads and is not heard of bills what it read."""
    assert spent_in_vain(ProviderError("p", "overloaded"), input_estimate=5).usage == NOTHING
    assert spent_in_vain(ProviderError("p", "timeout"), input_estimate=5).usage == Usage(5, 0)
