"""The whole, one step at a time: what workers and their storage promise, whatever breaks.

`python -m tests.simulator` plays many more seeds, and replays one that fails.
"""

from __future__ import annotations

import pytest

from ratelimit_ext.settlements.queue import SettlementQueue
from tests.seeds import seeds
from tests.simulator import search
from tests.simulator.scenario import KINDS
from tests.simulator.scheduler import Choices
from tests.simulator.search import failure_of, kind_of, play, small_cases


@seeds(60)
def test_no_seed_breaks_a_promise(seeds: range) -> None:
    """Workers are stopped and killed, calls and replies are lost or late, a storage ends, loses its
    data or is replaced by its replica."""
    for seed in seeds:
        failure = failure_of(seed, kind_of(seed))
        assert failure is None, failure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_no_small_run_breaks_a_promise(kind: str, step: int) -> None:
    """Three callers, two workers, a storage that may have a replica. All runs that differ in one
    choice from the calm one, or each 20th of them."""
    assert len(list(small_cases(kind, step=step))) > 2


def test_a_seed_is_always_the_same_run() -> None:
    """Else a failure could not be replayed."""
    logs = [play("both", Choices(11))[1].log for _ in range(3)]
    assert len(logs[1]) > 10
    assert logs[1] == logs[2]


def test_a_failing_seed_becomes_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is printed with the command that plays it again. Here, the calls of a killed worker keep
    their slots, as before November 2026."""
    monkeypatch.setattr(SettlementQueue, "take_over", lambda _: None)
    monkeypatch.setattr(search, "MOST_RUNS", 60)
    failure = next(filter(None, (failure_of(seed, "slots") for seed in range(50))))
    assert len(failure.kept) < 60
    again = failure_of(failure.seed, failure.kind, kept=failure.kept, is_short=False)
    assert str(failure.error) == str(again and again.error)
    assert f"--seed {failure.seed} --keep " in str(failure)
