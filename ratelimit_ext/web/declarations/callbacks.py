"""The functions that the application registers: identities, its plan, estimates, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import flask
from flask_limiter import Limit
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.charge import DEFAULT_LEASE_S
from ratelimit_ext.core.key import Identity
from ratelimit_ext.policy import Policy
from ratelimit_ext.records.overrides import LogEntry
from ratelimit_ext.web.identities import BUILT_IN, COMMON, meant

Estimate: TypeAlias = Callable[[], Any]
#: Called with a ``RequestLimit``; a response replaces the default one.
Breach: TypeAlias = Callable[[Any], flask.Response | None]
#: Decides the current request again; returns the new refusal, or ``None`` if it is admitted.
DecideAgain: TypeAlias = Callable[[], HTTPException | None]
AmountLoader: TypeAlias = Callable[[], Mapping[str, str] | None]
RefusalHandler: TypeAlias = Callable[[HTTPException, DecideAgain], HTTPException | None]


class CheckedPolicy(NamedTuple):
    """The valid policy of a file, and what the application warns of."""

    policy: Policy
    file: Path
    warnings: tuple[str, ...] = ()


#: Checks a policy file, or the configured one; raises ``ConfigurationError`` with every mistake.
PolicyChecker: TypeAlias = Callable[[Path | None], CheckedPolicy]


class Callers(Protocol):
    """What an application knows of its callers, for ``flask ratelimit``."""

    def identity(self, kind: str, text: str) -> str:
        """Return the identity that an operator means by the text, in the limits with ``key =
        kind``. Empty if it cannot be one."""
        ...

    def check(self, kind: str, identity: str) -> None:
        """Raise ``OperatorError`` if the application knows that there is no such identity."""
        ...

    def plan(self, identity: str) -> str | None:
        """Return the plan of the identity; ``None`` if it has none."""
        ...

    def amounts(self, identity: str) -> Mapping[str, str]:
        """Return the identity's amounts, as of ``amount_loader``."""
        ...


class ChangeLog(Protocol):
    """Where an application keeps what operators change, for longer than the limits' storage."""

    def write(self, entry: LogEntry) -> None:
        """Keep the entry. Never raises: the change is made."""
        ...

    def read(self, since: float) -> Iterable[LogEntry]:
        """Return the entries since then, in seconds since 1970."""
        ...


class AnyCallers:
    """Callers of which only their identities are known."""

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self._identities = identities

    def identity(self, kind: str, text: str) -> str:
        return meant(self._identities.get(kind), text)

    def check(self, kind: str, identity: str) -> None:
        pass

    def plan(self, identity: str) -> str | None:
        return None

    def amounts(self, identity: str) -> Mapping[str, str]:
        return {}


class Callbacks:
    """The registered functions of one extension."""

    def __init__(self) -> None:
        #: By the names that a policy can use.
        self.identities: dict[str, Identity] = dict(BUILT_IN)
        #: Those that many callers have in common.
        self.common_identities: set[Identity] = set(COMMON)
        #: By unit and the name of the limit ("": any other).
        self.estimators: dict[tuple[str, str], Estimate] = {}
        #: Returns the name of the current caller's plan.
        self.plan_loader: Callable[[], str] | None = None
        #: Returns the amounts of the current caller, by the names of limits.
        self.amount_loader: AmountLoader | None = None
        #: What a plan may have in a policy besides the extension's keywords.
        self.plan_keywords: dict[str, Callable[[Any], Any]] = {}
        self.refusal_handler: RefusalHandler | None = None
        self.callers: Callers = AnyCallers(self.identities)
        self.change_log: ChangeLog | None = None
        self.policy_checker: PolicyChecker | None = None

    def keep_change(self, entry: LogEntry) -> None:
        if self.change_log is not None:
            self.change_log.write(entry)


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """What an application configures of its admissions; the names are Flask-Limiter's."""

    lease_s: float = DEFAULT_LEASE_S
    swallow_errors: bool = False
    fail_on_first_breach: bool = True
    #: The limits that replace all others while the storage is down.
    in_memory_fallback: Sequence[Limit] = ()
    on_breach: Breach | None = None
    on_meta_breach: Breach | None = None
