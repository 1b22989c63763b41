"""A quota as a provider's headers tell it: three texts, none of which is to be trusted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from chatapp.providers import Quota, QuotaUnit

FIGURE: Final = re.compile(r"[0-9]{1,13}")
# No provider gives so much; what is larger is no quota.
FIGURE_MAX: Final = 10**12
# Quotas are of a minute or a day. What takes longer is another thing, such as a Unix time.
RESET_MAX_S: Final = 31 * 86_400


def quota(
    unit: QuotaUnit,
    headers: Mapping[str, str],
    name: str,
    *,
    reset_s: Callable[[str], float | None],
    period_s: int | None = None,
) -> Quota | None:
    """The quota under these names; None where the headers tell none that can be used.

    ``name`` is the headers' with {} where `limit`, `remaining` and `reset` stand in it.
    ``reset_s`` reads a reset: seconds from now, or None. ``period_s`` is what the provider counts
    it by, where that is known.
    """
    limit = _figure(headers.get(name.format("limit"), ""))
    remaining = _figure(headers.get(name.format("remaining"), ""))
    if not limit or remaining is None:  # a limit of 0, or below it, is how Azure says “unknown”
        return None
    after_s = reset_s(headers.get(name.format("reset"), ""))
    if after_s is not None and after_s > RESET_MAX_S:
        after_s = None
    # Providers round: more may be left than there was.
    return Quota(unit, limit, min(remaining, limit), after_s, period_s)


def _figure(text: str) -> int | None:
    if not FIGURE.fullmatch(text.strip()):
        return None
    figure = int(text)
    return figure if figure <= FIGURE_MAX else None
