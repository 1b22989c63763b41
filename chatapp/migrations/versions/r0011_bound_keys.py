"""Keys that a team's administrator has made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """No key is bound."""
    op.add_column("api_keys", sa.Column("bound_team", sa.String(64)))


def downgrade() -> None:
    """Bound keys stay, for any team of their users."""
    op.drop_column("api_keys", "bound_team")
