"""A sign-in is found by any of its codes, and removed by its end, without reading all others."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Create the indexes."""
    for column in ("user_code", "expires_at", "browser_sha256"):
        op.create_index(f"ix_sign_ins_{column}", "sign_ins", [column])
