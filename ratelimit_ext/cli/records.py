"""``flask ratelimit why`` and ``shadow report``: what workers have written of their decisions."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import click
from flask.cli import AppGroup, with_appcontext

from ratelimit_ext.cli.arguments import with_json
from ratelimit_ext.cli.context import application, reported_errors, shared_limiters
from ratelimit_ext.cli.output import (
    echo_json,
    echo_table,
    iso_time,
    printable,
    span_text,
)
from ratelimit_ext.core.key import bucket_key, parsed_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.money import shown_dollars
from ratelimit_ext.web.extension import Limiter
from ratelimit_ext.web.operators.denials import KEEP_S, MOST_READ, DenialRecord
from ratelimit_ext.web.operators.trials import Counts, Trial

#: How many identities a report names.
WORST: Final = 10
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DEGRADED: Final = {
    "open": "without the storage, which was down",
    "local": "by the worker's share, as the storage was down",
    "closed": "as the storage was down",
}


class SpanType(click.ParamType[float]):
    """A length of time before now, in seconds: 90s, 15m, 1h, 2d."""

    name = "time"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(\d{1,9})([smhd])", value.strip().lower())
        if found is None or not (seconds := int(found[1]) * _SECONDS[found[2]]):
            self.fail(f"{value!r} is not a length of time; write it as 15m, 1h or 2d", param, ctx)
        if seconds > KEEP_S:
            self.fail(f"{value!r} is too long; denials are kept for 2d", param, ctx)
        return float(seconds)


@click.command()
@click.argument("identity")
@click.option(
    "--since", type=SpanType(), default="1d", help="How far back: 15m, 1h, 2d; default 1d."
)
@with_json
@with_appcontext
def why(identity: str, since: float, *, as_json: bool) -> None:
    """Say why IDENTITY was denied lately, and when its next call is free.

    IDENTITY is written as for `inspect`. Times are by UTC.
    """
    with reported_errors():
        found, unkept = denials_of(identity, since=since)
    if as_json:
        echo_json([_as_json(record) for record in found])
    else:
        for record in found:
            click.echo(printable(_sentence(record)))
    span = span_text(int(since * 1_000_000))
    if not found:
        click.echo(f"No denial of {identity} is known in the last {span}.", err=True)
    if unkept:
        click.echo(
            f"In the last {span}, {unkept} denials were too many to be kept, of any caller.",
            err=True,
        )


class Denied(NamedTuple):
    """Denials, the first one first, and how many of any caller were too many to be kept."""

    records: list[DenialRecord]
    unkept: int


def denials_of(*identities: str, since: float, most: int = MOST_READ) -> Denied:
    """The denials of these identities, or of all, in that many seconds before now, of the ``most``
    entries that were written last."""
    found: list[DenialRecord] = []
    unkept, is_counted = 0, not identities
    for limiter in shared_limiters():
        records = limiter.denials.read(time.time() - since, most=most)
        meant = [_meant(limiter, text) for text in identities]
        names = {_recorded(each) for kinds in meant for each in kinds.values()} | {*identities}
        own = [
            each
            for each in records
            if each.limit and (not names.isdisjoint((each.identity, *each.callers)) or not names)
        ]
        is_counted = is_counted or any(meant) or bool(own)
        if not own:
            for kinds in meant:
                _check(limiter, kinds)
        found += own
        unkept += sum(each.count for each in records if not each.limit)
    if not is_counted:
        raise click.ClickException(
            f"No limit counts {identities[0]!r}; `flask ratelimit show` lists all."
        )
    return Denied(sorted(found, key=lambda record: record.at), unkept)


def _meant(limiter: Limiter, text: str) -> dict[str, str]:
    """The identities that an operator may mean, by the kind that a limit counts."""
    kinds = dict.fromkeys(row.key for row in limiter.inventory.all_rows(application()))
    meant = {kind: limiter.callers.identity(kind, text) for kind in kinds}
    return {kind: identity for kind, identity in meant.items() if identity}


def _check(limiter: Limiter, meant: Mapping[str, str]) -> None:
    """Raise ``ValueError`` if the application knows none of the identities."""
    mistakes = []
    for kind, identity in meant.items():
        try:
            limiter.callers.check(kind, identity)
        except ValueError as error:
            mistakes.append(error)
    if mistakes and len(mistakes) == len(meant):
        raise mistakes[0]


def _recorded(identity: str) -> str:
    """The identity as records have it: a long one by its hash."""
    name = parsed_key(bucket_key("", identity))
    return name.identity if name else identity


def _as_json(record: DenialRecord) -> dict[str, Any]:
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
    """Why the caller was denied, as ``flask ratelimit why`` says it."""
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
        left = f"{_units(record, record.remaining)} left"
        if record.unit != "requests":
            left += f", the call costs {_units(record, record.cost)}"
    if wait_ms is not None:
        free = f"next free at {_clock(record.at + wait_ms / 1000)}"
        wait = span_text(wait_ms * 1000)
    more = f"{record.count - 1} more like this until {_clock(record.until)}"
    return Explanation(
        at=_clock(record.at),
        limit=f"{record.limit!r}{shown}",
        cause=cause,
        left=left,
        free=free,
        wait=wait,
        degraded=_DEGRADED.get(record.degraded, ""),
        more=more if record.count > 1 else "",
    )


def _sentence(record: DenialRecord) -> str:
    said = explained(record)
    parts = [f"{said.at} denied by {said.limit} at {record.endpoint or '-'}: "]
    parts.append(", ".join(filter(None, (said.cause, said.free, said.degraded))))
    if record.request_id:
        parts.append(f" (request {record.request_id})")
    if said.more:
        parts.append(f"; {said.more}")
    return "".join(parts)


def _units(record: DenialRecord, units: int) -> str:
    if record.unit == "usd":
        return f"{shown_dollars(units)} usd"
    return str(units) if record.unit == "requests" else f"{units} {record.unit}"


def _clock(at_s: float) -> str:
    """The time of day; with its date if that is another day."""
    at = datetime.fromtimestamp(at_s, UTC)
    is_today = at.date() == datetime.fromtimestamp(time.time(), UTC).date()
    return f"{at:%H:%M:%S}" if is_today else f"{at:%Y-%m-%d %H:%M:%S}"


# -- limits in shadow and candidates -------------------------------------------------------------

shadow = AppGroup("shadow", help="Judge limits in shadow, and candidates.")


@shadow.command()
@click.option("--limit", help="Only the limit of this name.")
@with_json
def report(limit: str | None, *, as_json: bool) -> None:
    """Say what limits in shadow and candidates would have denied.

    In the last hour and day, by whole hours: of admitted requests, and for callers without an
    amount of their own.
    """
    with reported_errors():
        shown = trial_results(limit)
    if as_json:
        echo_json(shown)
        return
    if not shown:
        click.echo("No request of the last day has met a limit in shadow or a candidate.", err=True)
        return
    heads = ("LIMIT", "TRIED", "ENFORCED", "LAST", "REQUESTS", "DENIED", "IDENTITIES", "WORST HIT")
    echo_table(heads, [_line(each) for each in shown])
    for each in shown:
        if each["period"] == "day":
            click.echo(printable(f"{each['limit']}, {each['amount']}: {advice_text(each)}"))


def trial_results(limit: str | None = None) -> list[dict[str, Any]]:
    """What was counted of each trial, in the last hour and day; of that limit's alone if named."""
    shown: list[dict[str, Any]] = []
    known: dict[str, None] = {}
    for limiter in shared_limiters():
        tried = (r for r in limiter.inventory.all_rows(application()) if _is_tried(r.limit))
        known.update(dict.fromkeys(row.limit.label for row in tried))
        for period, hours in (("hour", 1), ("day", 24)):
            found = limiter.trials.read(hours)
            known.update(dict.fromkeys(trial.limit for trial in found))
            shown += [_result(trial, counts, period) for trial, counts in found.items()]
    if limit is not None and limit not in known:
        names = ", ".join(known) or "none"
        raise ValueError(f"No limit {limit!r} is in shadow or has a candidate; found: {names}.")
    own = [each for each in shown if limit in (None, each["limit"])]
    return sorted(own, key=lambda each: (each["limit"], each["amount"]))


