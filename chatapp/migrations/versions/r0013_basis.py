"""How the usage of a call was estimated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Of earlier calls it is unknown."""
    op.add_column("calls", sa.Column("basis", sa.String(16)))


def downgrade() -> None:
    """Calls stay estimated."""
    op.drop_column("calls", "basis")
