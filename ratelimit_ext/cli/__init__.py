"""``flask ratelimit``: see, check and change limits while workers run.

The commands read and change the storage that the workers share. Nothing here charges a limit.

An application's own commands may use :data:`UNTIL`, :func:`with_json`, :func:`by_operator`,
:func:`echo_json` and :func:`echo_table`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

import click
import flask
from flask.cli import AppGroup
from limits.storage import MemoryStorage, RedisStorage

from ratelimit_ext.cli.simulation import simulate_command, suggest_command
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.key import FORMAT, parsed_key
from ratelimit_ext.core.traits import strategies_taking, traits_of
from ratelimit_ext.engine.names import held_calls, stored_names
from ratelimit_ext.web.commands import EXTENSION
from ratelimit_ext.web.extension import Limiter
from ratelimit_ext.web.inventory import Row
from ratelimit_ext.web.overrides import Override
from ratelimit_ext.web.storage import storage_prefix

#: How many buckets are asked for at once.
AT_ONCE: Final = 200
#: How many names of the storage a command reads by default.
MOST_NAMES: Final = 100_000
#: A block that lasts longer has no end.
ENDLESS_US: Final = 5 * 365 * 86_400_000_000

NOT_SHARED: Final = (
    "The limits are in the memory of each worker (memory://), which no command can see or change. "
    "Run the command while the server runs, and set RATELIMIT_STORAGE_URI to its storage."
)
NOT_SEARCHABLE: Final = "This storage cannot be searched; only Redis and Valkey can."

F = TypeVar("F", bound=Callable[..., Any])

ratelimit = AppGroup("ratelimit", help="See, check and change limits.")
override = AppGroup("override", help="Give single identities another amount for some time.")
for command in (override, simulate_command, suggest_command):
    ratelimit.add_command(command)


# -- arguments and output ----------------------------------------------------------------------


class UntilType(click.ParamType[float]):
    """An instant in the future, in seconds since 1970: a duration (90m, 2h, 7d), a time of day, a
    date, or a date and a time; by UTC unless it states an offset."""

    name = "time"
    FORMS: Final = "write it as 2h, 7d, 17:30, tomorrow 9:00, 2026-11-27 or '2026-11-27 09:00'"
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


def _time(at_s: float | None) -> str:
    return "-" if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _iso(at_s: float | None) -> str | None:
    return None if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _span(length_us: int) -> str:
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


# -- what is read ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What a limit has counted of an identity. ``free_us`` is the wait of the smallest call."""

    row: Row
    identity: str
    verdict: Verdict
    now_us: int
    override: Override | None = None
    held: int = 0

    @property
    def used(self) -> int:
        return max(0, self.row.limit.capacity - self.verdict.remaining)

    @property
    def share(self) -> float:
        """Which part of the limit is used."""
        return self.used / self.row.limit.capacity

    @property
    def free_us(self) -> int | None:
        """``None``: there is no wait that would be enough."""
        return 0 if self.verdict.allowed else self.verdict.retry_after_us

    @property
    def is_guard(self) -> bool:
        return not self.row.limit.visible

    def as_json(self) -> dict[str, Any]:
        limit, free_us = self.row.limit, self.free_us
        shown = {
            "limit": self.row.name,
            "identity": self.identity,
            "strategy": limit.strategy,
            "key": self.row.key,
            "plan": self.row.plan or None,
            "mode": limit.mode,
            "allowed": self.verdict.allowed,
            "retry_after": None if free_us is None else free_us / 1_000_000,
        }
        if self.is_guard:
            return shown
        return {
            **shown,
            "unit": limit.unit,
            "amount": limit.outside(limit.capacity),
            "used": limit.outside(self.used),
            "remaining": limit.outside(self.verdict.remaining),
            "share": round(self.share, 4),
            "reset_after": self.verdict.reset_after_us / 1_000_000,
            "holds": self.held,
            "override": None if self.override is None else _override_json(self.override),
        }


