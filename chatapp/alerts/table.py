"""The alerts that were raised, in the database, so that each is raised once by all workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, delete, insert, select

from chatapp.alerts.alert import Alert
from chatapp.database import METADATA, Instant
from chatapp.database.connection import Database

#: Longer than the longest usual window.
KEEP: Final = timedelta(days=400)

ALERTS: Final = Table(
    "alerts",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("at", Instant, nullable=False),
    Column("type", String(32), nullable=False),
    Column("identity", String(300), nullable=False),
    Column("user", String(300)),
    # Of a budget.
    Column("name", String(256)),
    Column("threshold", Integer, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("since", Instant, nullable=False),
    Column("resets_at", Instant),
    Index("ix_alerts_identity_at", "identity", "at"),
)


def remember(database: Database, alert: Alert) -> bool:
    """Remember the alert, and forget old ones. False if it, or one of a higher threshold, was
    raised since its window began, and for a provider's key also until its pause ends."""
    row = {column.name: getattr(alert, column.name) for column in ALERTS.c}
    row |= {"identity": alert.identity[:300], "name": alert.name and alert.name[:256]}
    is_recent = ALERTS.c.at >= alert.since
    if alert.type in {"key.capped", "key.exhausted"}:
        is_recent |= ALERTS.c.resets_at > alert.at
    raised = select(ALERTS.c.id).where(
        ALERTS.c.identity == row["identity"],
        is_recent,
        ALERTS.c.type == alert.type,
        ALERTS.c.threshold >= alert.threshold,
    )
    if alert.name is not None:
        raised = raised.where(ALERTS.c.name == row["name"], ALERTS.c.amount == alert.amount)
    with database.alone("alerts"), database.writing() as connection:
        if connection.execute(raised.limit(1)).first() is not None:
            return False
        connection.execute(delete(ALERTS).where(ALERTS.c.at < alert.at - KEEP))
        connection.execute(insert(ALERTS).values(row))
    return True


def alerts(database: Database, *, since: datetime | None) -> Sequence[Mapping[Any, Any]]:
    """Return the rows of the alerts since then, the newest first."""
    query = select(ALERTS).order_by(ALERTS.c.at.desc())
    if since is not None:
        query = query.where(ALERTS.c.at >= since)
    with database.reading() as connection:
        return connection.execute(query).mappings().all()