def _is_tried(limit: Limit) -> bool:
    is_shadow = limit.mode != "enforce" and limit.traits.on_trial
    return is_shadow or limit.candidate is not None


def _result(trial: Trial, counts: Counts, period: str) -> dict[str, Any]:
    enough = counts.enough() if trial.is_window else None
    is_above = enough is not None and not trial.enforced and enough > trial.capacity
    return {
        "limit": trial.limit,
        "amount": trial.amount,
        "enforced": trial.enforced or None,
        "period": period,
        "unit": trial.unit,
        "requests": counts.requests,
        "denied": counts.denied,
        "identities": len(counts.used),
        "identities_denied": len(counts.by_identity),
        "is_estimate": counts.is_rough,
        "worst": [
            {"identity": identity, "denied": denied}
            for identity, denied in counts.by_identity.most_common(WORST)
        ],
        "enough_for_99_percent": None if is_above else enough,
        "source": "usage" if enough is not None and not is_above else "suggest",
    }


def _line(result: Mapping[str, Any]) -> tuple[str, ...]:
    about = "about " if result["is_estimate"] else ""
    worst = (f"{each['identity']} {about}{each['denied']}" for each in result["worst"][:3])
    return (
        result["limit"],
        result["amount"],
        result["enforced"] or "shadow",
        result["period"],
        str(result["requests"]),
        str(result["denied"]),
        f"{'at least ' if result['is_estimate'] else ''}{result['identities_denied']}",
        ", ".join(worst) or "-",
    )


def advice_text(result: Mapping[str, Any]) -> str:
    """The smallest amount that is enough for nearly all, by the result of a day."""
    enough = result["enough_for_99_percent"]
    if enough is None:
        return (
            "the smallest amount that denies nothing to 99 % is not known from what was counted; "
            "`flask ratelimit suggest` proposes one from traffic or the ledger."
        )
    shown = f"{shown_dollars(enough)} usd" if result["unit"] == "usd" else f"{enough}"
    return (
        f"{shown} would have denied nothing to 99 % of {result['identities']} identities, by their "
        "usage of the last day."
    )