class Reader:
    """Reads the state of limits, without charging them."""

    def __init__(self, limiter: Limiter, app: flask.Flask) -> None:
        self._limiter = limiter
        self._app = app
        self.rows = limiter.inventory.all_rows(app)
        self._overrides = {(o.limit, o.identity): o for o in _overrides(limiter)}
        self._callers = limiter.callers
        self._plans: dict[str, str | None] = {}
        self._amounts: dict[str, Mapping[str, str]] = {}

    def of_identity(self, text: str) -> list[State]:
        """The states of all limits that count the identity, each once."""
        wanted: dict[str, tuple[Row, str]] = {}
        for row in self.rows:
            identity = self._callers.identity(row.key, text)
            if identity and self._applies(row, identity):
                wanted.setdefault(row.bucket(identity), (row, identity))
        return self._states(wanted)

    def _applies(self, row: Row, identity: str) -> bool:
        """Whether the limit is of the identity's plan, and not for others alone."""
        if row.plan and self._plan(identity) not in (row.plan, None):
            return False
        return not row.is_optional or self._text(row, identity) is not None

    def used(self, limit: str | None, most: int) -> tuple[list[State], bool]:
        """The states of what is stored of the limits, or of one by its name; and whether there are
        more names than were read."""
        by_prefix: dict[str, list[Row]] = {}
        for row in self.rows:
            if limit in (None, row.name, row.limit.name) and row.limit.visible:
                by_prefix.setdefault(row.prefix, []).append(row)
        names, has_more = self._names(most)
        wanted: dict[str, tuple[Row, str]] = {}
        for name in names:
            parts = parsed_key(name)
            if parts is not None and (rows := by_prefix.get(parts.prefix)):
                wanted[name] = self._of_plan(rows, parts.identity), parts.identity
        return [state for state in self._states(wanted) if state.used], has_more

    def blocked(self, most: int) -> list[State]:
        """The states of the identities that are blocked."""
        by_prefix = {row.prefix: row for row in self.rows if row.limit.strategy in _blocks()}
        wanted = {}
        for strategy in _blocks():
            for name in self._names(most, f"{traits_of(strategy).code}:")[0]:
                parts = parsed_key(name)
                if parts is not None and (row := by_prefix.get(parts.prefix)):
                    wanted[name] = row, parts.identity
        return [state for state in self._states(wanted) if not state.verdict.allowed]

    def _of_plan(self, rows: list[Row], identity: str) -> Row:
        plan = self._plan(identity) if len(rows) > 1 else None
        return next((row for row in rows if row.plan == plan), rows[0])

    def _plan(self, identity: str) -> str | None:
        if identity not in self._plans:
            self._plans[identity] = self._callers.plan(identity)
        return self._plans[identity]

    def _names(self, most: int, beginning: str = "") -> tuple[list[str], bool]:
        """The names of buckets, and whether there are more than ``most``."""
        storage = self._limiter.storage
        if not isinstance(storage, RedisStorage):
            raise click.ClickException(NOT_SEARCHABLE)
        prefix = f"{storage_prefix(storage)}:{FORMAT}:{beginning}"
        with self._errors():
            names = list(stored_names(storage.get_connection(), prefix, most + 1))
        return list(dict.fromkeys(names[:most])), len(names) > most

    def _states(self, wanted: Mapping[str, tuple[Row, str]]) -> list[State]:
        """The state of each bucket, with the amount that its identity has."""
        states = []
        items = list(wanted.items())
        for start in range(0, len(items), AT_ONCE):
            part = [(key, *self._own(row, name)) for key, (row, name) in items[start:][:AT_ONCE]]
            charges = [Charge(row.limit, key) for key, row, _ in part]
            decision = self._limiter.engine.admit(charges, take=False)
            verdicts = {verdict.charge.key: verdict for verdict in decision.verdicts}
            held = self._held([key for key, row, _ in part if row.limit.held])
            states += [
                State(
                    row=row,
                    identity=wanted[key][1],
                    verdict=verdicts[key],
                    now_us=decision.now_us,
                    override=override,
                    held=held.get(key, 0),
                )
                for key, row, override in part
            ]
        return states

    def _own(self, row: Row, identity: str) -> tuple[Row, Override | None]:
        """The limit with the identity's amount, and the override if it has one."""
        override = self._overrides.get((row.limit.name, identity))
        text = self._text(row, identity)
        if text is not None:
            with contextlib.suppress(ValueError):  # of an older policy: it does not apply
                row = row.with_amount(text)
        return row, override

    def _text(self, row: Row, identity: str) -> str | None:
        """The identity's own amount, by an override or by the application."""
        if override := self._overrides.get((row.limit.name, identity)):
            return override.amount
        if identity not in self._amounts:
            self._amounts[identity] = self._callers.amounts(identity)
        return self._amounts[identity].get(row.limit.name)

    def _held(self, keys: list[str]) -> dict[str, int]:
        storage = self._limiter.storage
        if not isinstance(storage, RedisStorage):
            return {}
        with self._errors():
            return dict(zip(keys, held_calls(storage.get_connection(), keys), strict=True))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._limiter.storage.base_exceptions as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error


