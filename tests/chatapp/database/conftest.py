"""A version after this one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from chatapp.database import migration

REVISION: Final = """
import sqlalchemy as sa
from alembic import op

revision = {next!r}
down_revision = {head!r}


def upgrade():
    op.add_column("users", sa.Column("nickname", sa.String(10)))
"""


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], str]:
    """Makes this version the next one, which has a column more; returns the schema of that."""

    def become() -> str:
        schema = f"{int(migration.HEAD) + 1:04}"
        migrations = shutil.copytree(migration.MIGRATIONS, tmp_path / "migrations")
        (migrations / "versions" / f"r{schema}_next.py").write_text(
            REVISION.format(next=schema, head=migration.HEAD)
        )
        monkeypatch.setattr(migration, "MIGRATIONS", migrations)
        monkeypatch.setattr(migration, "HEAD", schema)
        return schema

    return become
