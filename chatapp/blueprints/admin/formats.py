"""What the views of /admin share: how they write amounts and times, and their choices."""

from __future__ import annotations

from typing import Final

from chatapp.accounts import USER
from chatapp.blueprints.admin.access import bp, query
from chatapp.blueprints.admin.chart import dollars
from ratelimit_ext.cli import span_text, time_text, wait_text

#: How many rows a table has at most.
MOST: Final = 200


@bp.context_processor
def formats() -> dict[str, object]:
    """How templates write amounts and times, and know users."""
    return {
        "dollars": dollars,
        "span": span_text,
        "wait": wait_text,
        "time": time_text,
        "user_prefix": USER,
    }


def choice(name: str, allowed: list[str], default: str) -> str:
    """The value in the query; the default for any that is not allowed."""
    value = query(name, default)
    return value if value in allowed else default