class Named(NamedTuple):
    """The limits of one name, and the identity that an operator means in them."""

    limiter: Limiter
    rows: list[Row]
    identity: str


def _blocks() -> tuple[str, ...]:
    return strategies_taking("block")


def _overrides(limiter: Limiter) -> list[Override]:
    try:
        return limiter.overrides.all()
    except ValueError:  # this storage keeps none
        return []


def _app() -> flask.Flask:
    return cast(flask.Flask, cast(Any, flask.current_app)._get_current_object())


def _limiters() -> list[Limiter]:
    """The application's extensions that limit something."""
    limiters: list[Limiter] = flask.current_app.extensions[EXTENSION]
    enabled = [limiter for limiter in limiters if limiter.enabled]
    if not enabled:
        raise click.ClickException("Rate limits are disabled (RATELIMIT_ENABLED).")
    return enabled


def _shared_limiters() -> list[Limiter]:
    """Those whose storage is the workers'. ClickException if it is this process's memory."""
    limiters = _limiters()
    if any(isinstance(limiter.storage, MemoryStorage) for limiter in limiters):
        raise click.ClickException(NOT_SHARED)
    return limiters


def _readers() -> list[Reader]:
    return [Reader(limiter, _app()) for limiter in _shared_limiters()]


def _named(name: str, text: str, amount: str | None = None) -> Named:
    """The limits of that name. ``ValueError`` for an unknown name, amount or identity."""
    error: ValueError | None = None
    for limiter in _shared_limiters():
        try:
            rows = limiter.inventory.overridable(_app(), name, amount)
        except ValueError as found:
            error = error or found
            continue
        kinds = dict.fromkeys(row.key for row in rows)
        for kind in kinds:
            if identity := limiter.callers.identity(kind, text):
                limiter.callers.check(kind, identity)
                return Named(limiter, rows, identity)
        error = ValueError(f"{name} counts {', '.join(kinds)}; {text!r} cannot be one.")
    assert error is not None
    raise error


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Report errors as one sentence, with exit status 1."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except StorageUnavailable as error:
        raise click.ClickException(f"The limits cannot be read: {error}") from error


# -- files and definitions -----------------------------------------------------------------------


@ratelimit.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@with_json
def check(file: Path | None, *, as_json: bool) -> None:
    """Check FILE, or the configured policy.

    Prints every mistake with its line, and then exits with 1. Needs no storage.
    """
    limiters: list[Limiter] = flask.current_app.extensions[EXTENSION]
    with _reported():
        checked = limiters[0].checked_policy(_app(), file)
    policy = checked.policy
    # Limits of app.config are checked, too, and are not of the file.
    places = [limit.place for limit in policy.all_limits()]
    count = sum(place is not None and not place.origin.python for place in places)
    if as_json:
        shown = {"file": str(checked.file), "limits": count, "plans": [*policy.plans]}
        echo_json({**shown, "warnings": list(checked.warnings)})
        return
    plans = ", ".join(policy.plans) or "none"
    click.echo(f"{checked.file} is valid: {count} limits; plans: {plans}.")
    for warning in checked.warnings:
        click.echo(f"Warning: {warning}")


@ratelimit.command()
@click.option("--endpoint", help="Only the limits of this endpoint.")
@with_json
def show(endpoint: str | None, *, as_json: bool) -> None:
    """List every endpoint with its limits, and where each is written.

    Endpoints that have the same limits are listed together.
    """
    app = _app()
    if endpoint is not None and endpoint not in app.view_functions:
        known = ", ".join(sorted(app.view_functions.keys() - {"static"}))
        raise click.ClickException(f"There is no endpoint {endpoint!r}; endpoints: {known}.")
    listed: dict[str, list[dict[str, Any]]] = {}
    for limiter in _limiters():
        for group in limiter.inventory.groups(app, endpoint or ""):
            shown = listed.setdefault(group.title, [])
            for definition in group.definitions:
                try:
                    rows = list(limiter.inventory.rows(definition, group))
                except Exception:  # noqa: BLE001 - a function that needs a request
                    shown.append(_dynamic(definition))
                    continue
                shown += [_definition(row) for row in rows]
    if as_json:
        echo_json([{"endpoint": title, "limits": limits} for title, limits in listed.items()])
        return
    titles: dict[str, list[str]] = {}
    for title, limits in listed.items():
        titles.setdefault(json.dumps(limits, default=str), []).append(title)
    for number, (text, alike) in enumerate(titles.items()):
        click.echo(("\n" if number else "") + "\n".join(alike))
        limits = json.loads(text)
        if not limits:
            click.echo("  no limits")
            continue
        heads = [key for key in limits[0] if any(limit.get(key) for limit in limits)]
        table = [[str(limit.get(key) or "-") for key in heads] for limit in limits]
        echo_table(
            [f"  {heads[0].upper()}", *(h.upper().replace("_", " ") for h in heads[1:])],
            [[f"  {first}", *rest] for first, *rest in table],
        )


