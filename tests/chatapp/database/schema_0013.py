"""The schema 0013, with which every database that is upgraded began: users, teams and keys, the
ledger, stored answers, alerts, and the log of operators' changes."""

import sqlalchemy as sa
from alembic import op

INSTANT = sa.DateTime(timezone=True)
COUNTS = (
    *("input_tokens", "cached_input_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens", "web_searches"),
)
CHANGE = ("identity", "limit", "amount", "reason", "by")


def create() -> None:
    """Create the tables, with alembic's current operations."""
    op.create_table(
        "users",
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("plan", sa.String(64), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("team", sa.String(64)),
        sa.Column("limits", sa.JSON()),
        sa.Column("deactivated_at", INSTANT),
        sa.Column("brought_by", sa.String(16)),
        sa.PrimaryKeyConstraint("name", name="pk_users"),
    )
    op.create_index("ix_users_brought_by", "users", ["brought_by"])
    op.create_table(
        "teams",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("limits", sa.JSON()),
        sa.PrimaryKeyConstraint("name", name="pk_teams"),
    )
    op.create_table(
        "api_keys",
        sa.Column("public_id", sa.String(16), nullable=False),
        sa.Column("user", sa.String(256), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.Column("last_used_on", sa.Date()),
        sa.Column("limits", sa.JSON()),
        sa.Column("models", sa.JSON()),
        sa.Column("files", sa.Boolean()),
        sa.Column("traffic_class", sa.String(64)),
        sa.Column("people", sa.JSON()),
        sa.Column("bound_team", sa.String(64)),
        sa.PrimaryKeyConstraint("public_id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["user"], ["users.name"], name="fk_api_keys_user"),
    )
    op.create_index("ix_api_keys_user", "api_keys", ["user"])
    op.create_table(
        "admin_keys",
        sa.Column("public_id", sa.String(16), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("team", sa.String(64)),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.PrimaryKeyConstraint("public_id", name="pk_admin_keys"),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("user", sa.String(300), nullable=False),
        sa.Column("team", sa.String(64)),
        sa.Column("key_id", sa.String(16)),
        sa.Column("plan", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("slug", sa.String(100), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("estimated_input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("estimated_output_tokens", sa.BigInteger(), nullable=False),
        *[sa.Column(name, sa.BigInteger()) for name in COUNTS],
        sa.Column("other_tool_calls", sa.String(128)),
        sa.Column("tiers", sa.String(64)),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("cost_micro_usd", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("client_left", sa.Boolean(), nullable=False),
        sa.Column("tags", sa.JSON()),
        sa.Column("basis", sa.String(16)),
        sa.PrimaryKeyConstraint("id", name="pk_calls"),
    )
    # Spending by user is read from this index alone; SQLite would sort all rows of the time.
    summed = ("status", "input_tokens", "output_tokens", "cost_micro_usd")
    op.create_index("ix_calls_user_started_at", "calls", ["user", "started_at", *summed])
    op.create_index("ix_calls_started_at", "calls", ["started_at"])
    op.create_table(
        "stored_answers",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("user", sa.String(300), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("tokens", sa.BigInteger()),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stored_answers"),
    )
    op.create_index("ix_stored_answers_created_at", "stored_answers", ["created_at"])
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("identity", sa.String(300), nullable=False),
        sa.Column("user", sa.String(300)),
        sa.Column("name", sa.String(256)),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("since", INSTANT, nullable=False),
        sa.Column("resets_at", INSTANT),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
    )
    op.create_index("ix_alerts_identity_at", "alerts", ["identity", "at"])
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("until", sa.Double()),
        sa.Column("action", sa.String(64), nullable=False),
        *[sa.Column(name, sa.Text(), nullable=False) for name in CHANGE],
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
    )
    op.create_index("ix_changes_at", "changes", ["at"])
