"""Arguments and options of commands, also of an application's own."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class UntilType(click.ParamType[float]):
    """An instant in the future, in seconds since 1970: a duration (90m, 2h, 7d), a time of day, a
    date, or a date and a time; by UTC unless it states an offset."""

    name = "time"
    FORMS: Final = (
        "write it as 2h, 7d, 17:30, tomorrow, tomorrow 9:00, 2026-11-27 or '2026-11-27 09:00'"
    )
    UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        now = datetime.now(UTC)
        try:
            until = self._instant(value.strip().lower(), now)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time; {self.FORMS}", param, ctx)
        if until <= now:
            self.fail(f"{value!r} is not in the future: it is {now:%Y-%m-%d %H:%M} UTC", param, ctx)
        return until.timestamp()

    def _instant(self, text: str, now: datetime) -> datetime:
        if length := re.fullmatch(r"(\d+)([smhd])", text):
            return now + timedelta(**{self.UNITS[length[2]]: int(length[1])})
        if text == "tomorrow":
            text = f"{now + timedelta(days=1):%Y-%m-%d}"
        if at := re.fullmatch(r"(tomorrow )?(\d{1,2}):(\d\d)", text):
            found = now.replace(hour=int(at[2]), minute=int(at[3]), second=0, microsecond=0)
            is_next = at[1] is not None or found <= now
            return found + timedelta(days=1) if is_next else found
        found = datetime.fromisoformat(text.upper())
        return found if found.tzinfo else found.replace(tzinfo=UTC)


UNTIL: Final = UntilType()


def with_json(command: F) -> F:
    """Give a command the option ``--json``, which it gets as ``as_json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return option(command)


def by_operator(command: F) -> F:
    """Give a command the options of the log: who changes something, and why."""
    for option in (
        click.option("--by", default=_operator, help="Who does it; default: the user here."),
        click.option("--reason", default="", help="Why, for the log."),
    ):
        command = option(command)
    return command


def _operator() -> str:
    with contextlib.suppress(Exception):  # a container may know no user of this number
        return os.environ.get("SUDO_USER") or getpass.getuser()
    return "unknown"