def _definition(row: Row) -> dict[str, Any]:
    limit = row.limit
    name = f"{row.name} ({row.method})" if row.method else row.name
    return {
        "limit": name,
        "amount": str(row.runtime.limit),
        "strategy": limit.strategy,
        "burst": limit.burst,
        "key": row.key,
        "plan": row.plan or None,
        "mode": None if limit.mode == "enforce" else limit.mode,
        "optional": "yes" if row.is_optional else None,
        "on_failure": row.on_failure,
        "source": _source(row.source),
    }


def _dynamic(definition: Any) -> dict[str, Any]:
    function = getattr(definition.limit_provider, "__name__", "a function")
    source = getattr(definition, "source", "")
    return {
        "limit": f"returned by {function}",
        "amount": "asked at each request",
        "source": _source(str(getattr(source, "located", source))),
    }


def _source(text: str) -> str:
    """A place, as a path from here if it lies below; of app.config, the key."""
    key = re.match(r'app\.config\["\w+"\]', text)
    return key[0] if key else text.removeprefix(f"{Path.cwd()}{os.sep}")


# -- states ---------------------------------------------------------------------------------------


@ratelimit.command()
@click.argument("identity")
@with_json
def inspect(identity: str, *, as_json: bool) -> None:
    """Show what every limit has counted of IDENTITY; nothing is charged.

    IDENTITY is a user, an address, or what the key function of a limit returns.
    """
    with _reported():
        states = [state for reader in _readers() for state in reader.of_identity(identity)]
    if not states:
        raise click.ClickException(
            f"No limit counts {identity!r}; `flask ratelimit show` lists all."
        )
    if as_json:
        echo_json([state.as_json() for state in states])
        return
    heads = ("LIMIT", "IDENTITY", "USED", "LEFT", "OF", "FREE", "FULL", "HOLDS", "NOTE")
    echo_table(heads, [_inspected(state) for state in states])


def _inspected(state: State) -> tuple[str, ...]:
    limit, verdict = state.row.limit, state.verdict
    free = _wait(state)
    if state.is_guard:
        note = "" if verdict.allowed else verdict.reason
        return (state.row.name, state.identity, "-", "-", "-", free, "-", "-", note)
    notes = [
        "" if limit.mode == "enforce" else limit.mode,
        f"plan {state.row.plan}" if state.row.plan else "",
        "" if state.override is None else _described(state.override),
    ]
    return (
        state.row.name,
        state.identity,
        str(limit.outside(state.used)),
        str(limit.outside(verdict.remaining)),
        f"{limit.outside(limit.capacity)} {limit.unit}",
        free,
        _span(verdict.reset_after_us) if state.used else "-",
        str(state.held or "-"),
        ", ".join(filter(None, notes)),
    )


def _wait(state: State) -> str:
    free_us = state.free_us
    if free_us is None or free_us > ENDLESS_US:
        return "never"
    return f"in {_span(free_us)}" if free_us else "now"


def _described(found: Override) -> str:
    until = f" until {_time(found.until)}" if found.until is not None else ""
    by = f" by {found.by}" if found.by else ""
    return f"override{until}{by}" + (f": {found.reason}" if found.reason else "")


@ratelimit.command()
@click.option("--limit", help="Only the limit of this name.")
@click.option("--most", type=click.IntRange(1), default=20, help="How many lines; default 20.")
@click.option("--scan", type=click.IntRange(1), default=MOST_NAMES, help="How many names to read.")
@with_json
def top(limit: str | None, most: int, scan: int, *, as_json: bool) -> None:
    """List the identities that use the largest share of a limit now."""
    _ranked(limit, 0.0, most, scan, as_json=as_json)


