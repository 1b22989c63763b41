"""How often the provider was asked for a call."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Calls of before were asked once each."""
    # The default stays: workers of the version before, which may run on, know nothing of it.
    attempts = sa.Column("attempts", sa.Integer(), nullable=False, server_default="1")
    op.add_column("calls", attempts)


def downgrade() -> None:
    """Forget how often."""
    op.drop_column("calls", "attempts")
