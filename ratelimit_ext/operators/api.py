"""``limiter.operators``: what operators see and change of the limits, from code or a command."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import flask
from limits.storage import MemoryStorage

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.core.key import Identity
from ratelimit_ext.operators.denials import Denied, denials_of
from ratelimit_ext.operators.shadow import shadow_results
from ratelimit_ext.operators.usage import LONGEST_S, MOST_NAMES, Block, Reader, State
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.records.denials import MOST_READ
from ratelimit_ext.records.overrides import LogEntry, Override
from ratelimit_ext.records.restoration import RestoredUsage, restore
from ratelimit_ext.settlements.queue import EXIT_S
from ratelimit_ext.strategies.guards.block import BlockReason, check_reason, length_us, new_block
from ratelimit_ext.web.commands import EXTENSION, application
from ratelimit_ext.web.components import Components
from ratelimit_ext.web.declarations.callbacks import Callers, ChangeLog, CheckedPolicy
from ratelimit_ext.web.declarations.policies import named_groups
from ratelimit_ext.web.hooks import RequestHooks
from ratelimit_ext.web.inventory import Decider, Group, Row
from ratelimit_ext.web.request.request_state import RequestLimit
from ratelimit_ext.web.request.resolver import Resolver

T = TypeVar("T")

NOT_SHARED: Final = (
    "The limits are in the memory of each worker (memory://), which no command can see or change. "
    "Set RATELIMIT_STORAGE_URI to a storage that all share, or start the server that has it."
)


class Operators:
    """The limits of the current application: of one extension (``limiter.operators``), or of all of
    them, for commands.

    Only :meth:`restore` charges a limit. Raises :class:`OperatorError` for what cannot be done, and
    ``StorageUnavailable``. An ``identity`` is what a limit's key function returns; as an operator
    writes it, it may be ``user:ada`` or an address.
    """

    def __init__(self, *attached: RequestHooks) -> None:
        self._attached = attached

    @property
    def is_shared(self) -> bool:
        """Whether limits apply, and this process sees those of the workers."""
        enabled = [hooks.components.storage for hooks in self._attached if hooks.is_enabled]
        return bool(enabled) and not any(isinstance(storage, MemoryStorage) for storage in enabled)

    def shared(self) -> Operators:
        """Return these operators. Raises ``OperatorError`` if limits are this process's own."""
        self._enabled()
        if not self.is_shared:
            raise OperatorError("not_shared", NOT_SHARED)
        return self

    def _enabled(self) -> list[Components]:
        """Return the enabled extensions' components. Raises ``OperatorError`` if there are none."""
        enabled = [hooks.components for hooks in self._attached if hooks.is_enabled]
        if not enabled:
            raise OperatorError(
                "disabled",
                "Rate limits are disabled (RATELIMIT_ENABLED), or limiter.init_app(app) was not "
                "called.",
            )
        return enabled

    def _readers(self) -> list[Reader]:
        return [Reader(components, application()) for components in self._enabled()]

    def _first(self, act: Callable[[Components], T]) -> T:
        """Return the answer of the first extension that has such a limit. Raises the first
        extension's ``OperatorError`` if none has."""
        error: OperatorError | None = None
        for components in self._enabled():
            try:
                return act(components)
            except OperatorError as refused:
                error = error or refused
        assert error is not None
        raise error

    # -- what there is ---------------------------------------------------------------------------

    def groups(self, endpoint: str = "") -> Iterator[tuple[Group, list[Row | Any]]]:
        """Return the endpoints, or one, each with its limits: rows, and definitions whose string is
        known only in a request."""
        app = application()
        if endpoint and endpoint not in app.view_functions:
            endpoints = ", ".join(sorted(app.view_functions.keys() - {"static"}))
            raise OperatorError(
                "unknown_endpoint", f"There is no endpoint {endpoint!r}; endpoints: {endpoints}."
            )
        for components in self._enabled():
            for group in components.inventory.groups(app, endpoint):
                rows: list[Row | Any] = []
                for definition in group.definitions:
                    try:
                        rows += components.inventory.rows(definition, group)
                    except Exception:  # noqa: BLE001 - a function that needs a request
                        rows.append(definition)
                yield group, rows

    def rows(self) -> list[Row]:
        """Return every limit once for each bucket and plan."""
        app = application()
        return [row for components in self._enabled() for row in components.inventory.all_rows(app)]

    def checked_policy(self, file: Path | None = None) -> CheckedPolicy:
        """Return the policy in the file, or the configured one, with warnings. Raises
        ``ConfigurationError`` with every mistake."""
        components, app = self._attached[0].components, application()
        checked = components.policies.checked(app, file)
        manager = components.policies.manager_with(app, checked.policy)
        return checked._replace(
            warnings=(*checked.warnings, *checked.policy.warnings(named_groups(app))),
            unapplied=tuple(components.inventory.unapplied(app, manager)),
        )

    def check_policy_file(self, file: str | os.PathLike[str]) -> Policy:
        """Check the policy in a file as at a start of the application, without applying it. Raises
        ``ConfigurationError`` with every mistake and its line."""
        return self._attached[0].components.policies.check_file(application(), file)

    def resolver(self, file: str | os.PathLike[str] | None = None) -> Resolver:
        """Return what finds the limits of routes: by the policy of ``file`` instead of the
        application's own, for a simulation. Raises ``ConfigurationError``."""
        components, app = self._enabled()[0], application()
        components.policies.complete(app)
        if file is None:
            return components.resolver
        checked = components.policies.checked(app, Path(file))
        return components.resolver_of(components.policies.manager_with(app, checked.policy))

    @property
    def decider(self) -> Decider:
        """Returns the name of the callable at which an endpoint's limits are decided."""
        return self._enabled()[0].inventory.decider

    @property
    def identities(self) -> Mapping[str, Identity]:
        """The identity functions by the names that a policy can use."""
        return self._attached[0].components.callbacks.identities

    @property
    def limit_keywords(self) -> list[str]:
        """The application's own keywords of limits."""
        return [*self._attached[0].components.callbacks.limit_keywords]

    @property
    def callers(self) -> Callers:
        """What the application knows of its callers. An application may set its own."""
        return self._attached[0].components.callbacks.callers

    @callers.setter
    def callers(self, callers: Callers) -> None:
        for hooks in self._attached:
            hooks.components.callbacks.callers = callers

    @property
    def change_log(self) -> ChangeLog | None:
        """Where the application keeps the changes of operators, if it does."""
        return self._attached[0].components.callbacks.change_log

    @change_log.setter
    def change_log(self, log: ChangeLog) -> None:
        for hooks in self._attached:
            hooks.components.callbacks.change_log = log

    def policy_checker(
        self, function: Callable[[Path | None], CheckedPolicy]
    ) -> Callable[[Path | None], CheckedPolicy]:
        """Register the function that ``flask ratelimit check`` calls with the file of its argument,
        or ``None``, in place of :meth:`check_policy_file`: for an application that checks more."""
        for hooks in self._attached:
            hooks.components.callbacks.policy_checker = function
        return function

    # -- what limits have counted ----------------------------------------------------------------

    def states(self, *identities: str, kind: str | None = None) -> list[State]:
        """Return what every limit has counted of these identities, written as by operators; with a
        ``kind`` such as "user", only limits that count it."""
        readers = self._readers()
        return [s for reader in readers for s in reader.of_identities(*identities, kind=kind)]

    def shares(self, group: str, *members: str) -> list[State]:
        """Return what members have of the budgets that a group shares fairly (``fair``). A member
        is what the function returns that says who of the group has sent a request."""
        return [s for reader in self._readers() for s in reader.shares(group, *members)]

    def used(
        self,
        limit: str | None = None,
        *,
        least: float = 0.0,
        scan: int = MOST_NAMES,
        seconds: float = LONGEST_S,
        progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[list[State], bool]:
        """Return who has used at least that share of a limit (of that name, if one is given), the
        largest share first; and whether the storage has more names than were read.

        It reads at most ``scan`` names for at most ``seconds``. ``progress`` is called after each
        piece with its number of names."""
        readers = self._readers()
        if limit is not None:
            _check_name(limit, readers)
        bounds: Any = {"least": least, "scan": scan, "until": time.monotonic() + seconds}
        read = [reader.used(limit, progress=progress, **bounds) for reader in readers]
        ranked = [state for states, _ in read for state in states]
        ranked.sort(key=lambda state: (-state.share, state.row.name, state.identity))
        return ranked, any(is_cut for _, is_cut in read)

    def reset(
        self, identity: str, limit: str | None = None, *, reason: str = "", by: str = ""
    ) -> list[str]:
        """Forget what all limits but guards have counted of an identity, or the one of that name;
        returns their names. It is written as by operators."""
        readers = self._readers()
        if limit is not None:
            _check_name(limit, readers)
        cleared = [
            state.row.name
            for reader in readers
            for state in reader.of_identities(identity)
            if (state.row.limit.visible if limit is None else state.row.name == limit)
            and reader.components.engines.primary.clear([state.bucket])
        ]
        if not cleared:
            counted = f"{identity!r} by {limit!r}" if limit else repr(identity)
            raise OperatorError("nothing_counted", f"Nothing was counted for {counted}.")
        self.note("reset", identity, limit=limit or "", reason=reason, by=by)
        return cleared

    def look(self, charge: Charge) -> Verdict:
        """Return the verdict on a charge of an event as of now; it is not charged."""
        engine = self._enabled()[0].engines.primary
        return engine.admit([charge], take=False).verdicts[0]

    def restore(
        self, shown: RequestLimit, uses: Iterable[tuple[datetime, int]], *, apply: bool = True
    ) -> RestoredUsage:
        """Charge a limit of :meth:`LimitedRequest.peek` what it should have counted after these
        ``uses``, each with its instant and units (dollars in micro-dollars), and has not: the
        storage lost it.

        Without ``apply``, only say how much that is. A limit that counts more is left alone.
        """
        now_us = clock.now_us()
        exact = [(int(at.timestamp() * 1_000_000) - now_us, units) for at, units in uses]
        engine = self._enabled()[0].engines.primary
        return restore(engine, shown.verdict.charge, exact, apply=apply)

    def give_back(self, given: Iterable[tuple[RequestLimit, int]]) -> None:
        """Have limits of :meth:`LimitedRequest.peek` count so many units less in their present
        windows, at least 0, all in one step."""
        changes = [Change.adjust(shown.verdict, -units) for shown, units in given if units]
        self._enabled()[0].engines.primary.settle(changes)

    # -- what was decided ------------------------------------------------------------------------

    def denials(self, *identities: str, since: float, most: int = MOST_READ) -> Denied:
        """Return the denials of these identities, or of all, in that many seconds before now, of
        the ``most`` entries that were written last."""
        return denials_of(self._enabled(), application(), identities, since=since, most=most)

    def shadow_report(self, limit: str | None = None) -> list[dict[str, Any]]:
        """Return what limits in shadow and candidates would have denied in the last hour and day;
        of that limit alone if named."""
        return shadow_results(self._enabled(), application(), limit)

    def counters(self, minutes: int) -> Mapping[int, Mapping[str, Counter[str]]]:
        """Return how many decisions each limit made, in each of the last minutes."""
        return self._enabled()[0].recorder.require_enabled().counters.read(minutes)

    # -- blocks ----------------------------------------------------------------------------------

    def block(
        self,
        name: str,
        identity: str,
        *,
        for_s: float | None = None,
        reason: BlockReason = "blocked",
    ) -> bool:
        """Block an identity at the limits ``unless blocked`` of that name, in all workers.

        For ``for_s`` seconds, or until :meth:`unblock`. False if it is blocked for as long already:
        a shorter block never ends a longer one.
        """
        try:
            for_us = length_us(for_s)
            check_reason(reason)
        except ValueError as error:
            raise OperatorError("wrong_block", f"{error}.") from None

        def act(components: Components) -> bool:
            charges = components.inventory.guards(application(), name, identity, "block")
            blocks = [new_block(charge, for_us, reason) for charge in charges]
            return components.engines.primary.settle(blocks) > 0

        return self._first(act)

    def unblock(self, name: str, identity: str) -> bool:
        """Lift all blocks of that name from the identity; False if there were none.

        The history of a surge of that name is forgotten."""

        def act(components: Components) -> bool:
            charges = components.inventory.guards(application(), name, identity, "unblock")
            return components.engines.primary.clear([charge.key for charge in charges]) > 0

        return self._first(act)

    def blocks(self, *, scan: int = MOST_NAMES) -> list[Block]:
        """Return what is blocked, sorted, among the ``scan`` names that are read of the storage."""
        found = (block for reader in self._readers() for block in reader.blocks(scan))
        blocks = {(block.limit, block.identity): block for block in found}
        return [blocks[name] for name in sorted(blocks)]

    # -- overrides, and the log ------------------------------------------------------------------

    def override(
        self,
        limit: str,
        identity: str,
        amount: str,
        *,
        until: float | None = None,
        reason: str = "",
        by: str = "",
        as_written: bool = False,
    ) -> Override:
        """Give an identity its amount of the limits of that name, in all workers within five
        seconds; usage is kept.

        ``until`` is in seconds since 1970; ``None``: until :meth:`clear_override`. ``as_written``:
        the identity is as an operator writes it.
        """

        def act(components: Components) -> Override:
            app = application()
            rows = components.inventory.adjustable(app, limit, amount)
            meant = _meant(components, limit, identity, rows) if as_written else identity
            return components.overrides.set(Override(limit, meant, amount, until, reason, by))

        try:
            return self._first(act)
        except OperatorError:
            enabled, app = self._enabled(), application()
            if identity != limit and any(p.inventory.named(app, identity) for p in enabled):
                raise OperatorError(
                    "swapped",
                    f"{identity!r} is the name of a limit. Write the identity first, then the "
                    "limit.",
                ) from None
            raise

    def overrides(self) -> list[Override]:
        """Return the overrides that apply."""
        return [override for c in self._enabled() for override in c.overrides.all()]

    def clear_override(
        self, limit: str, identity: str, *, reason: str = "", by: str = ""
    ) -> str | None:
        """Remove an override, also of a limit that is gone; returns the identity that had it. That
        may be written as by operators."""
        app, removed = application(), None
        for components in self._enabled():
            kinds = dict.fromkeys(row.kinds for row in components.inventory.named(app, limit))
            meant = [components.callbacks.identity(kind, identity) for kind in kinds]
            for name in dict.fromkeys([*meant, identity]):
                if name and components.overrides.clear(limit, name, reason=reason, by=by):
                    removed = name
        return removed

    def log(self, *, since: float = 0.0) -> list[LogEntry]:
        """Return the changes by operators since then, in seconds since 1970, the newest first: the
        latest in the storage, and all that the application keeps."""
        entries = {entry for components in self._enabled() for entry in components.overrides.log()}
        if self.change_log is not None:
            entries.update(self.change_log.read(since))
        return sorted((e for e in entries if e.at >= since), key=lambda entry: -entry.at)

    def note(self, action: str, identity: str, **facts: Any) -> None:
        """Write another change of an operator to the log."""
        self._enabled()[0].overrides.note(action, identity, **facts)

    # -- the storage -----------------------------------------------------------------------------

    @property
    def storage_is_down(self) -> bool:
        """Whether limits are decided without the storage now. The storage is not asked."""
        return any(hooks.components.engines.is_down for hooks in self._attached)

    def check_storage(self) -> None:
        """Ask the storage whether it serves, so that an outage is noticed without a request."""
        for hooks in self._attached:
            hooks.components.engines.check_storage()

    def flush_settlements(self, timeout_s: float = EXIT_S) -> bool:
        """Wait until the storage has taken all pending settlements of this process, at most
        ``timeout_s``; False if some are left. For tests and the end of a process. All extensions
        of a process have one queue."""
        return self._attached[0].components.settlements.flush(timeout_s)

    def lost_settlements(self) -> dict[str, int]:
        """Return what this process could not settle, by unit (dollars in micro-dollars): costs that
        were not charged, refunds, and slots that stayed taken until their lease ended. Each is also
        in the log, with its bucket."""
        return self._attached[0].components.settlements.lost


def all_operators() -> Operators:
    """Return the operators of all extensions of the current application."""
    extensions = flask.current_app.extensions
    return Operators(*(extensions[limiter.app_key] for limiter in extensions[EXTENSION]))


def _check_name(name: str, readers: Iterable[Reader]) -> None:
    names = dict.fromkeys(row.name for reader in readers for row in reader.rows)
    if name not in names:
        listed = ", ".join(names)
        raise OperatorError("unknown_limit", f"There is no limit {name!r}; limits: {listed}.")


def _meant(components: Components, limit: str, text: str, rows: list[Row]) -> str:
    """Return the identity that an operator means in the limits of that name."""
    callbacks, counted = components.callbacks, {row.kinds: row.key for row in rows}
    for kinds in counted:
        if identity := callbacks.identity(kinds, text):
            callbacks.check(kinds, identity)
            return identity
    raise OperatorError(
        "unknown_identity", f"{limit} counts {', '.join(counted.values())}; {text!r} cannot be one."
    )
