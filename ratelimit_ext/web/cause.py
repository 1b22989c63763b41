"""What a denial comes from: an allowance of the caller's, or a guard, and why it is closed."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.strategies.guards import block

#: Why somebody is blocked. ``blocked``: an operator said so; ``abnormal-usage``: the caller does
#: what he never does; ``overloaded``: what stands behind has too much to do; ``closed``: it is
#: switched off.
BlockReason: TypeAlias = Literal["blocked", "overloaded", "closed", "abnormal-usage"]
#: ``unavailable``: what a limit allows is unknown.
Cause: TypeAlias = BlockReason | Literal["limit", "unavailable", "storage-full"]

REASONS: Final[tuple[BlockReason, ...]] = get_args(BlockReason)
_CODES: Final[dict[BlockReason, int]] = {
    "blocked": block.BLOCKED,
    "overloaded": block.OVERLOADED,
    "closed": block.CLOSED,
    "abnormal-usage": block.ABNORMAL_USAGE,
}
_NAMES: Final = {code: name for name, code in _CODES.items()}

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
    strategy = denial.charge.limit.strategy
    if strategy == "block":
        return _NAMES[denial.receipt]
    return {"reported": "overloaded", "surge": "abnormal-usage"}.get(strategy, "limit")  # type: ignore[return-value]


def lacks_room(decision: Decision) -> bool:
    """Whether a request was denied for nothing but what stands behind it having too much to do."""
    causes = {cause_of(denial) for denial in decision.denials}
    return not decision.admitted and causes == {"overloaded"}


def manner(reason: BlockReason, *, ramped: bool, grows: bool) -> int:
    """A block's manner as its strategy knows it; ``ValueError`` for a reason that is none."""
    if reason not in _CODES:
        allowed = ", ".join(map(repr, REASONS))
        raise ValueError(f"the reason of a block is {reason!r}; allowed: {allowed}")
    return block.how(_CODES[reason], ramped=ramped, grows=grows)
