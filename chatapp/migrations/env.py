"""What alembic runs: the revisions, in the transaction that `migration.upgrade` has begun."""

from __future__ import annotations

from alembic import context

from chatapp.database import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
context.run_migrations()
