"""An upstream's answer: what its JSON and its headers say.

Both are untrusted. The SDKs validate neither: the models here do, for the fields that are used, and
an invalid header counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import reduce
from operator import getitem
from typing import Annotated, Any, Final, Self

from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError

from chatapp.upstreams import Quota, QuotaUnit

#: A thousand times more than the longest call. A larger number is an error of the upstream, and no
#: limit, price or database column is computed from it.
TOKENS_MAX: Final = 10**9

#: Of English, for what only divides a known sum.
CHARACTERS_PER_TOKEN: Final = 4

Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]


class Fields(BaseModel):
    """The fields of one object that are used; others are ignored."""

    model_config = ConfigDict(strict=True)

    @classmethod
    def of_json(cls, data: str) -> Self:
        """Return the fields in this JSON, without those of a wrong type; ValueError or
        RecursionError if the rest cannot be read."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            fields = json.loads(data)  # which takes half of a surrogate pair, too
            for wrong in reversed(error.errors()):
                if wrong["loc"] and wrong["type"] != "missing":
                    *path, name = wrong["loc"]
                    del reduce(getitem, path, fields)[name]
            return cls.model_validate(fields)


class OpenFields(Fields):
    """The same, with the others kept in `model_extra`."""

    model_config = ConfigDict(extra="allow")


def at(*path: str) -> Any:
    """Say of a field that it is in objects within this one; without them it is absent."""
    return Field(validation_alias=AliasPath(*path))


def objects_in(fields: object, name: str) -> list[dict[str, object]]:
    """Return the objects of the list in that field; none of anything else."""
    listed = fields.get(name) if isinstance(fields, Mapping) else None
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def texts_in(value: object, *, without: Collection[str]) -> list[str]:
    """Return all strings in a part of an answer, at any depth: text, a refusal, a tool's name and
    arguments, reasoning. ``without`` are the fields that the model did not generate."""
    texts: list[str] = []
    if isinstance(value, dict):
        value = [inner for name, inner in value.items() if name not in without]
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, (dict, list)):
            texts += texts_in(each, without=without)
        elif isinstance(each, str) and each:
            texts.append(each)
    return texts


def readings_of(input_tokens: int, added: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Return the input of each reading, whose sum is known: what is not ``added`` to the first one
    by the texts before each of the others is shared alike. ``()`` for a single reading."""
    if not added:
        return ()
    more, total = [0], 0
    for texts in added:
        total += sum(map(len, texts)) // CHARACTERS_PER_TOKEN
        more.append(total)
    each = (input_tokens - sum(more)) // len(more)
    if each < 0:
        return (input_tokens // len(more),) * len(more)
    return tuple(each + tokens for tokens in more)


# -- headers -----------------------------------------------------------------------------------

FIGURE: Final = re.compile(r"[0-9]{1,13}")
#: Larger than the quota of any upstream.
FIGURE_MAX: Final = 10**12
#: Quotas have periods of a minute, a day or a month. A longer wait is an error, or a Unix time.
WAIT_MAX_S: Final = 31 * 86_400
#: "You will regain access on 2026-12-01 at 00:00 UTC."
REGAINED: Final = re.compile(r"regain access on (\d{4}-\d\d-\d\d)(?: at (\d\d:\d\d) UTC)?")


def sendable(headers: Mapping[str, str], name: str) -> str | None:
    """Return the header's value, if it can be sent to a client. A WSGI server rejects a value that
    is not printable ASCII, and the whole answer with it."""
    value = headers.get(name, "")
    return value if value and value.isascii() and value.isprintable() else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the wait that an upstream requests, in seconds; None without a valid one.

    ``retry-after-ms`` goes before ``retry-after``, as in both SDKs.
    """
    for header, seconds_per_unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(header, "")) * seconds_per_unit
        except ValueError:
            continue
        if 0 < wait_s <= WAIT_MAX_S:
            return wait_s
    date = http_date(headers.get("retry-after", ""))
    if date is None:
        return None
    wait_s = (date - datetime.now(UTC)).total_seconds()
    return wait_s if 0 < wait_s <= WAIT_MAX_S else None


def regained_after_s(message: str) -> float | None:
    """Return the seconds until the end of a spending cap, if an error's message names its date."""
    if (found := REGAINED.search(message)) is None:
        return None
    try:
        end = datetime.fromisoformat(f"{found[1]}T{found[2] or '00:00'}+00:00")
    except ValueError:  # the 32nd of a month
        return None
    wait_s = (end - datetime.now(UTC)).total_seconds()
    return min(wait_s, WAIT_MAX_S) if wait_s > 0 else None


def quota(
    unit: QuotaUnit,
    headers: Mapping[str, str],
    name: str,
    *,
    reset_s: Callable[[str], float | None],
    period_s: int | None = None,
) -> Quota | None:
    """Return the quota in the three headers ``name``, in which {} stands for `limit`, `remaining`
    and `reset`; None if they are absent or invalid. ``reset_s`` parses a reset into seconds from
    now, or None. ``period_s`` is the quota's period, if known."""
    limit = _figure(headers.get(name.format("limit"), ""))
    if not limit:  # Azure sends a limit of 0 or less for "unknown"
        return None
    remaining = _figure(headers.get(name.format("remaining"), ""))
    if remaining is None:
        return None
    after_s = reset_s(headers.get(name.format("reset"), ""))
    if after_s is not None and after_s > WAIT_MAX_S:
        after_s = None
    # Providers round, and may report more remaining than the limit.
    return Quota(unit, limit, min(remaining, limit), after_s, period_s)


def http_date(text: str) -> datetime | None:
    """Return the instant of an HTTP date, in UTC if it has no zone; None if it is invalid."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year of twenty digits overflows
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)


def _figure(text: str) -> int | None:
    if not FIGURE.fullmatch(text.strip()):
        return None
    figure = int(text)
    return figure if figure <= FIGURE_MAX else None
