"""What a denial comes from: an allowance of the caller's, or a guard, and why it is closed."""

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit

#: The reason of a block or another guard; ``limit``; ``unavailable``: what a limit allows is
#: unknown; ``storage-full``.
Cause: TypeAlias = str

#: Of several that deny, the first of these is told. What is no doing of the caller's comes last: a
#: caller who is over his own limit had better know that.
ORDER: Final[tuple[Cause, ...]] = ("blocked", "closed", "abnormal-usage", "limit", "overloaded")

#: A block that lasts longer than a year has no end that is worth telling.
ENDLESS_MS: Final = 366 * 86_400 * 1000

SENTENCES: Final[dict[Cause, str]] = {
    "blocked": "This caller is blocked; ask the operator.",
    "abnormal-usage": "This caller uses far more than it usually does, and is stopped for now.",
    "overloaded": "What this request needs has too much to do at the moment.",
    "closed": "What this request needs is switched off at the moment.",
    "storage-full": "The server has no memory to count a new caller.",
}

#: How long a caller waits whom a full storage does not know, in milliseconds.
STORAGE_FULL_WAIT_MS: Final = 30_000


def cause_of(denial: Verdict) -> Cause:
    """What a verdict that denied comes from."""
    return denial.reason


def precedence(cause: Cause) -> int:
    """The place of a cause among several; that of a guard without a place is just before limits."""
    return ORDER.index(cause if cause in ORDER else "abnormal-usage")


def sentence_of(cause: Cause, limit: Limit) -> str:
    return SENTENCES.get(cause) or limit.traits.denial_sentence


def lacks_room(decision: Decision) -> bool:
    """Whether a request was denied for nothing but what stands behind it having too much to do."""
    causes = {cause_of(denial) for denial in decision.denials}
    return not decision.admitted and causes == {"overloaded"}
