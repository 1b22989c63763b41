"""Which limits there are, and where each is written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ratelimit_ext.operators.api import Operators
from ratelimit_ext.operators.texts import span_text
from ratelimit_ext.web.declarations.callbacks import CheckedPolicy
from ratelimit_ext.web.inventory import Row


def policy_as_json(checked: CheckedPolicy) -> dict[str, Any]:
    """Return what a valid policy has, and the application's warnings."""
    policy = checked.policy
    # Limits of app.config are checked, too, and are not of the file.
    count = sum(not limit.place.origin.python for limit in policy.all_limits())
    shown = {"file": str(checked.file), "limits": count, "plans": [*policy.plans]}
    return {**shown, "warnings": list(checked.warnings), "unapplied": list(checked.unapplied)}


def definitions_of(operators: Operators, endpoint: str = "") -> list[dict[str, Any]]:
    """Return the endpoints, or one, each with its limits."""
    words = operators.limit_keywords
    listed: dict[str, list[dict[str, Any]]] = {}
    for group, rows in operators.groups(endpoint):
        listed.setdefault(group.title, []).extend(
            _definition(row, words) if isinstance(row, Row) else _dynamic(row) for row in rows
        )
    return [{"endpoint": title, "limits": limits} for title, limits in listed.items()]


def _definition(row: Row, words: Iterable[str]) -> dict[str, Any]:
    limit = row.limit
    name = f"{row.name} ({row.method})" if row.method else row.name
    return {
        "limit": name,
        "amount": str(row.runtime.limit),
        "strategy": limit.strategy,
        "burst": limit.burst,
        "key": row.key,
        "plan": row.plan or None,
        "mode": None if limit.mode == "enforce" else limit.mode,
        "keep": limit.keep_text or None,
        "wait": limit.wait and span_text(limit.wait),
        "fair": limit.fair_text or None,
        "candidate": limit.candidate and str(limit.outside(limit.candidate)),
        "optional": "yes" if row.is_optional else None,
        **{word: row.keywords.get(word) for word in words},
        "on_failure": row.on_failure,
        "source": _source(row.source),
        "attached": _source(row.attached) or None,
    }


def _dynamic(definition: Any) -> dict[str, Any]:
    function = getattr(definition.limit_provider, "__name__", "a function")
    source = getattr(definition, "source", "")
    return {
        "limit": f"returned by {function}",
        "amount": "asked at each request",
        "source": _source(str(getattr(source, "located", source))),
    }


def _source(text: str) -> str:
    """Return a place, as a path from here if it lies below; of app.config, the key."""
    key = re.match(r'app\.config\["\w+"\]', text)
    return key[0] if key else text.removeprefix(f"{Path.cwd()}{os.sep}")
