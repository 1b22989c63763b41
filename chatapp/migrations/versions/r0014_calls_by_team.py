"""Spending by team is read from an index alone, as that by user is."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Create the index, which takes some seconds for a million calls."""
    summed = ("status", "input_tokens", "output_tokens", "cost_micro_usd")
    op.create_index("ix_calls_team_started_at", "calls", ["team", "started_at", *summed])
