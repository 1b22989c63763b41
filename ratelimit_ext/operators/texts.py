"""Times, lengths of time and other texts, as commands and pages show them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ratelimit_ext.records.overrides import LogEntry, Override


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
