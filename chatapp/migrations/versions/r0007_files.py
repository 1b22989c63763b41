"""Which keys may name files of the providers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """None may."""
    op.add_column("api_keys", sa.Column("files", sa.Boolean()))


def downgrade() -> None:
    """All may again."""
    op.drop_column("api_keys", "files")
