"""What else changes the price of a call: cache writes for an hour, web searches, tiers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Earlier calls have none of them."""
    op.add_column("calls", sa.Column("cache_write_1h_tokens", sa.BigInteger()))
    op.add_column("calls", sa.Column("web_searches", sa.BigInteger()))
    op.add_column("calls", sa.Column("tiers", sa.String(64)))


def downgrade() -> None:
    """Forget them; the costs stay as they were computed."""
    op.drop_column("calls", "tiers")
    op.drop_column("calls", "web_searches")
    op.drop_column("calls", "cache_write_1h_tokens")
