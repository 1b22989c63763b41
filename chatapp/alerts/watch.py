"""What raises alerts: budgets that near their ends, and users who spend far more than usual.

A decision tells how much of a budget is used, without a round trip, but with what running calls
hold of it, and a hold can be many times the real cost. So a decision only says whether a closer
look is worthwhile. What is compared with a threshold, and quoted, is what the ledger has settled in
the budget's window, once the call is written there, and no more than the limit itself has counted:
the ledger also has what was spent before a reset, or outside the budget's endpoints.

A request only notes its decision; everything else happens in a thread of each process.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cachetools import LRUCache
from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts import EVERYONE, TEAM
from chatapp.alerts import table
from chatapp.alerts.alert import Alert, Type, subject, whose
from chatapp.alerts.webhook import Deliveries, Webhook
from chatapp.background import BackgroundSender, Patience
from chatapp.database.connection import Database
from chatapp.ledger.call import Call
from chatapp.ledger.forecast import Budget
from chatapp.ledger.reports import UNFINISHED, Reports, midnight
from chatapp.per_process import PerProcess
from chatapp.upstreams.keys import RefusedKey

log = logging.getLogger(__name__)

#: Calls of this time are looked at together, so that a budget costs one query in it at most.
LINGER_S: Final = 5.0
#: A user's spending of today is summed this often, or when the calls of this process reach the bar.
TODAY_EVERY_S: Final = 60.0
#: A process forecasts a budget this often, and raises what is at least so sure.
FORECAST_EVERY_S: Final = 3600.0
SURE: Final = 0.8
#: A usual day: the average of the days with spending, of the last 14, if there are 3 of them.
USUAL_DAYS: Final = 14
LEAST_DAYS: Final = 3
#: A budget that refuses calls is used up, although the rest would pay a smaller one.
USED_UP_PERCENT: Final = 90
#: Identities that are remembered, and decisions and identities that wait.
MOST_IDENTITIES: Final = 10_000
MOST_WAITING: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """``at`` are the thresholds of budgets in percent, in order; empty: none. A user is unusual who
    has spent ``times`` as much as on a usual day, and ``least_micro_usd``; 0 times: none is."""

    at: tuple[int, ...]
    times: float
    least_micro_usd: int


@dataclass(slots=True, kw_only=True)
class Standing:
    """How a budget stood at the latest decision of this process.

    ``used`` includes what running calls hold, and grows by what calls have cost since. ``count``
    asks the limit for it, without a charge: None while that cannot be read. ``window`` tells the
    windows of a budget apart. ``refuses``: it denied that call. ``warn_at`` is a threshold of its
    own, 0 without one. ``has_forecast``: it follows the calendar and counts all calls of a user or
    a team. ``raised`` is the highest threshold that was raised, as far as this process knows.
    ``forecast_due_at`` is when to look ahead again, by the process's clock.
    """

    identity: str
    user: str | None
    name: str
    amount: int
    used: int
    count: Callable[[], int | None]
    refuses: bool
    since: datetime
    window: float
    resets_at: datetime | None
    warn_at: int = 0
    has_forecast: bool = False
    raised: int = 0
    forecast_due_at: float = 0.0


@dataclass(slots=True)
class _Today:
    """A user's day by UTC: from what amount on it is unusual, what was spent, when the ledger was
    last asked, what a usual day costs (0: not known), and whether nothing more can be raised."""

    midnight: datetime
    bar: int
    spent: int = 0
    asked_at: float = -math.inf
    usual: int = 0
    is_done: bool = False


#: Reads the budgets of a decision.
Reading = Callable[[], Iterable[Standing]]


class Alerts(PerProcess["Watch"]):
    """The alerts of an application: each process has a thread that watches."""

    def __init__(
        self, database: Database, reports: Reports, rules: Rules, *, webhook: Webhook | None = None
    ) -> None:
        super().__init__(lambda: Watch(database, reports, rules, webhook), close=Watch.close)
        self.webhook, self.rules = webhook, rules


class Watch:
    """The thread of one process, and what it knows. No caller waits for it but that of `flush`."""

    def __init__(
        self, database: Database, reports: Reports, rules: Rules, webhook: Webhook | None
    ) -> None:
        self._database, self._reports = database, reports
        self._rules = rules
        self._deliveries = webhook and Deliveries(webhook)
        self._lock = threading.Lock()
        self._readings: dict[tuple[str, ...], Reading] = {}
        # By upstream, key and model: many calls may be refused at once.
        self._refused_keys: dict[tuple[str, str, str], RefusedKey] = {}
        # Only for the thread: budgets by identity and name, and the days of users.
        self._budgets: LRUCache[str, dict[str, Standing]] = LRUCache(MOST_IDENTITIES)
        self._today: LRUCache[str, _Today] = LRUCache(MOST_IDENTITIES)
        # Costs by identity. One that waits for a database that is down, or is lost, is no loss: the
        # next call of the identity makes the same sums.
        self._costs: BackgroundSender[str, int] = BackgroundSender(
            "alerts",
            self._look,
            merge=int.__add__,
            lose=lambda _identity, _cost: None,
            batch=MOST_WAITING,
            most=MOST_WAITING,
            linger_s=LINGER_S,
            patience=Patience(first_s=LINGER_S, longest_s=60.0),
        )

    def note_decision(self, buckets: tuple[str, ...], read: Reading, *, refused: bool) -> None:
        """A request was decided; ``buckets`` name its budgets."""
        with self._lock:
            is_full = len(self._readings) >= MOST_WAITING and buckets not in self._readings
            if not is_full:
                self._readings.pop(buckets, None)  # the last one is read last
                self._readings[buckets] = read
        if refused or is_full:  # otherwise the call will have it read
            self._costs.put("", 0)

    def note_calls(self, calls: Sequence[Call]) -> None:
        costs: dict[str, int] = {}
        for call in calls:
            if call.status != UNFINISHED and call.cost_micro_usd:
                team = call.team and f"{TEAM}{call.team}"
                for identity in filter(None, (call.user, call.key_id, team, EVERYONE)):
                    costs[identity] = costs.get(identity, 0) + call.cost_micro_usd
        for identity, cost in costs.items():
            self._costs.put(identity, cost)

    def note_refused_key(self, refused: RefusedKey) -> None:
        with self._lock:
            self._refused_keys[refused.upstream, refused.key, refused.model] = refused
        self._costs.put("", 0)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Look, and send, at once; returns whether all that waits in this process is sent."""
        looked = self._costs.flush(timeout_s)
        return looked and (not self._deliveries or self._deliveries.flush(timeout_s))

    def close(self) -> None:
        self._costs.close()
        if self._deliveries:
            self._deliveries.close()

    def _look(self, costs: Mapping[str, int]) -> bool:
        """Raise what is due; False if the database is unavailable."""
        refused = self._read_decisions()
        try:
            self._raise_refused_keys()
            for identity, cost in {**dict.fromkeys(refused, 0), **costs}.items():
                for budget in self._budgets.get(identity, {}).values():
                    budget.used += cost
                    self._look_at_budget(budget)
                    if budget.has_forecast and cost:
                        self._look_ahead(budget)
                if cost and self._rules.times and subject(identity)[0] == "user":
                    self._look_at_user(identity, cost)
        except (SQLAlchemyError, OSError) as error:
            log.warning("Spending alerts wait for the database: %s", error)
            for identity in refused:
                self._costs.put(identity, 0)
            return False
        return True

    def _read_decisions(self) -> set[str]:
        """Read what was decided since; returns the identities whose budgets refused a call."""
        with self._lock:
            readings, self._readings = self._readings, {}
        refused = set()
        for read in readings.values():
            for new in read():
                budgets = self._budgets.setdefault(new.identity, {})
                old = budgets.get(new.name)
                if old and (old.window, old.amount) == (new.window, new.amount):
                    new.raised, new.forecast_due_at = old.raised, old.forecast_due_at
                budgets[new.name] = new
                if new.refuses:
                    refused.add(new.identity)
        return refused

    def _raise_refused_keys(self) -> None:
        """Raise which keys providers refuse: once until they accept them, or a day if unknown."""
        for place, refused in list(self._refused_keys.items()):
            self.raise_alert(
                Alert(
                    type="key.exhausted" if refused.model else "key.capped",
                    identity=f"{refused.upstream}/{refused.key}",
                    name=f"quota of {refused.model}" if refused.model else "spending cap",
                    spent=0,
                    amount=0,
                    since=midnight() if refused.ends_at is None else datetime.now(UTC),
                    resets_at=refused.ends_at,
                )
            )
            del self._refused_keys[place]

    # -- budgets -------------------------------------------------------------------------------

    def _look_at_budget(self, budget: Standing) -> None:
        """Raise the highest threshold that the settled spending has reached."""
        now, at = datetime.now(UTC), sorted({*self._rules.at, budget.warn_at} - {0})
        bar = next((percent for percent in at if percent > budget.raised), None)
        if bar is None or (budget.resets_at is not None and budget.resets_at <= now):
            return
        may_reach = budget.refuses or budget.used * 100 >= bar * budget.amount
        if not may_reach or budget.amount <= 0:
            return
        spent = self._spent(budget)
        if spent * 100 >= bar * budget.amount or budget.refuses:
            # Only now: a call near a threshold is no reason to ask the storage.
            counted = budget.count()
            if counted is not None:
                budget.used, spent = counted, min(spent, counted)
        is_used_up = budget.refuses and spent * 100 >= USED_UP_PERCENT * budget.amount
        passed = at if is_used_up else [p for p in at if spent * 100 >= p * budget.amount]
        reached = max(passed, default=0)
        if reached <= budget.raised:
            return
        facts = {"threshold": reached, "refuses": budget.refuses}
        self._raise_budget("budget.reached", budget, spent=spent, **facts)
        budget.raised = reached

    def _look_ahead(self, budget: Standing) -> None:
        """Raise that the budget will be used up before its window ends, if that is sure enough."""
        now_s = time.monotonic()
        if not self._rules.at or now_s < budget.forecast_due_at or budget.refuses:
            return
        budget.forecast_due_at = now_s + FORECAST_EVERY_S
        counted = budget.count()
        if counted is None or budget.resets_at is None:
            return
        window = Budget(budget.amount, counted, budget.since, budget.resets_at)
        forecast = self._reports.forecast(window, **whose(budget.identity))
        if forecast is None or forecast.used_up_at is None or forecast.sure < SURE:
            return
        self._raise_budget("budget.forecast", budget, spent=forecast.spent, forecast=forecast)
        budget.forecast_due_at = math.inf

    def _raise_budget(self, kind: Type, budget: Standing, **facts: Any) -> None:
        alert = Alert(
            type=kind,
            identity=budget.identity,
            user=budget.user if subject(budget.identity)[0] == "key" else None,
            name=budget.name,
            amount=budget.amount,
            since=budget.since,
            resets_at=budget.resets_at,
            **facts,
        )
        self.raise_alert(alert)

    def _spent(self, budget: Standing) -> int:
        """Return what the ledger has settled in the budget's window."""
        kind, name = subject(budget.identity)
        return self._reports.settled_micro_usd(
            budget.identity if kind == "user" else None,
            budget.since,
            team=name if kind == "team" else None,
            key=name if kind == "key" else None,
        )

    # -- unusual usage -------------------------------------------------------------------------

    def _look_at_user(self, user: str, cost: int) -> None:
        """Raise that the user has spent far more than usual today."""
        began = midnight()
        today = self._today.get(user)
        if today is None or today.midnight != began:
            today = self._today[user] = _Today(began, self._rules.least_micro_usd)
        today.spent += cost
        now = time.monotonic()
        is_due = today.spent >= today.bar or now - today.asked_at >= TODAY_EVERY_S
        if today.is_done or not is_due:
            return
        today.asked_at, today.spent = now, self._reports.settled_micro_usd(user, began)
        if today.spent >= today.bar and not today.usual:
            today.usual = self._usual(user, began)
            today.is_done = not today.usual
            today.bar = max(today.bar, int(today.usual * self._rules.times))
        if today.spent < today.bar or today.is_done:
            return
        self.raise_alert(
            Alert(
                type="usage.unusual",
                identity=user,
                spent=today.spent,
                amount=today.usual,
                since=began,
            )
        )
        today.is_done = True

    def _usual(self, user: str, began: datetime) -> int:
        """Return what the user spends on a day with spending; 0 without a history."""
        days = self._reports.totals(user=user, since=began - timedelta(days=USUAL_DAYS))
        today = f"{began:%Y-%m-%d}"
        costs = [day.cost_micro_usd for day in days if day.cost_micro_usd and day.day != today]
        return sum(costs) // len(costs) if len(costs) >= LEAST_DAYS else 0

    def raise_alert(self, alert: Alert) -> None:
        if table.remember(self._database, alert):
            log.warning("%s", alert.sentence)
            if self._deliveries:
                self._deliveries.put(alert)
