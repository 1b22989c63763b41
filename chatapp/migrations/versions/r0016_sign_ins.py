"""Sign-ins that wait for their person."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "sign_ins",
        sa.Column("device_sha256", sa.String(64), primary_key=True),
        sa.Column("user_code", sa.String(8), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("polled_at", sa.DateTime(timezone=True)),
        sa.Column("browser_sha256", sa.String(64)),
        sa.Column("result", sa.Text()),
    )
