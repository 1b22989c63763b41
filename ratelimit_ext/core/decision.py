"""The answer to a request: a verdict per charge, and whether all of them pass."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias
from zlib import crc32

from ratelimit_ext.core.charge import Charge

#: How a decision was made while the storage was down: by the ``on_failure`` of its limits. If they
#: differ, the strictest. ``""``: by the storage.
Degradation: TypeAlias = Literal["", "open", "local", "closed"]

#: What remains of a limit, how long until it is full again, and until there is one unit more.
Left: TypeAlias = tuple[int, int, int]

#: A block for longer than a year has no known end.
LONGEST_BLOCK_MS: Final = 366 * 86_400 * 1000
#: The wait of a refusal without a known end.
ENDLESS_MS: Final = 2**63


class Share(NamedTuple):
    """What a member of a group has of its budget, in units: what they have used in this window, and
    the equal part of each of ``members``. ``ahead`` is by how much the group has spent more than
    its pace allows (negative: less), and ``until_us`` how long until that is no more."""

    used: int
    part: int
    members: int
    ahead: int
    until_us: int


class Verdict(NamedTuple):
    """The answer to one charge. A frozen dataclass would take three times as long to make.

    ``remaining`` is what is left in units: after this charge if it was taken. ``retry_after_us`` is
    how long the same charge has to wait until it passes (0: it passes now; ``None``: never, as its
    cost is above the capacity). ``reset_after_us`` is how long until the limit is full again
    without other calls. ``receipt`` tells the strategy which window
    was charged, so that a correction reaches the same; ``None``: nothing was charged that could be
    corrected. ``reason`` says why it denies, if it does: ``limit``, ``budget-in-use`` or a guard's.
    ``more_after_us`` is how long until there is one unit more; ``None``: with the reset. ``share``
    is what a member of a group has of its budget, if it is about that. ``others`` is how many other
    calls held something, if the charge has a claim.
    """

    charge: Charge
    allowed: bool
    remaining: int
    retry_after_us: int | None
    reset_after_us: int
    receipt: int | None
    reason: str = "limit"
    more_after_us: int | None = None
    share: Share | None = None
    others: int | None = None

    @property
    def retry_after_ms(self) -> int | None:
        """The wait in milliseconds, rounded up."""
        return None if self.retry_after_us is None else -(-self.retry_after_us // 1000)

    @property
    def left(self) -> Left:
        """What most answers show of it."""
        reset_us, more_us = self.reset_after_us, self.more_after_us
        return self.remaining, reset_us, reset_us if more_us is None else more_us

    @property
    def enforced(self) -> bool:
        """Whether this verdict can deny a request: a shadow never does."""
        return self.charge.limit.mode == "enforce"


class Decision:
    """All verdicts of a request at the instant ``now_us`` of the deciding clock."""

    __slots__ = ("_verdicts", "admitted", "now_us")

    degraded: Degradation = ""
    #: Whether a worker has repeated it from memory.
    cached: bool = False

    def __init__(
        self, *, admitted: bool, now_us: int, verdicts: tuple[Verdict, ...] | None = None
    ) -> None:
        self.admitted = admitted
        self.now_us = now_us
        self._verdicts = verdicts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision):
            return NotImplemented
        mine, others = (self.admitted, self.now_us), (other.admitted, other.now_us)
        return mine == others and self.verdicts == other.verdicts

    def __hash__(self) -> int:
        return hash((self.admitted, self.now_us))

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One for each charge. Most admitted requests never need them."""
        if self._verdicts is None:
            self._verdicts = self._read()
        return self._verdicts

    def _read(self) -> tuple[Verdict, ...]:
        """Return the verdicts, for a subclass that makes them when they are first read."""
        raise NotImplementedError

    def left(self) -> list[Left]:
        """Return what remains of each limit, as in the verdicts of enforced limits."""
        return [verdict.left for verdict in self.verdicts]

    def part(self, place: int) -> tuple[Decision, int]:
        """Return the decision of one server that has this verdict, and its place there."""
        return self, place

    def overdrawn(self, place: int) -> int | None:
        """Return by how many units the bucket of a verdict is overdrawn; ``None`` if unknown."""
        return None

    def keys(self) -> list[str]:
        """Return the buckets, in the order of the verdicts."""
        return [verdict.charge.key for verdict in self.verdicts]

    @property
    def denials(self) -> tuple[Verdict, ...]:
        """The enforced verdicts that denied the request; empty when it was admitted."""
        return tuple(v for v in self.verdicts if not v.allowed and v.enforced)

    @property
    def retry_after_ms(self) -> int | None:
        """The longest wait among the denials; ``None`` if one of them can never pass."""
        waits = [denial.retry_after_ms for denial in self.denials]
        finite = [wait for wait in waits if wait is not None]
        return None if len(finite) < len(waits) else max(finite, default=0)


#: The most that is added to a wait.
MOST_SPREAD_US: Final = 5_000_000


def spread(verdict: Verdict, caller: str) -> Verdict:
    """Return a denial with a little more of a wait, by the caller and the window: the same each
    time, and another for each caller, so that not all of them come back at once."""
    wait, percent = verdict.retry_after_us, verdict.charge.limit.spread
    if not wait or not percent or verdict.allowed:
        return verdict
    chance = crc32(f"{verdict.receipt}:{caller}".encode("utf-8", "surrogatepass"))
    later = min(wait * percent // 100, MOST_SPREAD_US) * chance >> 32
    wait += later
    return verdict._replace(retry_after_us=wait, reset_after_us=max(wait, verdict.reset_after_us))


class SpreadDecision(Decision):
    """A denied decision with the waits of one caller."""

    __slots__ = ("cached", "degraded")

    def __init__(self, decision: Decision, caller: str) -> None:
        verdicts = tuple([spread(verdict, caller) for verdict in decision.verdicts])
        super().__init__(admitted=False, now_us=decision.now_us, verdicts=verdicts)
        self.cached, self.degraded = decision.cached, decision.degraded


def is_endless(denial: Verdict) -> bool:
    """Return whether a denial has no known end, as that of a block for longer than a year."""
    return denial.reason != "limit" and (denial.retry_after_ms or 0) > LONGEST_BLOCK_MS


def known_wait_ms(decision: Decision) -> int | None:
    """Return the wait in milliseconds; ``None`` if it has no known end."""
    return None if any(map(is_endless, decision.denials)) else decision.retry_after_ms
