"""Asking a provider: how often, after which wait, and what everybody is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from chatapp.providers import ErrorKind, ProviderError, Quota
from chatapp.upstream.guard import LONGEST_COOL_DOWN_S, PATIENCE_S, PAUSE_S, TRIED_AGAIN, Guard

QUOTA = Quota("requests", limit=60, remaining=3, reset_after_s=57.0)


@dataclass
class Answer:
    """What an attempt brings."""

    quotas: Sequence[Quota] = ()


@dataclass
class FakeGate:
    """A gate that remembers, and that has these answers to further attempts."""

    waits: list[float | None] = field(default_factory=list)
    cooled: list[float | None] = field(default_factory=list)
    learnt: list[Quota] = field(default_factory=list)
    admitted: int = 0
    is_exceeded: bool = False
    pause: float = 0.0

    def pause_s(self) -> float:
        return self.pause

    def exceeds(self, quotas: Sequence[Quota]) -> bool:
        return self.is_exceeded and bool(quotas)

    def admit_again(self) -> float | None:
        wait_s = self.waits.pop(0) if self.waits else None
        self.admitted += wait_s is None
        return wait_s

    def cool_down(self, for_s: float | None) -> None:
        self.cooled.append(for_s)

    def learn(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        self.learnt += quotas


class Script:
    """An attempt that fails with these errors, one after the other, and then succeeds."""

    def __init__(self, *errors: ProviderError) -> None:
        self.errors = list(errors)

    def __call__(self) -> Answer:
        if self.errors:
            raise self.errors.pop(0)
        return Answer((QUOTA,))


Asks = Callable[..., tuple[FakeGate, list[float], Guard]]


@pytest.fixture
def made() -> Asks:
    """Makes a gate with these answers, the sleeps of a guard, and the guard."""

    def make(*waits: float | None, most_attempts: int = 3) -> tuple[FakeGate, list[float], Guard]:
        gate, slept = FakeGate(list(waits)), []  # type: ignore[var-annotated]
        return gate, slept, Guard(gate, most_attempts=most_attempts, sleep=slept.append)

    return make


def failure(kind: ErrorKind, retry_after_s: float | None = None) -> ProviderError:
    return ProviderError("openai", kind, retry_after_s=retry_after_s, quotas=(QUOTA,))


def test_an_answer_is_asked_for_once(made: Asks) -> None:
    """And its quotas are learnt."""
    gate, slept, guard = made()
    assert guard.ask(Script()).quotas == (QUOTA,)
    assert (guard.attempts, slept, gate.learnt, gate.cooled) == (1, [], [QUOTA], [])


@pytest.mark.parametrize("kind", ["rate_limited", "overloaded"])
def test_a_short_wait_is_waited_for(made: Asks, kind: ErrorKind) -> None:
    """Everybody cools down for as long as the provider asks; the attempt that follows is admitted
    and charged like the first."""
    gate, slept, guard = made()
    assert guard.ask(Script(failure(kind, 0.3)))
    assert (slept, gate.cooled, gate.admitted, guard.attempts) == ([0.3], [0.3], 1, 2)
    assert gate.learnt == [QUOTA, QUOTA]


def test_a_refusal_that_names_no_wait_grows(made: Asks) -> None:
    """The gate is told that nobody named the pause."""
    gate, slept, guard = made()
    assert guard.ask(Script(failure("overloaded")))
    assert (gate.cooled, slept) == ([None], [PAUSE_S])


def test_a_long_wait_is_the_callers(made: Asks) -> None:
    """No thread sleeps for 7 s: the caller is told, and everybody cools down."""
    gate, slept, guard = made()
    with pytest.raises(ProviderError) as caught:
        guard.ask(Script(failure("rate_limited", 7.0)))
    assert (caught.value.retry_after_s, slept, gate.cooled) == (7.0, [], [7.0])
    assert gate.admitted == 0


def test_attempts_are_bounded(made: Asks) -> None:
    """The last error is the caller's."""
    gate, slept, guard = made(most_attempts=3)
    last = failure("overloaded", 0.3)
    with pytest.raises(ProviderError) as caught:
        guard.ask(Script(failure("overloaded", 0.1), failure("overloaded", 0.2), last))
    assert caught.value is last
    assert (guard.attempts, slept, gate.cooled) == (3, [0.1, 0.2], [0.1, 0.2, 0.3])


