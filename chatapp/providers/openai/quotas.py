"""What OpenAI's headers say of our quotas there.

https://platform.openai.com/docs/guides/rate-limits, under “Rate limits in headers”.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from chatapp.providers import Quota
from chatapp.quota_headers import quota

SECONDS_PER: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
STEP: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(h|ms|m|s)")
DURATION: Final = re.compile(rf"(?:{STEP.pattern}){{1,4}}")


def quotas(headers: Mapping[str, str]) -> tuple[Quota, ...]:
    """The quotas that an answer's headers tell, each at most once; none for what is odd in them."""
    requests = quota("requests", headers, "x-ratelimit-{}-requests", reset_s=_duration_s)
    # The organisation's tokens and the project's: a call takes from both.
    tokens = [
        told
        for name in ("x-ratelimit-{}-tokens", "x-ratelimit-{}-project-tokens")
        if (told := quota("tokens", headers, name, reset_s=_duration_s))
    ]
    return tuple(told for told in (requests, _both(tokens)) if told)


def _both(tokens: Sequence[Quota]) -> Quota | None:
    """What both leave, as one quota whose amount is the same whichever has less left: were it the
    one and the other by turns, what is used of the larger would be taken for used of the smaller.
    """
    if not tokens:
        return None
    smaller = min(tokens, key=lambda told: told.limit)
    return replace(smaller, remaining=min(smaller.limit, *(told.remaining for told in tokens)))


def _duration_s(text: str) -> float | None:
    """The seconds in `12ms`, `6m0s` or `1h2m3s`; a number alone is seconds, as others send it."""
    text = text.strip()
    for duration in (text, f"{text}s"):
        if DURATION.fullmatch(duration):
            steps = STEP.findall(duration)
            return sum(float(count) * SECONDS_PER[unit] for count, unit in steps)
    return None
