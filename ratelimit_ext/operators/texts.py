"""Times, lengths of time and other texts, as commands and pages read and show them."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.core.limit import WEEK_DAYS
from ratelimit_ext.core.limit_string import length_s
from ratelimit_ext.records.overrides import LogEntry, Override

_CLOCK: Final = re.compile(r"(?:(.+) )?(\d{1,2}):(\d\d)")
_DAYS: Final = {"yesterday": -1, "today": 0, "tomorrow": 1}


def span_s(text: str, *, least_s: int = 1, most_s: int = 366 * 86_400) -> int:
    """Read a length of time as limits have it: 90s, 15m, 2h, 7d or "2 weeks"."""
    span = length_s(text)
    if span is None:
        raise OperatorError(
            "invalid_span", f"{text!r} is not a length of time; write it as 90s, 15m, 2h or 7d"
        )
    if not least_s <= span <= most_s:
        raise OperatorError(
            "invalid_span", f"{text!r} is not from {least_s}s to {most_s // 86_400}d"
        )
    return span


def instant_s(text: str, *, past: bool = False) -> float:
    """Read an instant in the future or the ``past``, in seconds since 1970: a length of time from
    now, a time of day, a day, or a day and a time; by UTC unless it states an offset.

    A day is a date, ``tomorrow``, ``today``, ``yesterday`` or a day of the week, the next one of
    that name or the last, and begins at midnight.
    """
    now, day = datetime.now(UTC), "monday" if past else "friday"
    try:
        instant = _instant(text.strip().lower(), now, past=past)
    except (ValueError, OverflowError):
        near = "yesterday" if past else "tomorrow"
        date = now + timedelta(days=_DAYS[near])
        raise OperatorError(
            "invalid_time",
            f"{text!r} is not a time; write it as 2h, 7d, 17:30, {near}, {day}, '{day} 9:00', "
            f"{date:%Y-%m-%d} or '{date:%Y-%m-%d} 09:00'",
        ) from None
    if instant > now if past else instant <= now:
        side, code = ("past", "future_time") if past else ("future", "past_time")
        raise OperatorError(code, f"{text!r} is not in the {side}: it is {now:%Y-%m-%d %H:%M} UTC")
    return instant.timestamp()


def _instant(text: str, now: datetime, *, past: bool = False) -> datetime:
    if (seconds := length_s(text)) is not None:
        span = timedelta(seconds=seconds)
        return now - span if past else now + span
    clock = _CLOCK.fullmatch(text)
    name, hour, minute = (clock[1], int(clock[2]), int(clock[3])) if clock else (text, 0, 0)
    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if name in _DAYS:
        return at + timedelta(days=_DAYS[name])
    if name is None or name in WEEK_DAYS:  # the last or the next of many
        every = timedelta(days=7 if name else 1)
        ago = (at.weekday() - WEEK_DAYS.index(name)) % 7 if name else 0
        last = at - timedelta(days=ago)
        last -= every if last > now else timedelta()
        return last if past else last + every
    instant = datetime.fromisoformat(text.upper())
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def listed(value: Any) -> Any:
    """Return a value of a keyword as a table shows it."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def printable(text: str) -> str:
    """Return the text with escapes for characters that could change what a terminal shows."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def time_text(at_s: float | None) -> str:
    return "-" if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso_time(at_s: float | None) -> str | None:
    return None if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def span_text(length_us: int) -> str:
    """Return a length of time in its two largest units."""
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


def with_times(entry: Override | LogEntry) -> dict[str, Any]:
    """Return the fields for :func:`echo_json`, with instants that people can read."""
    return {**asdict(entry), "until": iso_time(entry.until), "at": iso_time(entry.at)}