@ratelimit.command()
@click.option("--at", type=click.IntRange(1, 100), default=80, help="From how many percent on.")
@click.option("--limit", help="Only the limit of this name.")
@click.option("--most", type=click.IntRange(1), default=100, help="How many lines; default 100.")
@click.option("--scan", type=click.IntRange(1), default=MOST_NAMES, help="How many names to read.")
@with_json
def near(at: int, limit: str | None, most: int, scan: int, *, as_json: bool) -> None:
    """List the identities that have used 80 % of a limit, or more."""
    _ranked(limit, at / 100, most, scan, as_json=as_json)


def _ranked(limit: str | None, least: float, most: int, scan: int, *, as_json: bool) -> None:
    found: list[State] = []
    is_cut = False
    with _reported():
        readers = _readers()
        if limit is not None:
            _check_name(limit, readers)
        for reader in readers:
            states, has_more = reader.used(limit, scan)
            found += [state for state in states if state.share >= least]
            is_cut = is_cut or has_more
    found.sort(key=lambda state: (-state.share, state.row.name, state.identity))
    if is_cut:
        click.echo(f"Only {scan} names of the storage were read; --scan reads more.", err=True)
    if as_json:
        echo_json([state.as_json() for state in found[:most]])
        return
    if not found:
        what = f"has used {least:.0%} of a limit" if least else "has used a limit"
        click.echo(f"No identity {what}.", err=True)
        return
    heads = ("LIMIT", "IDENTITY", "USED", "OF", "SHARE", "FREE", "FULL")
    echo_table(heads, [_ranking(state) for state in found[:most]])


def _ranking(state: State) -> tuple[str, ...]:
    limit = state.row.limit
    return (
        state.row.name if limit.mode == "enforce" else f"{state.row.name} ({limit.mode})",
        state.identity,
        str(limit.outside(state.used)),
        f"{limit.outside(limit.capacity)} {limit.unit}",
        f"{state.share:.0%}",
        _wait(state),
        f"in {_span(state.verdict.reset_after_us)}",
    )


def _check_name(name: str, readers: Iterable[Reader]) -> None:
    known = dict.fromkeys(row.name for reader in readers for row in reader.rows)
    if name not in known:
        raise ValueError(f"There is no limit {name!r}; limits: {', '.join(known)}.")


@ratelimit.command()
@click.option("--scan", type=click.IntRange(1), default=MOST_NAMES, help="How many names to read.")
@with_json
def blocks(scan: int, *, as_json: bool) -> None:
    """List what is blocked, until when, why, and who did it."""
    found: list[dict[str, Any]] = []
    with _reported():
        for limiter in _shared_limiters():
            log = limiter.overrides.log()
            for state in Reader(limiter, _app()).blocked(scan):
                subject = state.row.limit.name, state.identity
                entries = (e for e in log if (e.limit, e.identity) == subject)
                last = next((e for e in entries if e.action == "block"), None)
                free_us = state.free_us
                is_endless = free_us is None or free_us > ENDLESS_US
                until = None if is_endless else (state.now_us + (free_us or 0)) / 1_000_000
                found.append(
                    {
                        "limit": state.row.name,
                        "identity": state.identity,
                        "reason": state.verdict.reason,
                        "until": _iso(until),
                        "by": last.by if last else None,
                        "note": last.reason if last else "",
                        "at": _iso(last.at) if last else None,
                    }
                )
    found = list({(each["limit"], each["identity"]): each for each in found}.values())
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo("Nothing is blocked.", err=True)
        return
    heads = ("LIMIT", "IDENTITY", "REASON", "UNTIL", "BY", "NOTE")
    echo_table(
        heads,
        [
            (
                b["limit"],
                b["identity"],
                b["reason"],
                b["until"] or "removed",
                b["by"] or "-",
                b["note"],
            )
            for b in found
        ],
    )


# -- changes --------------------------------------------------------------------------------------


@ratelimit.command()
@click.argument("identity")
@click.option("--limit", help="Only the limit of this name; default: all but guards.")
@by_operator
@with_json
def reset(identity: str, limit: str | None, reason: str, by: str, *, as_json: bool) -> None:
    """Forget what limits have counted of IDENTITY."""
    cleared: list[str] = []
    with _reported():
        readers = _readers()
        if limit is not None:
            _check_name(limit, readers)
        for limiter, reader in zip(_shared_limiters(), readers, strict=True):
            for state in reader.of_identity(identity):
                wanted = state.row.limit.visible if limit is None else state.row.name == limit
                key = state.verdict.charge.key
                if wanted and limiter.engine.clear([key]):
                    cleared.append(state.row.name)
            if cleared:
                limiter.overrides.note("reset", identity, limit=limit or "", reason=reason, by=by)
    if not cleared:
        raise click.ClickException(f"Nothing was counted of {identity!r}.")
    if as_json:
        echo_json({"identity": identity, "reset": cleared})
        return
    click.echo(f"Reset {', '.join(cleared)} of {identity}.")


