"""Alembic's entry point: runs the revisions in the transaction of `migration.upgrade`."""

from __future__ import annotations

from alembic import context

from chatapp.database import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
context.run_migrations()
