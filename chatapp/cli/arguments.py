"""The kinds of arguments that the commands take, checked before anything is done."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Final

import click
from flask.cli import ScriptInfo

from chatapp.services import services_of

DURATION_UNITS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
LONGEST_DAYS: Final = 366
IDENTITIES: Final = ("user:", "ip:")
CONTROL_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


class NameType(click.ParamType[str]):
    """A name that can stand in a line of a log and in a header."""

    name = "name"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name without spaces around it."""
        text = value.strip()
        if not text or len(text) > self.most:
            self.fail(f"{value!r} is blank or longer than {self.most} characters", param, ctx)
        if any(unicodedata.category(character) in CONTROL_CATEGORIES for character in text):
            self.fail(f"{value!r} contains a control character", param, ctx)
        return text


class NewNameType(NameType):
    """The name of somebody who may be new: none that limits could take for an identity."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same."""
        text = super().convert(value, param, ctx)
        if text.startswith(IDENTITIES):
            self.fail(
                f"{value!r} begins like an identity, user: or ip:; leave that out", param, ctx
            )
        return text


class PlanType(click.ParamType[str]):
    """A plan that the policy defines."""

    name = "plan"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The plan's name."""
        # Arguments are read before the command has its application context.
        info = None if ctx is None else ctx.find_object(ScriptInfo)
        assert info is not None, "the group is an AppGroup of Flask's command line"
        known = services_of(info.load_app()).plans
        if value not in known:
            self.fail(
                f"{value!r} is no plan of the policy; there are {', '.join(known)}", param, ctx
            )
        return value


class DayType(click.ParamType[datetime]):
    """A day by UTC, as 2026-11-25."""

    name = "day"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Its beginning."""
        try:
            return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{value!r} is no day; write it as 2026-11-25", param, ctx)


class DurationType(click.ParamType[timedelta]):
    """A length of time: a whole number and s, m, h or d."""

    name = "duration"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """It as a difference of times."""
        number, unit = value[:-1], value[-1:].lower()
        if unit not in DURATION_UNITS or not (number.isascii() and number.isdigit()):
            self.fail(f"{value!r} is no length of time; write it as 90s, 15m, 2h or 7d", param, ctx)
        length = min(int(number), LONGEST_DAYS * 86_400) * DURATION_UNITS[unit]
        if not timedelta(0) < length <= timedelta(days=LONGEST_DAYS):
            self.fail(f"{value!r} is not from 1s to {LONGEST_DAYS}d", param, ctx)
        return length


USER: Final = NameType(256)
NEW_USER: Final = NewNameType(256)
KEY_NAME: Final = NameType(100)
PLAN: Final = PlanType()
DAY: Final = DayType()
DURATION: Final = DurationType()
