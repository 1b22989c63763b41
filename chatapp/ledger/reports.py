"""Totals from the ledger: spending, days, and how good estimates were."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypedDict, Unpack

from cachetools import TTLCache, cachedmethod
from sqlalchemy import ColumnElement, Select, case, func, literal_column, nulls_first, or_, select
from sqlalchemy.exc import SQLAlchemyError

from chatapp.database.connection import Database
from chatapp.ledger.call import Status
from chatapp.ledger.forecast import READ, Budget, Forecast, forecast
from chatapp.ledger.table import CALLS

log = logging.getLogger(__name__)

MICRO: Final = 1_000_000
COST: Final = func.coalesce(func.sum(CALLS.c.cost_micro_usd), 0)
#: Calls, tokens and costs of a report. A credit has a cost and is no call.
SUMS: Final = (
    func.count(func.nullif(CALLS.c.status, "credited")),
    func.coalesce(func.sum(CALLS.c.input_tokens), 0),
    func.coalesce(func.sum(CALLS.c.output_tokens), 0),
    func.sum(CALLS.c.cost_micro_usd),
)
#: Calls without a subject first; PostgreSQL would put them last.
BY_SUBJECT: Final[ColumnElement[Any]] = nulls_first(literal_column("subject"))
#: Answered calls whose usage the provider has reported.
BILLED: Final = (CALLS.c.status == "answered", CALLS.c.estimated.is_(False))
#: When a call began, as texts: 2026-12-02 14, and 2026-12-02.
HOUR, DAY = (
    func.substr(literal_column("CAST(started_at AS VARCHAR)"), 1, length) for length in (13, 10)
)
UNFINISHED: Final[Status] = "unfinished"
CREDITED: Final[Status] = "credited"
#: Statuses of calls that say nothing bad about a provider: it answered, or the request was wrong.
NO_FAILURE: Final[frozenset[Status]] = frozenset(
    {UNFINISHED, "answered", "cut_off", "bad_request", "too_large", "unknown_model"}
)
# How many rows are fetched at once when all calls are read.
PAGE: Final = 1000
#: From how many calls a worker learns at its start.
RECENT_CALLS: Final = 5_000
#: By what calls are summed, besides tags.
SUBJECTS: Final = {
    "user": CALLS.c.user,
    "key": CALLS.c.key_id,
    "team": CALLS.c.team,
    "model": CALLS.c.slug,
}
TAG: Final = "tag:"
OTHERS: Final = "all others"
#: When a call is one of a Selection.
CONDITIONS: Final[Mapping[str, Callable[[Any], ColumnElement[bool]]]] = {
    "user": lambda user: CALLS.c.user == user,
    "users": CALLS.c.user.in_,
    "team": lambda team: CALLS.c.team == team,
    "key": lambda key: CALLS.c.key_id == key,
    "since": lambda since: CALLS.c.started_at >= since,
    "until": lambda until: CALLS.c.started_at < until,
}


class Selection(TypedDict, total=False):
    """The calls of a user, of several, of a team or a key that began ``since`` then and before
    ``until``."""

    user: str | None
    users: Sequence[str] | None
    team: str | None
    key: str | None
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Spending:
    """All calls of one user, key, team or model, or with one value of a tag; ``subject`` is None
    for calls without it."""

    subject: str | None
    calls: int
    input_tokens: int
    output_tokens: int
    cost_micro_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DayTotal(Spending):
    """Those of one day, by UTC."""

    day: str


class Latency(NamedTuple):
    """How many milliseconds answers took to begin: half of them at most the first figure, 95 % at
    most the second."""

    calls: int
    p50_ms: int
    p95_ms: int


def midnight() -> datetime:
    """Return when today began, by UTC."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def week_start() -> datetime:
    """Return when this week began: on Monday, by UTC."""
    today = midnight()
    return today - timedelta(days=today.weekday())


def month_start() -> datetime:
    return midnight().replace(day=1)


