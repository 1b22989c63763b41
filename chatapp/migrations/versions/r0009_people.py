"""Which keys act for users, and the key that has brought a user."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """None does."""
    op.add_column("api_keys", sa.Column("people", sa.JSON()))
    op.add_column("users", sa.Column("brought_by", sa.String(16)))
    op.create_index("ix_users_brought_by", "users", ["brought_by"])


def downgrade() -> None:
    """The people stay as users."""
    op.drop_index("ix_users_brought_by", "users")
    op.drop_column("users", "brought_by")
    op.drop_column("api_keys", "people")
