"""Attempts at a call: how many, after which waits, and their effect on other callers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from chatapp.calls.retry import LONGEST_COOL_DOWN_S, PATIENCE_S, PAUSE_S, RETRYABLE, Retry
from chatapp.upstreams import ErrorKind, Quota, UpstreamError

QUOTA = Quota("requests", limit=60, remaining=3, reset_after_s=57.0)


@dataclass
class Answer:
    """The result of an attempt."""

    quotas: Sequence[Quota] = ()


@dataclass
class FakeLimits:
    """Limits that record, and answer further attempts with these waits."""

    waits: list[float | None] = field(default_factory=list)
    cooled: list[float] = field(default_factory=list)
    reported: list[Quota] = field(default_factory=list)
    admitted: int = 0

    def admit_attempt(self) -> float | None:
        wait_s = self.waits.pop(0) if self.waits else None
        self.admitted += wait_s is None
        return wait_s

    def cool_down(self, for_s: float) -> None:
        self.cooled.append(for_s)

    def report(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        self.reported += quotas


class Script:
    """An attempt that fails with these errors, one after the other, and then succeeds."""

    def __init__(self, *errors: UpstreamError) -> None:
        self.errors = list(errors)

    def __call__(self) -> Answer:
        if self.errors:
            raise self.errors.pop(0)
        return Answer((QUOTA,))


MakeRetry = Callable[..., tuple[FakeLimits, list[float], Retry]]


@pytest.fixture
def made() -> MakeRetry:
    """Makes limits with these answers, the list of sleeps, and the attempts."""

    def make(*waits: float | None, most_attempts: int = 3) -> tuple[FakeLimits, list[float], Retry]:
        limits, slept = FakeLimits(list(waits)), []  # type: ignore[var-annotated]
        retry = Retry(limits, quota_use={}, most_attempts=most_attempts, sleep=slept.append)
        return limits, slept, retry

    return make


def failure(kind: ErrorKind, retry_after_s: float | None = None) -> UpstreamError:
    return UpstreamError(kind, retry_after_s=retry_after_s, quotas=(QUOTA,))


def test_an_answer_takes_one_attempt(made: MakeRetry) -> None:
    """Its quotas are reported."""
    limits, slept, retry = made()
    assert retry.run(Script()).quotas == (QUOTA,)
    assert (retry.attempts, slept, limits.reported, limits.cooled) == (1, [], [QUOTA], [])


@pytest.mark.parametrize("kind", ["rate_limited", "overloaded"])
def test_a_short_wait_is_waited_for(made: MakeRetry, kind: ErrorKind) -> None:
    """The model cools down for the provider's wait, for all callers. The next attempt is admitted
    and charged like the first."""
    limits, slept, retry = made()
    assert retry.run(Script(failure(kind, 0.3)))
    assert (slept, limits.cooled, limits.admitted, retry.attempts) == ([0.3], [0.3], 1, 2)
    assert limits.reported == [QUOTA, QUOTA]


def test_without_a_named_wait_nothing_cools_down(made: MakeRetry) -> None:
    """The throttle spares a model that refuses nearly all calls."""
    limits, slept, retry = made()
    assert retry.run(Script(failure("overloaded")))
    assert (limits.cooled, slept) == ([], [PAUSE_S])


def test_a_named_wait_is_of_the_key(made: MakeRetry) -> None:
    """Another one is tried at once, also if the provider is overloaded."""
    _, slept, retry = made(most_attempts=1)
    keys = [True]
    assert retry.run(Script(failure("overloaded", 9.0)), lambda: bool(keys) and keys.pop())
    assert (slept, keys, retry.attempts) == ([], [], 2)


def test_a_long_wait_is_left_to_the_caller(made: MakeRetry) -> None:
    """No thread sleeps for 7 s. The error has the wait, and the model cools down."""
    limits, slept, retry = made()
    with pytest.raises(UpstreamError) as caught:
        retry.run(Script(failure("rate_limited", 7.0)))
    assert (caught.value.retry_after_s, slept, limits.cooled) == (7.0, [], [7.0])
    assert limits.admitted == 0


def test_attempts_are_bounded(made: MakeRetry) -> None:
    """The caller gets the last error."""
    limits, slept, retry = made(most_attempts=3)
    last = failure("overloaded", 0.3)
    with pytest.raises(UpstreamError) as caught:
        retry.run(Script(failure("overloaded", 0.1), failure("overloaded", 0.2), last))
    assert caught.value is last
    assert (retry.attempts, slept, limits.cooled) == (3, [0.1, 0.2], [0.1, 0.2, 0.3])


def test_waits_are_bounded_together(made: MakeRetry) -> None:
    """Their sum never exceeds the patience."""
    _, slept, retry = made(most_attempts=99)
    with pytest.raises(UpstreamError):
        retry.run(Script(*[failure("overloaded", 0.7) for _ in range(99)]))
    assert 0 < sum(slept) <= PATIENCE_S


def test_another_attempt_waits_until_it_is_admitted(made: MakeRetry) -> None:
    """Other callers may be ahead."""
    limits, slept, retry = made(0.5, 0.25, None)
    assert retry.run(Script(failure("rate_limited", 0.3)))
    assert (slept, limits.admitted) == ([0.3, 0.5, 0.25], 1)


def test_a_denied_attempt_has_the_wait_of_the_limits(made: MakeRetry) -> None:
    """They know the rest of the cool-down."""
    _, slept, retry = made(30.0)
    with pytest.raises(UpstreamError) as caught:
        retry.run(Script(failure("rate_limited", 0.3)))
    assert (caught.value.retry_after_s, slept, retry.attempts) == (30.0, [0.3], 1)


def test_an_unreachable_provider_is_tried_again(made: MakeRetry) -> None:
    """It has not refused for its load, so the model does not cool down."""
    limits, slept, retry = made()
    assert retry.run(Script(failure("unavailable")))
    assert limits.cooled == []
    assert 0 < slept[0] < PAUSE_S


@pytest.mark.parametrize(
    "kind", ["timeout", "malformed", "bad_request", "too_large", "auth", "quota", "unknown_model"]
)
def test_a_timeout_and_a_rejection_are_not_retried(made: MakeRetry, kind: ErrorKind) -> None:
    """A timeout may be billed twice; a rejection stays one."""
    assert kind not in RETRYABLE
    limits, slept, retry = made()
    with pytest.raises(UpstreamError):
        retry.run(Script(failure(kind, 0.1)))
    assert (retry.attempts, slept, limits.cooled) == (1, [], [])


def test_a_call_that_is_too_large_causes_no_cool_down(made: MakeRetry) -> None:
    """It says nothing about the provider's load, and is not retried."""
    limits, slept, retry = made()
    retry.quota_use = {"requests": QUOTA.limit + 1}
    with pytest.raises(UpstreamError):
        retry.run(Script(failure("rate_limited", 0.1)))
    assert (retry.attempts, slept, limits.cooled) == (1, [], [])


def test_a_cool_down_is_bounded(made: MakeRetry) -> None:
    """Even if Retry-After is years."""
    limits, _, retry = made()
    with pytest.raises(UpstreamError):
        retry.run(Script(failure("rate_limited", 1e9)))
    assert limits.cooled == [LONGEST_COOL_DOWN_S]


def test_a_fallback_is_called_once(made: MakeRetry) -> None:
    """However many attempts the first model has had."""
    _, _, retry = made(most_attempts=1)
    with pytest.raises(UpstreamError):
        retry.run(Script(failure("overloaded", 9.0)))
    with pytest.raises(UpstreamError):
        retry.run_once(Script(failure("overloaded", 0.1)))
    assert retry.attempts == 2


@pytest.mark.parametrize("kind", sorted(RETRYABLE))
def test_a_disconnect_ends_the_attempts(kind: ErrorKind) -> None:
    """If it happens during the wait, no attempt is charged or made."""
    limits = FakeLimits()
    retry = Retry(limits, quota_use={}, most_attempts=3, sleep=lambda _: True)
    with pytest.raises(UpstreamError):
        retry.run(Script(failure(kind), failure(kind)))
    assert (retry.attempts, limits.admitted) == (1, 0)
