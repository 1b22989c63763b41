"""Limits in dollars and tokens after their storage has lost its data: rebuilt from the ledger, and
the notice of it in the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts import EVERYONE
from chatapp.ledger.reports import CREDITED, month_start
from chatapp.ledger.retention import LEAST_DAYS
from chatapp.ledger.table import usage_of
from chatapp.operators import callers
from chatapp.services import current_services
from chatapp.web.call_limits import MODELS, look
from chatapp.web.current_request import team_identity
from chatapp.web.policy_keywords import covers
from ratelimit_ext import Event, RequestLimit, RestoredUsage, StorageEvent, StorageUnavailable

log = logging.getLogger(__name__)

COMMAND: Final = "flask --app wsgi chat ledger restore"
LOST: Final = (
    "The limits' storage has lost what was spent: %r of %s counts %d micro-dollars, and the ledger "
    "has a call of %d that it must count. Budgets start from zero until you run `%s`."
)
#: An operator may have reset one user's limits.
LOOKED_AT: Final = 3
UNITS: Final = ("usd", "tokens")

#: When a call began, its micro-dollars, its tokens and its model.
Spent = tuple[datetime, int, int, str]


@dataclass(frozen=True, slots=True)
class Restored:
    """A limit of an identity, and what it counts, should count, and is charged for that."""

    identity: str
    limit: str
    unit: str
    usage: RestoredUsage


def restore(user: str | None, *, apply: bool, reason: str, by: str) -> list[Restored]:
    """Return the limits in dollars and tokens that count less than the ledger has; with ``apply``
    they are charged the difference, which the log has. Of all users, keys and teams, or only of a
    user. Each call counts when it began; one that is running, or whose worker died, as its
    estimate, as in its limits."""
    operators = callers.shared_operators()
    spent = _spent(user)
    restored, seen = [], set()
    for identity, shown, _ in limits_of(spent):
        name, uses = shown.verdict.charge.key, spent.get(identity)
        if name in seen or not uses:
            continue
        seen.add(name)
        limit = shown.verdict.charge.limit
        counted = [
            (at, micro if limit.unit == "usd" else tokens)
            for at, micro, tokens, slug in uses
            if covers_call(shown, slug)
        ]
        usage = operators.restore(shown, counted, apply=apply)
        if usage.missing:
            restored.append(Restored(identity, limit.label, limit.unit, usage))
    if apply:
        callers.note("restore-limits", user or EVERYONE, reason=reason, by=by)
    return restored


def _spent(user: str | None) -> dict[str, list[Spent]]:
    """Return what each user, key, team and all have used, as far back as budgets need."""
    since = datetime.now(UTC) - timedelta(days=LEAST_DAYS)
    spent: dict[str, list[Spent]] = {}
    for row in current_services().reports.calls(user=user, since=since):
        used = _used(row)
        team = row["team"] and team_identity(row["team"])
        # With one user's calls alone, those of a team or of all are incomplete.
        others = (team, EVERYONE) if user is None and row["status"] != CREDITED else ()
        for identity in {row["user"], row["key_id"], *others} - {None}:
            spent.setdefault(identity, []).append((row["started_at"], *used, row["slug"]))
    return spent


def _used(row: Mapping[Any, Any]) -> tuple[int, int]:
    """Micro-dollars and tokens of a call, as limits count them."""
    usage = usage_of(row)
    tokens = row["estimated_input_tokens"] + row["estimated_output_tokens"]
    return row["cost_micro_usd"], tokens if usage is None else usage.counted_tokens


def limits_of(identities: Iterable[str]) -> Iterator[tuple[str, RequestLimit, float]]:
    """Yield the limits in dollars and tokens of these users, keys and teams, and by how many
    seconds this process's clock is ahead of the storage's."""
    services = current_services()
    for identity in identities:
        owner, key = identity, None
        if callers.public_id(identity):
            row = services.accounts.find(identity)
            if row is None:
                continue
            key, owner = row[0], callers.identity_of(row[1].name)
        elif identity == EVERYONE:
            continue
        with callers.request_of(owner, callers.ChatCallers().plan(owner), key=key):
            shown, ahead_s = look(services.limiter)
            for limit in shown:
                counted = limit.request_args[-2]
                if counted in {identity, EVERYONE} and limit.verdict.charge.limit.unit in UNITS:
                    yield counted, limit, ahead_s


def covers_call(shown: RequestLimit, slug: str) -> bool:
    models = shown.keywords.get(MODELS)
    return models is None or covers(current_services().catalogue, models, {"model": slug})


def watch(app: Flask) -> Callable[[Event], None]:
    """Return a listener that looks, once in a worker and after each outage, whether the limits
    still count what the ledger has, and logs an error if they do not. No request waits for it."""
    looked = threading.Event()

    def note(event: Event) -> None:
        is_idle = event.is_down if isinstance(event, StorageEvent) else looked.is_set()
        if is_idle:
            return
        looked.set()
        threading.Thread(target=partial(_look, app), name="lost-usage", daemon=True).start()

    return note


def _look(app: Flask) -> None:
    with app.app_context(), suppress(SQLAlchemyError, OSError, StorageUnavailable):
        warn_if_lost()


def warn_if_lost() -> bool:
    """Log an error if no calendar's budget of the latest callers counts a call that it must: one of
    its window that was settled or refunded long ago. Returns whether that is so. A budget that is
    new in the policy lacks calls, too, but not those beside it."""
    services = current_services()
    operators = services.limiter.operators
    if not operators.is_shared:
        return False
    settled = datetime.now(UTC) - services.lease
    lost: list[tuple[object, ...]] = []
    for row in services.reports.latest_charged(LOOKED_AT, since=month_start(), until=settled):
        cost = row["cost_micro_usd"]
        for identity, shown, _ in limits_of([row["user"]]):
            limit = shown.verdict.charge.limit
            if limit.unit != "usd" or limit.anchor is None or not covers_call(shown, row["slug"]):
                continue
            usage = operators.restore(shown, [(row["started_at"], cost)], apply=False)
            if usage.recorded and not usage.missing:
                return False
            if usage.missing:
                lost.append((limit.label, identity, usage.held, cost, COMMAND))
    if lost:
        log.error(LOST, *lost[0])
    return bool(lost)
