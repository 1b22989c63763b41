"""Runs by seeds; a failing one is made as short as it can be; small ones are searched through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.simulator.scenario import KINDS, SMALL, Run, Size
from tests.simulator.scheduler import Choices, Deviations

#: How many runs a failing seed may take to become short.
MOST_RUNS = 300


@dataclass
class Failure:
    """``kept`` are the positions of the seed's choices without which all is calm."""

    seed: int
    kind: str
    error: Exception
    kept: frozenset[int]
    log: list[str]

    @property
    def command(self) -> str:
        kept = ",".join(map(str, sorted(self.kept)))
        return (
            f"python -m tests.simulator --kind {self.kind} --seed {self.seed} --keep {kept or '-'}"
        )

    def __str__(self) -> str:
        return "\n".join([*self.log, f"{self.error}", f"Replay it: {self.command}"])


def kind_of(seed: int) -> str:
    return KINDS[seed % len(KINDS)]


@cache
def _warm_up() -> None:
    """What the first run of a process does once takes no choice of a later one."""
    Run("both", Choices(0, frozenset()), Size()).play()


def play(kind: str, choices: Choices, *, size: Size | None = None) -> tuple[Exception | None, Run]:
    _warm_up()
    run = Run(kind, choices, size or Size())
    try:
        run.play()
    except Exception as error:  # noqa: BLE001 - a finding
        return error, run
    return None, run


def failure_of(
    seed: int, kind: str, *, kept: frozenset[int] | None = None, is_short: bool = True
) -> Failure | None:
    """Play a seed; return what fails, as short as it can be."""
    choices = Choices(seed, kept)
    error, run = play(kind, choices)
    if error is None:
        return None
    failure = Failure(seed, kind, error, frozenset(choices.made), run.log)
    return _shortened(failure) if is_short else failure


def _shortened(failure: Failure) -> Failure:
    """Leave out choices as long as the same invariant fails: halves first, then smaller parts."""
    runs, size = 0, max(1, len(failure.kept) // 2)
    while runs < MOST_RUNS:
        places = sorted(failure.kept)
        for start in range(0, len(places), size):
            kept = failure.kept.difference(places[start : start + size])
            choices, runs = Choices(failure.seed, kept), runs + 1
            error, run = play(failure.kind, choices)
            if type(error) is type(failure.error) and _kind(error) == _kind(failure.error):
                made = frozenset(choices.made)
                failure = Failure(failure.seed, failure.kind, error, made, run.log)
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return failure


def _kind(error: Exception | None) -> str:
    return getattr(error, "kind", "")


def small_cases(kind: str, *, deviations: int = 1, step: int = 1) -> Iterator[dict[int, int]]:
    """Play a small run in all ways that differ from the calm one in so many choices; yield these
    choices. Only each ``step``-th way of the first choice is played. Raises what fails."""
    yield from _deviating(kind, {}, deviations, step)


def _deviating(kind: str, others: dict[int, int], left: int, step: int) -> Iterator[dict[int, int]]:
    choices = Deviations(others)
    error, _ = play(kind, choices, size=SMALL)
    if error is not None:
        raise AssertionError(f"{kind}, with the choices {others}: {error}") from error
    yield others
    if not left:
        return
    first = max(others, default=-1) + 1
    ways = [
        (position, place)
        for position in range(first, len(choices.widths))
        for place in range(1, choices.widths[position])
    ]
    for position, place in ways[::step]:
        yield from _deviating(kind, {**others, position: place}, left - 1, 1)
