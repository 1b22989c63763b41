"""Reads what limits have counted, without charging them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, islice
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

import flask
from limits.storage import RedisStorage, Storage

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.errors import OperatorError, StorageUnavailable
from ratelimit_ext.core.key import FORMAT, BucketName, bucket_key, member_key, parsed_key
from ratelimit_ext.core.traits import strategies_taking, traits_of
from ratelimit_ext.engine.redis import held_calls, stored_names
from ratelimit_ext.operators.texts import iso_time, span_text, with_times
from ratelimit_ext.records.overrides import LogEntry, Override
from ratelimit_ext.records.store import storage_prefix
from ratelimit_ext.web.components import Components
from ratelimit_ext.web.declarations.callbacks import Callers
from ratelimit_ext.web.inventory import Row

#: How many buckets are asked for at once.
AT_ONCE: Final = 200
#: Of how many buckets the application is asked at once whose they are.
AHEAD: Final = 10 * AT_ONCE
#: How many names of the storage a command reads by default.
MOST_NAMES: Final = 100_000
#: How long it reads by default: the application may look up the plan of each identity.
LONGEST_S: Final = 30.0
#: The pauses after which a search asks a late storage again, in seconds. Each time it has the
#: deadline of a request; but a request asks once, and a search thousands of times.
PAUSES_S: Final = (0.2, 1.0, 3.0)
#: A block that lasts longer has no end.
ENDLESS_US: Final = 5 * 365 * 86_400_000_000

T = TypeVar("T")
Progress: TypeAlias = Callable[[int], None]
#: The limit of a bucket, and its identity; ``None`` for a limit that is not asked for.
Subject: TypeAlias = tuple[Row, str] | None
Bucket: TypeAlias = tuple[str, Subject]

NOT_SEARCHABLE: Final = "This storage cannot be searched; only Redis and Valkey can."


class Block(NamedTuple):
    """A blocked identity, until when (None: until it is removed), and the log's entry of it: ``by``
    is None if no operator blocked it. Times are in seconds since 1970."""

    limit: str
    identity: str
    reason: str
    until: float | None
    by: str | None
    note: str
    at: float | None

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "until": iso_time(self.until), "at": iso_time(self.at)}


@dataclass(frozen=True, slots=True)
class State:
    """What a limit has counted of an identity. ``free_us`` is the wait of the smallest call, and
    ``in_line`` is what those who wait for their turn will be charged."""

    row: Row
    identity: str
    verdict: Verdict
    now_us: int
    override: Override | None = None
    held: int = 0
    in_line: int = 0

    @property
    def bucket(self) -> str:
        return self.verdict.charge.key

    @property
    def used(self) -> int:
        if self.verdict.share is not None:
            return self.verdict.share.used
        return max(0, self.row.limit.capacity - self.verdict.remaining)

    @property
    def most(self) -> int:
        """The limit's capacity, or a member's part of it."""
        share = self.verdict.share
        return self.row.limit.capacity if share is None else share.part

    @property
    def share(self) -> float:
        """Which part of the limit is used."""
        return self.used / (self.most or 1)

    @property
    def free_us(self) -> int | None:
        """``None``: there is no wait that would be enough."""
        return 0 if self.verdict.allowed else self.verdict.retry_after_us

    @property
    def free_text(self) -> str:
        """When the smallest call is free: ``now``, ``in 5 min`` or ``never``."""
        free_us = self.free_us
        if free_us is None or free_us > ENDLESS_US:
            return "never"
        return f"in {span_text(free_us)}" if free_us else "now"

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
            **self.row.keywords,
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
            "keep": {name: limit.outside(units) for name, units in limit.keep},
            "fair": limit.fair_text or None,
            **self._member(),
            "share": round(self.share, 4),
            "reset_after": self.verdict.reset_after_us / 1_000_000,
            "holds": self.held,
            "in_line": self.in_line,
            "override": None if self.override is None else with_times(self.override),
        }

    def _member(self) -> dict[str, Any]:
        if (share := self.verdict.share) is None:
            return {}
        limit, ahead = self.row.limit, share.until_us / 1_000_000
        shown = {"part": limit.outside(share.part), "ahead": limit.outside(share.ahead)}
        return {"members": share.members, **shown, "ahead_for": ahead}


class Reader:
    def __init__(self, components: Components, app: flask.Flask) -> None:
        self.components = components
        self.rows = components.inventory.all_rows(app)
        self._overrides: dict[tuple[str, str], Override] = {}
        with contextlib.suppress(OperatorError):  # this storage keeps none
            self._overrides = {(o.limit, o.identity): o for o in components.overrides.all()}
        self._callbacks = components.callbacks
        self._ask(components.callbacks.callers)

    def _ask(self, callers: Callers) -> None:
        self._plan_of, self._amounts_of = cache(callers.plan), cache(callers.amounts)

    def of_identities(self, *texts: str, kind: str | None = None) -> list[State]:
        """Return the states of all limits that count these identities, or of one kind."""
        wanted: dict[str, tuple[Row, str]] = {}
        rows = [row for row in self.rows if kind in (None, row.key)]
        identity_of = cache(self._callbacks.identity)
        for text in texts:
            for row in rows:
                identity = identity_of(row.kinds, text)
                if identity and self._applies(row, identity):
                    wanted.setdefault(row.bucket(identity), (row, identity))
        return self._states(wanted)

    def shares(self, group: str, *members: str) -> list[State]:
        """Return what these members have of the group's shared budgets, all by their identities."""
        states = []
        naming, engine = self.components.inventory.naming, self.components.engines.primary
        for state in self.of_identities(group):
            row, identity = state.row, state.identity
            if not row.limit.has_shares:
                continue
            own = row._replace(limit=row.limit.share())
            prefix = naming.prefix(own.limit, row.scope)
            own, whole = own._replace(prefix=prefix), Charge(row.limit, row.bucket(identity))
            for start in range(0, len(members), AT_ONCE):
                part = members[start:][:AT_ONCE]
                keys = [member_key(prefix, bucket_key("", each), whole.key) for each in part]
                charges = [whole, *(Charge(own.limit, key) for key in keys)]
                decision = engine.admit(charges, take=False)
                states += [
                    State(own, member, verdict, decision.now_us)
                    for member, verdict in zip(part, decision.verdicts[1:], strict=True)
                ]
        return states

    def _applies(self, row: Row, identity: str) -> bool:
        """Return whether the limit is of the identity's plan, and not for others alone."""
        if row.plan and self._plan(row, identity) not in (row.plan, None):
            return False
        return not row.is_optional or self._text(row, identity) is not None

    def used(
        self, limit: str | None, *, least: float, scan: int, until: float, progress: Progress
    ) -> tuple[list[State], bool]:
        """Return the states of what is stored of the limits, or of one by its name, of which at
        least that share is used; and whether there are more names than were read: ``scan``, or
        those until that time of the monotonic clock."""
        rows = [row for row in self.rows if limit in (None, row.name, row.limit.name)]
        rows = [row for row in rows if row.limit.visible]
        names, left = self._names(ask=self._patiently), scan
        buckets = self._of_limits(islice(names, left + 1), rows)
        found: dict[str, State] = {}  # SCAN may return a name twice
        while piece := list(islice(buckets, min(AT_ONCE, left))):
            left -= len(piece)
            near = self._patiently(partial(self._states, dict(piece), least))
            found.update({state.bucket: state for state in near})
            progress(len(piece))
            if time.monotonic() >= until:
                break
        return list(found.values()), next(buckets, None) is not None

    def blocks(self, most: int) -> list[Block]:
        """Return what is blocked, of so many names. Also by surges, which no operator sets; not
        what a guard in shadow would deny."""
        log, strategies = self.components.overrides.log(), strategies_taking("unblock")
        codes = [f"{traits_of(strategy).code}:" for strategy in strategies]
        names = chain.from_iterable(islice(self._names(code), most) for code in codes)
        rows = (row for row in self.rows if row.limit.mode == "enforce")
        guards = (row for row in rows if row.limit.strategy in strategies)
        buckets, stored = self._of_limits(names, guards), list[State]()
        while piece := list(islice(buckets, AT_ONCE)):
            stored += self._states(dict(piece))
        return [_block(state, log) for state in stored if not state.verdict.allowed]

    def _of_limits(self, names: Iterable[str], rows: Iterable[Row]) -> Iterator[Bucket]:
        """Yield each name of a bucket, with its limit if it is one of these."""
        by_prefix: dict[str, list[Row]] = {}
        for row in rows:
            by_prefix.setdefault(row.prefix, []).append(row)
        ahead = iter(names)
        while piece := list(islice(ahead, AHEAD)):
            parsed = [(name, parsed_key(name) or BucketName("", "")) for name in piece]
            buckets = [(name, by_prefix.get(of.prefix, []), of.identity) for name, of in parsed]
            owner = self._callbacks.owner
            owners = {owner(own[0].kinds, identity) for _, own, identity in buckets if own}
            self._ask(self._callbacks.callers.batch(owners))
            for name, own, identity in buckets:
                yield name, (self._of_plan(own, identity), identity) if own else None

    def _of_plan(self, rows: list[Row], identity: str) -> Row:
        plan = self._plan(rows[0], identity) if len(rows) > 1 else None
        return next((row for row in rows if row.plan == plan), rows[0])

    def _plan(self, row: Row, identity: str) -> str | None:
        return self._plan_of(self._callbacks.owner(row.kinds, identity))

    def _names(self, beginning: str = "", **options: Any) -> Iterator[str]:
        """Yield the names of buckets, in random order."""
        storage = self.components.storage
        if not isinstance(storage, RedisStorage):
            raise OperatorError("not_searchable", NOT_SEARCHABLE)
        prefix = f"{storage_prefix(storage)}:{FORMAT}:{beginning}"
        with self._errors():
            yield from stored_names(storage.get_connection(), prefix, **options)

    def _patiently(self, look: Callable[[], T]) -> T:
        for pause_s in PAUSES_S:
            with contextlib.suppress(StorageUnavailable), self._errors():
                return look()
            time.sleep(pause_s)
        return look()

    def _states(self, wanted: Mapping[str, Subject], least: float | None = None) -> list[State]:
        """Return the states of buckets; with a share, only of those that have used something, and
        at least that."""
        states: list[State] = []
        items = [(key, *subject) for key, subject in wanted.items() if subject]
        for start in range(0, len(items), AT_ONCE):
            part = [(key, who, *self._own(row, who)) for key, row, who in items[start:][:AT_ONCE]]
            charges = [Charge(row.limit, key) for key, _, row, _ in part]
            decision = self.components.engines.primary.admit(charges, take=False)
            verdicts = {verdict.charge.key: verdict for verdict in decision.verdicts}
            read = [
                State(
                    row=row,
                    identity=who,
                    verdict=verdicts[key],
                    now_us=decision.now_us,
                    override=override,
                    in_line=_in_line(decision, place) if row.limit.wait else 0,
                )
                for place, (key, who, row, override) in enumerate(part)
            ]
            if least is not None:
                read = [state for state in read if state.used and state.share >= least]
            held = self._held([state.bucket for state in read if state.row.limit.held])
            states += [replace(state, held=held.get(state.bucket, 0)) for state in read]
        return states

    def _own(self, row: Row, identity: str) -> tuple[Row, Override | None]:
        """Return the limit with the identity's amount, and the override if it has one."""
        override = self._overrides.get((row.limit.name, identity))
        text = self._text(row, identity)
        if text is not None:
            with contextlib.suppress(ValueError):  # of an older policy: it does not apply
                row = row.with_amount(text)
        return row, override

    def _text(self, row: Row, identity: str) -> str | None:
        """Return the identity's amount, by an override or by the application."""
        if override := self._overrides.get((row.limit.name, identity)):
            return override.amount
        amounts = self._amounts_of(self._callbacks.owner(row.kinds, identity))
        return amounts.get(row.limit.name)

    def _held(self, keys: list[str]) -> dict[str, int]:
        storage = self.components.storage
        if not isinstance(storage, RedisStorage):
            return {}
        with self._errors():
            return dict(zip(keys, held_calls(storage.get_connection(), keys), strict=True))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except cast(Storage, self.components.storage).base_exceptions as error:
            raise StorageUnavailable(f"the storage failed: {error}") from error


def _in_line(decision: Decision, place: int) -> int:
    own, at = decision.part(place)
    return own.overdrawn(at) or 0


def _block(state: State, log: Sequence[LogEntry]) -> Block:
    subject = state.row.limit.name, state.identity
    entries = (each for each in log if (each.limit, each.identity) == subject)
    last = next((each for each in entries if each.action != "unblock"), None)
    free_us = state.free_us
    is_endless = free_us is None or free_us > ENDLESS_US
    return Block(
        limit=state.row.name,
        identity=state.identity,
        reason=state.verdict.reason,
        until=None if is_endless else (state.now_us + (free_us or 0)) / 1_000_000,
        by=last.by if last else None,
        note=last.reason if last else "",
        at=last.at if last else None,
    )