class Reports:
    """Queries of the ledger. Errors are SQLAlchemy's, except in `spent_usd` and `forecast`.

    ``lease`` is how long a call may go without a sign of life.
    """

    def __init__(self, database: Database, *, lease: timedelta = timedelta(minutes=2)) -> None:
        self._database, self._lease = database, lease
        # Each GET /usage asks for them: a process reads hours every ten minutes at most.
        self._hours: TTLCache[Any, Mapping[datetime, int]] = TTLCache(100, 600.0)
        self._lock = threading.Lock()

    def spent_usd(self, user: str) -> dict[str, float] | None:
        """Dollars spent today, this week and this month, by UTC; None if the ledger is down."""
        begins = {"today": midnight(), "week": week_start(), "month": month_start()}
        try:
            return {
                f"{name}_usd": self.spent_micro_usd(user, since) / MICRO
                for name, since in begins.items()
            }
        except (SQLAlchemyError, OSError) as error:
            log.error("The ledger cannot be read: %s", error)
            return None

    def spent_micro_usd(self, user: str, since: datetime) -> int:
        """Return the cost of the user's calls since then; unfinished ones as far as is known."""
        return self._sum(_filtered(select(COST), user=user, since=since))

    def settled_micro_usd(
        self, user: str | None, since: datetime, *, team: str | None = None, key: str | None = None
    ) -> int:
        """Return the part of it that limits hold once no call is running; of a user, a team or a
        key, or of all.

        A call whose worker died counts as its estimate, or as far as its stream had come when its
        lease was last renewed: limits are settled to that when the lease ends.
        """
        query = _filtered(select(COST), user=user, team=team, key=key, since=since)
        return self._sum(query.where(self._is_settled()))

    def _is_settled(self) -> ColumnElement[bool]:
        is_over = CALLS.c.started_at < datetime.now(UTC) - self._lease
        return or_(CALLS.c.status != UNFINISHED, CALLS.c.input_tokens.is_not(None), is_over)

    def by_caller(self, since: datetime) -> Sequence[Any]:
        """Return the settled cost by user, key and team, of calls and of credits apart."""
        caller = (CALLS.c.user, CALLS.c.key_id, CALLS.c.team, CALLS.c.status == CREDITED)
        query = _filtered(select(*caller, COST), since=since)
        return self._rows(query.where(self._is_settled()).group_by(*caller))

    def forecast(
        self, budget: Budget, *, user: str | None = None, team: str | None = None
    ) -> Forecast | None:
        """Return what becomes of a budget: see `forecast.py`; None if the ledger cannot be read."""
        try:
            return forecast(self._costs_by_hour(user, team), budget, now=datetime.now(UTC))
        except (SQLAlchemyError, OSError) as error:
            log.error("The ledger cannot be read: %s", error)
            return None

    @cachedmethod(lambda self: self._hours, lock=lambda self: self._lock)
    def _costs_by_hour(self, user: str | None, team: str | None) -> Mapping[datetime, int]:
        """Return the settled cost by the hours of the time that a forecast reads, as of some
        minutes ago. Credits are left out: they say nothing about the pace."""
        since = datetime.now(UTC) - READ
        query = _filtered(select(HOUR, COST), user=user, team=team, since=since)
        query = query.where(self._is_settled(), CALLS.c.status != CREDITED).group_by(HOUR)
        return {
            datetime.strptime(text, "%Y-%m-%d %H").replace(tzinfo=UTC): int(cost)
            for text, cost in self._rows(query)
        }

    def totals(
        self,
        *,
        by: str = "user",
        among: Sequence[str | None] | None = None,
        **calls: Unpack[Selection],
    ) -> Sequence[DayTotal]:
        """Totals by day, the newest first, and by one of SUBJECTS or a tag, ``tag:NAME``; with
        ``among``, all other subjects are OTHERS."""
        day, subject = func.date(CALLS.c.started_at).label("day"), _subject(by)
        if among is not None:
            is_one = or_(subject.in_(among), *[subject.is_(None)] * (None in among))
            subject = case((is_one, subject.element), else_=OTHERS).label("subject")
        query = _filtered(select(day, subject, *SUMS), **calls)
        query = query.group_by("day", "subject").order_by(day.desc(), BY_SUBJECT)
        return [
            DayTotal(name, *map(int, sums), day=str(day)) for day, name, *sums in self._rows(query)
        ]

    def spending(
        self, *, by: str, top: int | None = None, **calls: Unpack[Selection]
    ) -> Sequence[Spending]:
        """Totals by one of SUBJECTS or a tag, the dearest first; the first ``top`` of them."""
        query = _filtered(select(_subject(by), *SUMS), **calls).group_by("subject")
        query = query.order_by(COST.desc(), func.count().desc(), BY_SUBJECT).limit(top)
        return [Spending(name, *map(int, sums)) for name, *sums in self._rows(query)]

    def outcomes(self, *, since: datetime, top: int) -> Sequence[dict[str, Any]]:
        """Return how calls ended, by upstream and model: the ``top`` by failures, then by calls.
        ``how`` they failed, for no fault of their request, begins with the most frequent status."""
        columns = (CALLS.c.provider, CALLS.c.slug, CALLS.c.status)
        query = _filtered(select(*columns, func.count()), since=since).group_by(*columns)
        query = query.where(CALLS.c.status != CREDITED)
        counts: dict[tuple[str, str], dict[Status, int]] = {}
        for provider, slug, status, count in self._rows(query):
            counts.setdefault((provider, slug), {})[status] = int(count)
        outcomes: list[dict[str, Any]] = []
        for (upstream, model), statuses in counts.items():
            failed = sorted(statuses.keys() - NO_FAILURE, key=lambda status: -statuses[status])
            row = {"upstream": upstream, "model": model, "calls": sum(statuses.values())}
            how = {status: statuses[status] for status in failed}
            outcomes.append({**row, "failed": sum(how.values()), "how": how, "statuses": statuses})
        outcomes.sort(key=lambda row: (-row["failed"], -row["calls"], row["model"]))
        return outcomes[:top]

    def latencies(
        self, *columns: ColumnElement[Any], since: datetime, **only: Any
    ) -> dict[tuple[Any, ...], Latency]:
        """Return by the values of these columns how long answers took to begin; ``only`` those with
        these values in their rows."""
        query = select(*columns, CALLS.c.first_byte_ms, func.count())
        query = query.where(CALLS.c.first_byte_ms.is_not(None), CALLS.c.started_at >= since)
        query = query.where(*[CALLS.c[name] == value for name, value in only.items()])
        counts: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        for *values, ms, count in self._rows(query.group_by(*columns, CALLS.c.first_byte_ms)):
            counts.setdefault(tuple(values), []).append((ms, count))
        return {values: _latency(sorted(calls)) for values, calls in counts.items()}

    def estimates(self, *, since: datetime | None) -> Sequence[dict[str, Any]]:
        """Estimates and usages of answered calls by model, by slug; ``calls_over`` used more than
        was estimated. Failures and estimated usages are left out: they say nothing about a model.
        """
        query = select(
            CALLS.c.slug,
            func.count(),
            *_compared(CALLS.c.estimated_input_tokens, CALLS.c.input_tokens),
            *_compared(CALLS.c.estimated_output_tokens, CALLS.c.output_tokens),
        ).where(*BILLED)
        query = _filtered(query, since=since).group_by(CALLS.c.slug).order_by(CALLS.c.slug)
        rows: list[dict[str, Any]] = []
        for slug, *numbers in self._rows(query):
            calls, *sums = map(int, numbers)  # PostgreSQL sums integers to decimals
            rows.append({"slug": slug, "calls": calls})
            for kind, (estimated, used, over) in {"input": sums[:3], "output": sums[3:]}.items():
                named = {"estimated": estimated, "used": used, "calls_over": over}
                shares = {"ratio": used / max(1, estimated), "over": over / calls}
                rows[-1] |= {kind: named, **{f"{kind}_{of}": n for of, n in shares.items()}}
        return rows

    def recent_outputs(self) -> Sequence[tuple[str, int]]:
        """Return slugs and output tokens of the last RECENT_CALLS with a bill, the oldest first."""
        query = select(CALLS.c.slug, CALLS.c.output_tokens).where(*BILLED)
        query = query.order_by(CALLS.c.started_at.desc()).limit(RECENT_CALLS)
        return [(slug, tokens or 0) for slug, tokens in reversed(self._rows(query))]

    def calls(
        self, *, paged: bool = False, **calls: Unpack[Selection]
    ) -> Iterator[Mapping[Any, Any]]:
        """Yield the rows of calls, the oldest first; ``paged``: of one instant by their ids."""
        query = _filtered(select(CALLS), **calls)
        query = query.order_by(CALLS.c.started_at, *([CALLS.c.id] if paged else []))
        with self._database.reading() as connection:
            yield from connection.execution_options(yield_per=PAGE).execute(query).mappings()

    def latest_charged(
        self, users: int, *, since: datetime, until: datetime
    ) -> Sequence[Mapping[Any, Any]]:
        """Of the latest users, as many of them, the latest call in that time that was answered and
        cost something. Users with a credit are left out: their limits count less than that call."""
        query = _filtered(select(CALLS), since=since, until=until)
        credited = select(CALLS.c.user).where(CALLS.c.status == CREDITED)
        query = query.where(CALLS.c.user.not_in(_filtered(credited, since=since)))
        query = query.where(CALLS.c.status == "answered", CALLS.c.cost_micro_usd > 0)
        calls: dict[str, Mapping[Any, Any]] = {}
        with self._database.reading() as connection:
            latest = query.order_by(CALLS.c.started_at.desc()).limit(PAGE)
            for row in connection.execute(latest).mappings():
                calls.setdefault(row["user"], row)
        return list(calls.values())[:users]

    def call(self, id_: str, *, user: str | None = None) -> Mapping[Any, Any] | None:
        """Return the row of the call of that id, if it is the user's; None without one."""
        query = _filtered(select(CALLS), user=user).where(CALLS.c.id == id_)
        with self._database.reading() as connection:
            return connection.execute(query).mappings().first()

    def _rows(self, query: Select[Any]) -> Sequence[Any]:
        with self._database.reading() as connection:
            return connection.execute(query).all()

    def _sum(self, query: Select[Any]) -> int:
        with self._database.reading() as connection:
            return int(connection.scalar(query) or 0)


def _subject(by: str) -> Any:
    tag = by.removeprefix(TAG)
    column = CALLS.c.tags[tag].as_string() if tag != by else SUBJECTS[by]
    return column.label("subject")


def _filtered(query: Select[Any], **calls: Unpack[Selection]) -> Select[Any]:
    chosen = {name: value for name, value in calls.items() if value is not None}
    return query.where(*[CONDITIONS[name](value) for name, value in chosen.items()])


def _latency(calls: Sequence[tuple[int, int]]) -> Latency:
    """Return the latency of calls, by their milliseconds in order."""
    sums = list(accumulate(count for _, count in calls))
    within = [calls[bisect_left(sums, sums[-1] * share)][0] for share in (0.5, 0.95)]
    return Latency(sums[-1], *within)


def _compared(estimated: ColumnElement[int], used: ColumnElement[int]) -> tuple[Any, Any, Any]:
    over = case((used > estimated, 1), else_=0)
    return func.sum(estimated), func.sum(used), func.sum(over)
