"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click

from ratelimit_ext.web.operators.overrides import LogEntry, Override


def echo_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else str(value)


def echo_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns. Callers choose some of the texts, so control characters are shown."""
    lines = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """The text with escapes for characters that could change what a terminal shows."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def time_text(at_s: float | None) -> str:
    return "-" if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso_time(at_s: float | None) -> str | None:
    return None if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def span_text(length_us: int) -> str:
    """A length of time in its two largest units."""
    if 0 < length_us < 1_000_000:
        return f"{length_us / 1_000_000:.1f} s"
    seconds = -(-length_us // 1_000_000)
    sizes = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for unit, size in sizes:
        count, seconds = divmod(seconds, size)
        parts.append((count, unit))
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "now"


def with_times(found: Override | LogEntry) -> dict[str, Any]:
    """The fields for :func:`echo_json`, with instants that people can read."""
    return {**asdict(found), "until": iso_time(found.until), "at": iso_time(found.at)}
