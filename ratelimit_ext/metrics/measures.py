"""What is measured, and how it follows from events; an exporter only keeps the figures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from ratelimit_ext.core.decision import Share, Verdict
from ratelimit_ext.core.events import DecisionEvent, Event, SettlementEvent, StorageEvent, WaitEvent
from ratelimit_ext.core.money import MICRO

#: A limit is near its end when less than this share of it is left.
NEAR: Final = 0.2
SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
#: Until the turn of a request.
WAITS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
#: Fairness is measured of at most so many groups, and members of each group.
MOST_GROUPS: Final = 256
MOST_MEMBERS: Final = 4096
#: Of real costs to their estimates.
RATIOS: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 4.0, 10.0)


class Measure(NamedTuple):
    """A figure: name without a prefix, meaning, labels. To a sum, each process adds its part."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    kind: Literal["counter", "gauge", "sum", "histogram"] = "counter"
    buckets: tuple[float, ...] = ()


REQUESTS: Final = Measure(
    "requests", "Decided requests, by the reason of the refusal (or admitted)", ("outcome",)
)
DECISIONS: Final = Measure(
    "decisions",
    "Decisions of single limits: allowed, denied, kept (denied to a lower class), shadow (would "
    "have denied), degraded",
    ("limit", "strategy", "outcome"),
)
NEAR_LIMIT: Final = Measure(
    "near_limit", "Allowed charges that left less than 20 % of a limit", ("limit",)
)
DECISION_SECONDS: Final = Measure(
    "decision_seconds", "Time that the decision of a request took", (), "histogram", SECONDS
)
FAIRNESS: Final = Measure(
    "fairness",
    "Jain's index of what the members of a group have used of their budget: 1 if all have the same",
    ("limit", "identity"),
    "gauge",
)
QUOTA_REMAINING: Final = Measure(
    "quota_remaining", "What is left of a quota kept elsewhere", ("limit", "identity"), "gauge"
)
SETTLEMENTS: Final = Measure(
    "settlements",
    "Settled, refunded, released or renewed charges: sent, queued, lost",
    ("outcome",),
)
UNITS_LOST: Final = Measure(
    "units_lost", "Costs, refunds and slots that were lost (usd in dollars)", ("unit",)
)
ESTIMATE_ERROR: Final = Measure(
    "estimate_error", "Real cost divided by its estimate", ("unit",), "histogram", RATIOS
)
WAIT_SECONDS: Final = Measure(
    "wait_seconds",
    "Time that requests waited for their turn: started, left (the client), late (no slot), denied "
    "(by another limit), refused (at once)",
    ("limit", "outcome"),
    "histogram",
    WAITS,
)
STORAGE_UP: Final = Measure("storage_up", "1 while the storage decides, else 0", (), "gauge")
OUTAGES: Final = Measure("storage_outages", "Times that the storage went down")
OUTAGE_SECONDS: Final = Measure("storage_down_seconds", "Time that the storage was down")

MEASURES: Final = (
    *(REQUESTS, DECISIONS, NEAR_LIMIT, DECISION_SECONDS, FAIRNESS, QUOTA_REMAINING),
    *(SETTLEMENTS, UNITS_LOST, ESTIMATE_ERROR, WAIT_SECONDS, STORAGE_UP, OUTAGES, OUTAGE_SECONDS),
)


class Exporter(Protocol):
    """Records figures: counters and sums grow by them, histograms count them, gauges are set.
    ``labels`` are in the order of the measure's."""

    def record(self, measure: Measure, labels: Sequence[str], figure: float = 1) -> None: ...


