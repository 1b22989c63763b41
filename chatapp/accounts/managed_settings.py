"""The settings that the operator manages on the machines of people who sign in: a JSON file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

#: Settings by plan and team, as "pro/research", "pro" or "*". The first row counts that fits.
Rows = Mapping[str, Mapping[str, Any]]


def read(file: str) -> Rows:
    """Return the rows in the order of the file. ValueError if it is invalid."""
    try:
        rows = json.loads(Path(file).read_text("utf-8"))
        json.dumps(rows, ensure_ascii=False, allow_nan=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        form = '{"pro/research": {…}, "pro": {…}, "*": {…}}'
        raise ValueError(f"{file} is not an object of rows; write it as {form}.")
    return rows


def plans_of(rows: Rows) -> dict[str, str]:
    """Return the plan of each row that names one."""
    return {row: plan for row in rows if (plan := row.partition("/")[0]) != "*"}


def answer(rows: Rows, plan: str, team: str | None) -> dict[str, object] | None:
    """Return what Claude Code reads: the settings of such a person; None if no row fits.

    Its checksum is what the client computes from the settings that it has.
    """
    for row, settings in rows.items():
        of_plan, _, of_team = row.partition("/")
        if of_plan in {"*", plan} and of_team in {"", "*", team}:
            text = json.dumps(settings, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            checksum = f"sha256:{sha256(text.encode()).hexdigest()}"
            id_ = str(uuid.uuid5(uuid.NAMESPACE_OID, checksum))
            return {"uuid": id_, "checksum": checksum, "settings": settings}
    return None
