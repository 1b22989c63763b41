"""The uses of a provider's other tools, and who made an answer that the provider keeps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Earlier calls used no other tools."""
    op.add_column("calls", sa.Column("other_tool_calls", sa.String(128)))
    op.create_table(
        "stored_answers",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("user", sa.String(300), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("tokens", sa.BigInteger()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stored_answers"),
    )
    op.create_index("ix_stored_answers_created_at", "stored_answers", ["created_at"])


def downgrade() -> None:
    """Forget them: earlier answers can no longer be continued or fetched."""
    op.drop_table("stored_answers")
    op.drop_column("calls", "other_tool_calls")
