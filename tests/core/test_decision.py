"""A decision names its denials and the longest of their waits."""

import pytest

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit

MINUTE = 60_000_000


def verdict(wait_us: int | None, mode: str = "enforce") -> Verdict:
    charge = Charge(Limit(1, MINUTE, mode=mode), "bucket")
    return Verdict(charge, wait_us == 0, 0, wait_us, 0, 0)


def decided(*verdicts: Verdict) -> Decision:
    return Decision(admitted=False, now_us=0, verdicts=verdicts)


@pytest.mark.parametrize(("us", "ms"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)])
def test_a_wait_is_rounded_up(us: int, ms: int) -> None:
    """A millisecond too early would be denied again."""
    assert verdict(us).retry_after_ms == ms


def test_of_several_denials_the_longest_wait_counts() -> None:
    """Before the longest wait is over, one of them still denies."""
    assert decided(verdict(0), verdict(5000), verdict(9000)).retry_after_ms == 9


def test_one_that_can_never_pass_has_no_wait() -> None:
    """No waiting helps where one of the costs is above a capacity."""
    assert decided(verdict(5000), verdict(None)).retry_after_ms is None


def test_a_shadow_is_no_denial() -> None:
    """Neither its verdict nor its wait reaches the client."""
    shadowed = decided(verdict(5000, "shadow"), verdict(2000))
    assert len(shadowed.denials) == 1
    assert shadowed.retry_after_ms == 2