def test_waits_are_bounded_together(made: Asks) -> None:
    """However many attempts: nobody waits for more than the patience in all."""
    _, slept, guard = made(most_attempts=99)
    with pytest.raises(ProviderError):
        guard.ask(Script(*[failure("overloaded", 0.7) for _ in range(99)]))
    assert 0 < sum(slept) <= PATIENCE_S


def test_another_attempt_waits_until_it_is_admitted(made: Asks) -> None:
    """Others are on the ramp before it."""
    gate, slept, guard = made(0.5, 0.25, None)
    assert guard.ask(Script(failure("rate_limited", 0.3)))
    assert (slept, gate.admitted) == ([0.3, 0.5, 0.25], 1)


def test_where_no_attempt_is_admitted_the_wait_is_told(made: Asks) -> None:
    """That of the gate, which knows how long it will be."""
    _, slept, guard = made(30.0)
    with pytest.raises(ProviderError) as caught:
        guard.ask(Script(failure("rate_limited", 0.3)))
    assert (caught.value.retry_after_s, slept, guard.attempts) == (30.0, [0.3], 1)


def test_what_could_not_be_reached_is_asked_again(made: Asks) -> None:
    """Nobody was refused for want of room, and nobody cools down."""
    gate, slept, guard = made()
    assert guard.ask(Script(failure("unavailable")))
    assert gate.cooled == []
    assert 0 < slept[0] < PAUSE_S


@pytest.mark.parametrize(
    "kind", ["timeout", "malformed", "bad_request", "too_large", "auth", "quota", "unknown_model"]
)
def test_what_may_be_billed_or_will_not_change_is_asked_once(made: Asks, kind: ErrorKind) -> None:
    """A call that timed out may bill twice; a refusal of the request stays one."""
    assert kind not in TRIED_AGAIN
    gate, slept, guard = made()
    with pytest.raises(ProviderError):
        guard.ask(Script(failure(kind, 0.1)))
    assert (guard.attempts, slept, gate.cooled) == (1, [], [])


def test_a_call_that_is_too_large_closes_nothing(made: Asks) -> None:
    """It says nothing of the provider's room for others, and is not asked again."""
    gate, slept, guard = made()
    gate.is_exceeded = True
    with pytest.raises(ProviderError):
        guard.ask(Script(failure("rate_limited", 0.1)))
    assert (guard.attempts, slept, gate.cooled) == (1, [], [])


def test_no_header_closes_a_provider_for_good(made: Asks) -> None:
    """A Retry-After of years is an hour."""
    gate, _, guard = made()
    with pytest.raises(ProviderError):
        guard.ask(Script(failure("rate_limited", 1e9)))
    assert gate.cooled == [LONGEST_COOL_DOWN_S]


def test_a_second_choice_is_asked_once(made: Asks) -> None:
    """Whatever the first had used of the attempts."""
    _, _, guard = made(most_attempts=1)
    with pytest.raises(ProviderError):
        guard.ask(Script(failure("overloaded", 9.0)))
    with pytest.raises(ProviderError):
        guard.ask_once(Script(failure("overloaded", 0.1)))
    assert guard.attempts == 2


@pytest.mark.parametrize("kind", sorted(TRIED_AGAIN))
def test_nobody_is_asked_again_for_a_caller_who_has_left(kind: ErrorKind) -> None:
    """He left while we waited: no attempt is charged, and none is made."""
    gate = FakeGate()
    guard = Guard(gate, most_attempts=3, sleep=lambda _: True)
    with pytest.raises(ProviderError):
        guard.ask(Script(failure(kind), failure(kind)))
    assert (guard.attempts, gate.admitted) == (1, 0)


def test_who_is_refused_without_a_wait_is_told_the_pause(made: Asks) -> None:
    """That which follows from his own refusal; a wait that the provider names is told as it is."""
    for named, told in ((None, 8.0), (5.0, 5.0)):
        gate, _, guard = made(most_attempts=1)
        gate.pause = 8.0
        with pytest.raises(ProviderError) as refused:
            guard.ask(Script(failure("overloaded", named)))
        assert refused.value.retry_after_s == told
