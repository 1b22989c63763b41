"""The period of a provider's quota."""

import pytest

from chatapp.calls.upstream_quota import DAY_S, MINUTE_S, period_s_of
from chatapp.upstreams import Quota
from chatapp.upstreams.openai import quotas


@pytest.mark.parametrize(
    ("quota", "period_s"),
    [
        (Quota("requests", 500, 499, 0.12), MINUTE_S),
        (Quota("requests", 500, 0, 60.0), MINUTE_S),
        (Quota("requests", 200, 150, 21_600.0), DAY_S),
        (Quota("requests", 10_000, 9_999, 8.64), DAY_S),
        (Quota("tokens", 30_000, 10_000, 40.0), MINUTE_S),
        # Limits in tokens are by the minute, even if the reset is slow.
        (Quota("input_tokens", 50_000, 49_000, 3600.0), MINUTE_S),
        # A window that ends as a whole: nothing comes back so slowly.
        (Quota("requests", 4000, 3999, 45.0), MINUTE_S),
        # A reported period is used.
        (Quota("requests", 4000, 3999, 22.0, 60), MINUTE_S),
        (Quota("requests", 60, 60, 0.0), MINUTE_S),
        (Quota("requests", 60, 40, None), MINUTE_S),
        # A past reset gives no period.
        (Quota("requests", 60, 40, 0.0), MINUTE_S),
    ],
)
def test_the_period_follows_from_the_reset(quota: Quota, period_s: int) -> None:
    """The time in which the used part comes back shows whether it is a minute or a day."""
    assert period_s_of(quota) == period_s


def test_openais_own_example_is_a_day() -> None:
    """200 requests a day, one of them used, back in 7 min 12 s."""
    (quota,) = quotas(
        {
            "x-ratelimit-limit-requests": "200",
            "x-ratelimit-remaining-requests": "199",
            "x-ratelimit-reset-requests": "7m12s",
        }
    )
    assert period_s_of(quota) == DAY_S
