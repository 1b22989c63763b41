"""The schema of the first release. A database older than it is refused, and a new one is made from
the tables, so nothing runs here."""

from __future__ import annotations

revision = "0013"
down_revision = None


def upgrade() -> None:
    """Do nothing."""
