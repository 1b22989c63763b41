"""Teams, amounts and models of single users, keys and teams, and a call's team and tags."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Users have no team and no amounts of their own, calls no tags."""
    op.create_table(
        "teams",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("limits", sa.JSON()),
        sa.PrimaryKeyConstraint("name", name="pk_teams"),
    )
    op.add_column("users", sa.Column("team", sa.String(64)))
    op.add_column("users", sa.Column("limits", sa.JSON()))
    op.add_column("api_keys", sa.Column("limits", sa.JSON()))
    op.add_column("api_keys", sa.Column("models", sa.JSON()))
    op.add_column("calls", sa.Column("team", sa.String(64)))
    op.add_column("calls", sa.Column("tags", sa.JSON()))


def downgrade() -> None:
    """Forget all of them."""
    op.drop_column("calls", "tags")
    op.drop_column("calls", "team")
    op.drop_column("api_keys", "models")
    op.drop_column("api_keys", "limits")
    op.drop_column("users", "limits")
    op.drop_column("users", "team")
    op.drop_table("teams")
