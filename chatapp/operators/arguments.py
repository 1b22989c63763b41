"""The types of the commands' arguments."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Final

import click
from flask.cli import ScriptInfo

from chatapp.ledger.reports import SUBJECTS, TAG
from chatapp.services import services_of
from chatapp.web.allowed_models import patterns

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
    """A name that fits into a line of a log and into a header."""

    name = "name"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = value.strip()
        if not text or len(text) > self.most:
            self.fail(f"{value!r} is blank or has more than {self.most} characters", param, ctx)
        if any(unicodedata.category(character) in CONTROL_CATEGORIES for character in text):
            self.fail(f"{value!r} contains a control character", param, ctx)
        return text


class NewNameType(NameType):
    """The name of a user who may be new: not in the form of an identity."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = super().convert(value, param, ctx)
        if text.startswith(IDENTITIES):
            self.fail(f"{value!r} begins with user: or ip:; leave that out", param, ctx)
        return text


class PlanType(click.ParamType[str]):
    name = "plan"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        # Arguments are parsed before the command has its application context.
        info = None if ctx is None else ctx.find_object(ScriptInfo)
        assert info is not None, "the group is an AppGroup of Flask's command line"
        known = services_of(info.load_app()).plans
        if value not in known:
            listed = ", ".join(known) or "none: the policy has no plans"
            self.fail(f"Unknown plan {value!r}; choose one of {listed}", param, ctx)
        return value


class OwnLimitType(click.ParamType[tuple[str, str]]):
    """A limit and its amount, as usd-day=20 usd/day."""

    name = "limit=amount"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        limit, is_given, amount = value.partition("=")
        if not (limit.strip() and is_given and amount.strip()):
            self.fail(f"{value!r} has no amount; write it as usd-day='20 usd/day'", param, ctx)
        return limit.strip(), amount.strip()


class ModelsType(click.ParamType[str]):
    """A name of models, which may have asterisks."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return patterns([value])[0]
        except ValueError:
            self.fail(f"{value!r} is not a name of models; write it as gpt-5*", param, ctx)


class DayType(click.ParamType[datetime]):
    """A day by UTC, as 2026-11-25, or 7d: that many days ago."""

    name = "day"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            if ago := re.fullmatch("([0-9]{1,5})d", value):
                today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
                return today - timedelta(days=int(ago[1]))
            return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{value!r} is not a day; write it as 2026-11-25 or 7d", param, ctx)


class SubjectType(click.ParamType[str]):
    """By what a report sums."""

    name = "subject"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in SUBJECTS and not (value.startswith(TAG) and value != TAG):
            self.fail(
                f"{value!r} is unknown; choose one of {', '.join(SUBJECTS)}, tag:NAME", param, ctx
            )
        return value


class DurationType(click.ParamType[timedelta]):
    """A duration: a whole number and s, m, h or d."""

    name = "duration"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        number, unit = value[:-1], value[-1:].lower()
        if unit not in DURATION_UNITS or not (number.isascii() and number.isdigit()):
            self.fail(f"{value!r} is not a duration; write it as 90s, 15m, 2h or 7d", param, ctx)
        length = min(int(number), LONGEST_DAYS * 86_400) * DURATION_UNITS[unit]
        if not timedelta(0) < length <= timedelta(days=LONGEST_DAYS):
            self.fail(f"{value!r} is not from 1s to {LONGEST_DAYS}d", param, ctx)
        return length


USER: Final = NameType(256)
NEW_USER: Final = NewNameType(256)
TEAM: Final = NameType(64)
KEY_NAME: Final = NameType(100)
OPERATOR: Final = NameType(100)
OWN_LIMIT: Final = OwnLimitType()
MODELS: Final = ModelsType()
PLAN: Final = PlanType()
DAY: Final = DayType()
SUBJECT: Final = SubjectType()
DURATION: Final = DurationType()
