"""What a trace has of a call: the limits that admitted it, and how long each part took."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the columns, which are empty in earlier rows."""
    for name in ("waited_ms", "first_byte_ms"):
        op.add_column("calls", sa.Column(name, sa.Integer()))
    op.add_column("calls", sa.Column("limits_ms", sa.Float()))
    op.add_column("calls", sa.Column("total_ms", sa.BigInteger()))
    op.add_column("calls", sa.Column("streamed", sa.Boolean()))
    op.add_column("calls", sa.Column("limits", sa.Text()))
