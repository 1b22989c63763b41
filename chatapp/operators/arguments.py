"""What operators write, in commands and on pages. OperatorError for what is not valid."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

from chatapp.accounts import IDENTITIES
from chatapp.accounts.people import CONTROL, HEADERS
from chatapp.ledger.reports import SUBJECTS, TAG, month_start, week_start
from chatapp.services import current_services
from chatapp.web.allowed_models import patterns
from chatapp.web.identities import checked_class
from chatapp.web.policy_keywords import declared_classes
from chatapp.web.tags import AGENT
from ratelimit_ext import OperatorError
from ratelimit_ext.operators import instant_s, span_s

_WEEKS_AGO: Final = {"this": 0, "last": 1}
USER: Final = 256
TEAM: Final = 64
KEY_NAME: Final = 100
OPERATOR: Final = 100
MOST_DOLLARS: Final = 1_000_000
HEADER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
#: Headers with secrets: their values are not names.
NO_PERSON: Final = frozenset({"authorization", "x-api-key", "cookie"})


def name(text: str, *, most: int) -> str:
    """Return a name that fits into a line of a log and into a header."""
    name = text.strip()
    if not name or len(name) > most:
        raise OperatorError("invalid_name", f"{text!r} is blank or has more than {most} characters")
    if not CONTROL.isdisjoint(map(unicodedata.category, name)) or "\ufffd" in name:
        raise OperatorError("invalid_name", f"{text!r} contains a control character or bad UTF-8")
    return name


def new_user(text: str) -> str:
    """Return the name of a user who may be new: not in the form of an identity."""
    user = name(text, most=USER)
    if user.startswith(IDENTITIES):
        raise OperatorError(
            "invalid_name",
            f"{user!r} begins with {user.partition(':')[0]}:, which limits write before the names "
            "of callers; leave it out",
        )
    return user


def plan(text: str) -> str:
    plans = current_services().plans
    if text not in plans:
        listed = ", ".join(plans) or "none: the policy has no plans"
        raise OperatorError("unknown_plan", f"Unknown plan {text!r}; choose one of {listed}.")
    return text


def own_limit(text: str) -> tuple[str, str]:
    """Return the limit and the amount of usd-day=20 usd/day. The amount may be in quotes."""
    limit, is_given, amount = text.partition("=")
    if not (limit.strip() and is_given and amount.strip()):
        form = f"{next(iter(limit.split()), 'LIMIT')}='20 usd/day'"
        raise OperatorError("invalid_amount", f"{text!r} has no amount; write it as {form}")
    return limit.strip(), amount.strip(" '\"")


def traffic_class(text: str) -> str:
    """Return the name of a class of traffic that is declared, or any if none is."""
    try:
        name, services = checked_class(text), current_services()
    except ValueError as error:
        raise OperatorError("invalid_class", str(error)) from None
    classes = declared_classes(services.policy, services.catalogue)
    if classes and name not in classes:
        listed = ", ".join(classes)
        raise OperatorError("invalid_class", f"Unknown class {name!r}; choose one of {listed}.")
    return name


def header(text: str) -> str:
    """Return the name of a header that may name users; none that has a secret."""
    if not HEADER.fullmatch(text) or text.lower() in NO_PERSON:
        raise OperatorError(
            "invalid_header", f"{text!r} cannot name users; write a header such as {HEADERS[0]}"
        )
    return text


def models(text: str) -> str:
    """Return a name of models, which may have asterisks."""
    try:
        return patterns([text])[0]
    except ValueError:
        raise OperatorError(
            "invalid_models", f"{text!r} is not a model name or pattern; write it as gpt-5*"
        ) from None


def day(text: str) -> datetime:
    """Return the day, by UTC, of an instant in the past, as 2026-11-25 or 7d."""
    instant = datetime.fromtimestamp(instant_s(text, past=True), UTC)
    return instant.replace(hour=0, minute=0, second=0, microsecond=0)


def month(text: str) -> tuple[datetime, datetime]:
    """Return when a month began, by UTC, and the one after it: 2026-10, or last."""
    try:
        start = (
            (month_start() - timedelta(days=1)).replace(day=1)
            if text.strip().lower() == "last"
            else datetime.strptime(text.strip(), "%Y-%m").replace(tzinfo=UTC)
        )
        return start, (start + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError):
        raise OperatorError(
            "invalid_month", f"{text!r} is not a month; write it as 2026-10 or last"
        ) from None


def week(text: str) -> tuple[datetime, datetime]:
    """Return when a week began, on Monday by UTC, and the one after it: 2026-W48, this or last."""
    word = text.strip().lower()
    try:
        if word in _WEEKS_AGO:
            start = week_start() - timedelta(days=7 * _WEEKS_AGO[word])
        else:
            year, number = word.split("-w")
            start = datetime.fromisocalendar(int(year), int(number), 1).replace(tzinfo=UTC)
        return start, start + timedelta(days=7)
    except (ValueError, OverflowError):
        raise OperatorError(
            "invalid_week", f"{text!r} is not a week; write it as 2026-W48, this or last"
        ) from None


def end(text: str) -> datetime:
    return datetime.fromtimestamp(instant_s(text), UTC)


def subject(text: str) -> str:
    """Return by what a report sums."""
    text = f"{TAG}{AGENT}" if text == AGENT else text
    if text not in SUBJECTS and not (text.startswith(TAG) and text != TAG):
        listed = ", ".join([*SUBJECTS, AGENT])
        raise OperatorError(
            "unknown_subject", f"{text!r} is unknown; choose one of {listed}, tag:NAME"
        )
    return text


def dollars(text: str) -> Decimal:
    """Return an amount of dollars above 0, to the micro-dollar."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and 0 < amount <= MOST_DOLLARS and amount == round(amount, 6)):
        allowed = f"an amount of dollars above 0, up to {MOST_DOLLARS}, with at most six decimals"
        raise OperatorError("invalid_amount", f"{text!r} is not {allowed}.")
    return amount


def duration(text: str, *, least_s: int = 1) -> timedelta:
    return timedelta(seconds=span_s(text, least_s=least_s))