class _Group:
    """What this process knows of the members of a group in one window."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._sum = self._squares = 0

    def index_with(self, member: str, used: int) -> float:
        """Return Jain's index, once a member has used so much. The sums are kept, so the number of
        members does not matter. Unknown members beyond the first are left out."""
        before = self._used.get(member, 0)
        if before or len(self._used) < MOST_MEMBERS:
            self._used[member] = used
            self._sum += used - before
            self._squares += used**2 - before**2
        return self._sum**2 / (len(self._used) * self._squares) if self._squares else 1.0


class Measures:
    """A listener that turns events into figures. ``identity_label`` returns an identity's label."""

    def __init__(self, exporter: Exporter, identity_label: Callable[[str], str] = str) -> None:
        self._exporter = exporter
        self._identity_label = identity_label
        #: By the bucket of a group, which is one for each window.
        self._groups: OrderedDict[tuple[str, int | None], _Group] = OrderedDict()
        exporter.record(STORAGE_UP, (), 1)

    def __call__(self, event: Event) -> None:
        match event:
            case DecisionEvent():
                self._decision(event)
            case SettlementEvent():
                self._settlement(event)
            case WaitEvent():
                labels = event.limit.label, event.outcome
                self._exporter.record(WAIT_SECONDS, labels, event.seconds)
            case StorageEvent():
                self._storage(event)

    def _decision(self, event: DecisionEvent) -> None:
        exporter = self._exporter
        exporter.record(REQUESTS, (event.reason or "admitted",))
        exporter.record(DECISION_SECONDS, (), event.seconds)
        before: Verdict | None = None
        for verdict in event.decision.verdicts:
            limit = verdict.charge.limit
            outcome = "degraded" if event.degraded else _outcome(verdict)
            exporter.record(DECISIONS, (limit.label, limit.strategy, outcome))
            if limit.traits.external:
                identity = self._identity_label(event.identities.get(verdict.charge.key, ""))
                exporter.record(QUOTA_REMAINING, (limit.label, identity), verdict.remaining)
            elif verdict.share is not None and event.admitted:
                self._share(event, before, verdict, verdict.share)
            elif verdict.allowed and limit.visible and verdict.remaining < NEAR * limit.capacity:
                exporter.record(NEAR_LIMIT, (limit.label,))
            before = verdict

    def _share(
        self, event: DecisionEvent, group: Verdict | None, verdict: Verdict, share: Share
    ) -> None:
        """Note what a member has used of a group's budget, whose verdict comes just before."""
        assert group is not None
        charge, key = group.charge, (group.charge.key, group.receipt)
        members = self._groups.get(key)
        if members is None:
            if len(self._groups) >= MOST_GROUPS:
                self._groups.popitem(last=False)
            members = self._groups[key] = _Group()
        identity = self._identity_label(event.identities.get(charge.key, ""))
        index = members.index_with(verdict.charge.key, share.used)
        self._exporter.record(FAIRNESS, (charge.limit.label, identity), index)

    def _settlement(self, event: SettlementEvent) -> None:
        exporter = self._exporter
        exporter.record(SETTLEMENTS, (event.outcome,), len(event.changes))
        for change in event.changes:
            limit, numbers, lost = change.charge.limit, change.numbers, change.lost_units
            if event.outcome == "lost" and lost:
                shown = lost / (MICRO if limit.unit == "usd" else 1)
                exporter.record(UNITS_LOST, (limit.unit,), shown)
            elif event.outcome != "sent":
                continue  # a queued one has another event later
            elif change.verb == "settle" and limit.unit != "calls" and change.charge.cost:
                error = numbers[1] / (change.charge.expected or 1)
                exporter.record(ESTIMATE_ERROR, (limit.unit,), error)

    def _storage(self, event: StorageEvent) -> None:
        self._exporter.record(STORAGE_UP, (), 0 if event.is_down else 1)
        if event.is_down:
            self._exporter.record(OUTAGES, ())
        else:
            self._exporter.record(OUTAGE_SECONDS, (), event.down_s)


def _outcome(verdict: Verdict) -> str:
    if verdict.allowed:
        return "allowed"
    if not verdict.enforced:
        return "shadow"
    return "kept" if verdict.charge.limit.part.kept_for else "denied"
