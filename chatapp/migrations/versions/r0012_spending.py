"""Spending by user, from an index alone: SQLite would sort all rows of the time."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"

NAME = "ix_calls_user_started_at"
KEY = ["user", "started_at"]
SUMMED = ["status", "input_tokens", "output_tokens", "cost_micro_usd"]


def upgrade() -> None:
    """One index instead of another."""
    op.drop_index(NAME, "calls")
    op.create_index(NAME, "calls", [*KEY, *SUMMED])


def downgrade() -> None:
    """The former index."""
    op.drop_index(NAME, "calls")
    op.create_index(NAME, "calls", KEY)
