"""Why callers were denied lately, as workers have written it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple, TypeAlias

import flask

from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.core.key import bucket_key, parsed_key, separated
from ratelimit_ext.core.money import shown_dollars
from ratelimit_ext.operators.texts import iso_time, span_text, time_text
from ratelimit_ext.records.denials import DenialRecord
from ratelimit_ext.web.components import Components
from ratelimit_ext.web.inventory import Row

_DEGRADED: Final = {
    "open": "without the storage, which was down",
    "local": "by the host's share, because the storage was down",
    "closed": "because the storage was down",
}


Kinds: TypeAlias = tuple[str, ...]


class Denied(NamedTuple):
    """Denials, the first one first, and how many of any caller were too many to be kept."""

    records: list[DenialRecord]
    unkept: int


def denials_of(
    enabled: Iterable[Components],
    app: flask.Flask,
    identities: Sequence[str],
    *,
    since: float,
    most: int,
) -> Denied:
    denials: list[DenialRecord] = []
    unkept, is_counted = 0, not identities
    for components in enabled:
        records = components.recorder.require_enabled().denials.read(time.time() - since, most=most)
        rows = components.inventory.all_rows(app)
        meant = [_meant(components, rows, text) for text in identities]
        names = {_recorded(name) for kinds in meant for name in kinds.values()} | {*identities}
        joined = {row.name for row in rows if len(row.kinds) > 1}
        matching = [
            record
            for record in records
            if record.limit and not (names and names.isdisjoint(_counted(record, joined)))
        ]
        is_counted = is_counted or any(meant) or bool(matching)
        if not matching:
            for kinds in meant:
                _check(components, kinds)
        denials += matching
        unkept += sum(record.count for record in records if not record.limit)
    if not is_counted:
        raise uncounted(identities[0])
    return Denied(sorted(denials, key=lambda record: record.at), unkept)


def uncounted(identity: str) -> OperatorError:
    return OperatorError("uncounted", f"No limit counts {identity!r}.")


def _counted(record: DenialRecord, joined: Collection[str]) -> Iterator[str]:
    """Yield the request's id and what it was counted as, also parts of an identity of several."""
    yield from (record.request_id, record.identity, *record.callers)
    if record.limit in joined:
        yield from separated(record.identity)


def _meant(components: Components, rows: Iterable[Row], text: str) -> dict[Kinds, str]:
    """Return the identities that an operator may mean, by the kinds that a limit counts, together
    and alone."""
    kinds = dict.fromkeys(kind for row in rows for kind in (row.kinds, *[(k,) for k in row.kinds]))
    identity = components.callbacks.identity
    return {kind: name for kind in kinds if (name := identity(kind, text))}


def _check(components: Components, meant: Mapping[Kinds, str]) -> None:
    """Raise ``ValueError`` if the application knows none of the identities."""
    mistakes = []
    for kinds, identity in meant.items():
        try:
            components.callbacks.check(kinds, identity)
        except ValueError as error:
            mistakes.append(error)
    if mistakes and len(mistakes) == len(meant):
        raise mistakes[0]


def _recorded(identity: str) -> str:
    """Return the identity as records have it: a long one by its hash."""
    name = parsed_key(bucket_key("", identity))
    return name.identity if name else identity


def record_as_json(record: DenialRecord) -> dict[str, Any]:
    """Return a denial with instants that people can read."""
    wait_ms = record.wait_ms
    return {
        **{word: value for word, value in asdict(record).items() if word != "wait_ms"},
        "at": iso_time(record.at),
        "until": iso_time(record.until),
        "retry_after": None if wait_ms is None else wait_ms / 1000,
        "next_free": None if wait_ms is None else iso_time(record.at + wait_ms / 1000),
    }


class Explanation(NamedTuple):
    """A denial in words; ``left``, ``wait``, ``degraded`` and ``more`` may be empty."""

    at: str
    limit: str
    cause: str
    left: str
    free: str
    wait: str
    degraded: str
    more: str


def explained(record: DenialRecord) -> Explanation:
    """Say why the caller was denied, as ``flask ratelimit why`` does."""
    shown = "" if record.limit == record.amount else f" ({record.amount})"
    cause, left, free, wait = record.reason, "", "no end", ""
    wait_ms = record.wait_ms
    if record.capacity and wait_ms is None:
        cause = f"the call costs {_units(record, record.cost)}, more than it can ever hold"
        free = ""
    elif record.reason == "limit" and not record.capacity:
        cause, free = "it allows nothing", ""
    elif record.capacity and record.reason == "limit":
        cause = f"{_units(record, record.capacity - record.remaining)} used"
        if record.share:
            used, part, members = record.share
            of = f"the share of each of {members} members, {_units(record, part)}"
            cause = f"{_units(record, used)} used of {of}"
        left = f"{_units(record, record.remaining)} left"
        if record.kept_for:
            left += f" (a part is kept for {', '.join(record.kept_for)})"
        if record.unit != "requests":
            left += f", the call costs {_units(record, record.cost)}"
    if wait_ms is not None:
        free = f"next free at {time_text(record.at + wait_ms / 1000)}"
        wait = span_text(wait_ms * 1000)
    more = f"{record.count - 1} more like this until {time_text(record.until)}"
    return Explanation(
        at=time_text(record.at),
        limit=f"{record.limit!r}{shown}",
        cause=cause,
        left=left,
        free=free,
        wait=wait,
        degraded=_DEGRADED.get(record.degraded, ""),
        more=more if record.count > 1 else "",
    )


def _units(record: DenialRecord, units: int) -> str:
    if record.unit == "usd":
        return f"{shown_dollars(units)} usd"
    return str(units) if record.unit == "requests" else f"{units} {record.unit}"