@override.command("set")
@click.argument("identity")
@click.argument("limit")
@click.argument("amount")
@click.option("--until", type=UNTIL, help="When it ends, by UTC: 2h, 17:30, '2026-11-27 09:00'.")
@by_operator
@with_json
def set_override(
    *,
    identity: str,
    limit: str,
    amount: str,
    until: float | None,
    reason: str,
    by: str,
    as_json: bool,
) -> None:
    """Give IDENTITY the AMOUNT of LIMIT, as in "50 usd/day"; usage is kept.

    All workers apply it within 5 s. Without --until, it holds until `override clear`.
    """
    with _reported():
        named = _named(limit, identity, amount)
        made = named.limiter.override(
            limit, named.identity, amount, until=until, reason=reason, by=by
        )
    if as_json:
        echo_json(_override_json(made))
        return
    end = "until `flask ratelimit override clear`" if until is None else f"until {_time(until)}"
    click.echo(f"{made.identity} has {limit}={amount} {end}; all workers apply it within 5 s.")


@override.command("clear")
@click.argument("identity")
@click.argument("limit")
@by_operator
@with_json
def clear_override(identity: str, limit: str, reason: str, by: str, *, as_json: bool) -> None:
    """Remove the override of LIMIT from IDENTITY."""
    removed = ""
    with _reported():
        for limiter in _shared_limiters():
            rows = [row for row in limiter.inventory.all_rows(_app()) if row.limit.name == limit]
            kinds = dict.fromkeys(row.key for row in rows)  # of a removed limit: as it was written
            meant = [limiter.callers.identity(kind, identity) for kind in kinds]
            for each in dict.fromkeys([*meant, identity]):
                if each and limiter.overrides.clear(limit, each, reason=reason, by=by):
                    removed = each
    if not removed:
        raise click.ClickException(
            f"{identity} has no override of {limit!r}; `flask ratelimit override list` lists them."
        )
    if as_json:
        echo_json({"identity": removed, "limit": limit})
        return
    click.echo(f"{removed} has the usual {limit} again; all workers apply it within 5 s.")


@override.command("list")
@with_json
def list_overrides(*, as_json: bool) -> None:
    """List the overrides that apply."""
    with _reported():
        found = [each for limiter in _shared_limiters() for each in limiter.overrides.all()]
    if as_json:
        echo_json([_override_json(each) for each in found])
        return
    if not found:
        click.echo("There are no overrides.", err=True)
        return
    heads = ("LIMIT", "IDENTITY", "AMOUNT", "UNTIL", "BY", "SET", "REASON")
    echo_table(
        heads,
        [
            (o.limit, o.identity, o.amount, _time(o.until), o.by or "-", _time(o.at), o.reason)
            for o in found
        ],
    )


def _override_json(found: Override) -> dict[str, Any]:
    return {**asdict(found), "until": _iso(found.until), "at": _iso(found.at)}


@ratelimit.command("log")
@click.option("--most", type=click.IntRange(1), default=20, help="How many lines; default 20.")
@with_json
def show_log(most: int, *, as_json: bool) -> None:
    """List the latest changes by operators: overrides, resets and blocks."""
    with _reported():
        entries = [each for limiter in _shared_limiters() for each in limiter.overrides.log()]
    entries = sorted(entries, key=lambda entry: -entry.at)[:most]
    if as_json:
        echo_json([{**asdict(e), "until": _iso(e.until), "at": _iso(e.at)} for e in entries])
        return
    if not entries:
        click.echo("No operator has changed anything.", err=True)
        return
    heads = ("TIME", "BY", "CHANGE", "LIMIT", "IDENTITY", "AMOUNT", "UNTIL", "REASON")
    echo_table(
        heads,
        [
            (
                _time(e.at),
                e.by or "-",
                e.action,
                e.limit or "all",
                e.identity,
                e.amount or "-",
                _time(e.until),
                e.reason,
            )
            for e in entries
        ],
    )
