"""What happened: a decision, a settlement, or a change of the storage's state.

Listeners are called in the thread in which it happened, before the request goes on: they must not
wait. Without listeners no event is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision, Degradation, Verdict
from ratelimit_ext.core.limit import Limit

#: Of a settlement: ``queued`` until the storage is back.
SettlementOutcome: TypeAlias = Literal["sent", "queued", "lost"]
#: Of a request that may wait.
WaitOutcome: TypeAlias = Literal["started", "left", "late", "denied", "refused"]

#: A listener that fails is logged at most this often, in seconds.
LOG_EVERY_S: Final = 60.0

_logger = logging.getLogger("ratelimit_ext")


class ChargedLimit(Protocol):
    """A limit as it is bound to a route. ``written`` is its string; ``tried`` the amount that is
    evaluated beside it in shadow, if this is its candidate, else empty; ``keywords`` are the
    application's own."""

    @property
    def written(self) -> str: ...
    @property
    def tried(self) -> str: ...
    @property
    def keywords(self) -> tuple[tuple[str, Any], ...]: ...


class DecisionEvent(NamedTuple):
    """The limits of a request were decided.

    ``decision`` makes its verdicts when they are first read. ``reason`` is ``None`` if the request
    is admitted, else the cause of the refusal: ``limit``, ``too-large``, ``storage-unavailable``
    (docs/extension/events.md has all). ``wait_ms`` is the wait of a refusal in milliseconds, or
    ``None`` without an end. ``again``: it was another attempt of an admitted request. ``cached``:
    the denial came from the worker's memory. ``seconds`` is the time of the decision, with the
    application's own functions.
    """

    decision: Decision
    endpoint: str
    reason: str | None
    wait_ms: int | None
    again: bool
    cached: bool
    seconds: float
    #: For each charge its limit as it is bound to the route, the identity, and the charge.
    charges: Sequence[tuple[ChargedLimit, str, Charge]]

    @property
    def admitted(self) -> bool:
        return self.reason is None

    @property
    def degraded(self) -> Degradation:
        """How it was decided while the storage was down; empty if the storage decided."""
        return self.decision.degraded

    @property
    def denials(self) -> tuple[Verdict, ...]:
        return self.decision.denials

    @property
    def shadow_denials(self) -> tuple[Verdict, ...]:
        """The verdicts that would have denied it if their limits were enforced."""
        return tuple(v for v in self.decision.verdicts if not (v.allowed or v.enforced))

    @property
    def identities(self) -> Mapping[str, str]:
        """What each bucket counts, by its name, ``verdict.charge.key``: the identity as its
        function returned it, which may be secret."""
        return {charge.key: identity for _, identity, charge in self.charges}


class SettlementEvent(NamedTuple):
    """Charges were settled, refunded, released or renewed, or a guard was changed."""

    changes: Sequence[Change]
    outcome: SettlementOutcome
    seconds: float


class StorageEvent(NamedTuple):
    """The storage went down, for this ``reason``, or is back after ``down_s`` seconds."""

    is_down: bool
    reason: str
    down_s: float


class WaitEvent(NamedTuple):
    """A request was denied by a limit with ``wait``: it has ``started`` after so many ``seconds``,
    its client has ``left``, it was too ``late`` for a slot or lost its place to another, another
    limit has ``denied`` it when its turn had come, or it was ``refused`` at once."""

    limit: Limit
    outcome: WaitOutcome
    seconds: float


Event: TypeAlias = DecisionEvent | SettlementEvent | StorageEvent | WaitEvent
Listener: TypeAlias = Callable[[Event], object]


class Events:
    """The listeners of one extension. Ask ``listeners`` before you make an event."""

    __slots__ = ("_logged_at", "listeners")

    def __init__(self) -> None:
        self.listeners: tuple[Listener, ...] = ()
        self._logged_at: dict[Listener, float] = {}

    def add(self, listener: Listener) -> None:
        self.listeners = (*self.listeners, listener)

    def remove(self, listener: Listener) -> None:
        self.listeners = tuple(other for other in self.listeners if other != listener)

    def emit(self, event: Event) -> None:
        """Call the listeners. Never raises: the failure of a listener is logged."""
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                now_s = time.monotonic()
                if now_s - self._logged_at.get(listener, -LOG_EVERY_S) >= LOG_EVERY_S:
                    self._logged_at[listener] = now_s
                    _logger.exception("A listener failed: %r", listener)
