"""The functions that the application registers: identities, its plan, estimates, refusals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import flask
from flask_limiter import Limit
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.charge import DEFAULT_LEASE_S
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.key import Identity, joined, separated
from ratelimit_ext.policy.functions import Applies, Condition
from ratelimit_ext.records.overrides import LogEntry
from ratelimit_ext.web.declarations.code_checks import checked_key
from ratelimit_ext.web.identities import BUILT_IN, COMMON, JoinedIdentity, meant

if TYPE_CHECKING:
    from ratelimit_ext.policy.policy import Policy

Estimate: TypeAlias = Callable[[], Any]
#: Called with a ``RequestLimit``; a response replaces the default one.
Breach: TypeAlias = Callable[[Any], flask.Response | None]
#: Decides the current request again; returns the new refusal, or ``None`` if it is admitted.
DecideAgain: TypeAlias = Callable[[], HTTPException | None]
AmountLoader: TypeAlias = Callable[[], Mapping[str, str] | None]
RefusalHandler: TypeAlias = Callable[[HTTPException, DecideAgain], HTTPException | None]


class CheckedPolicy(NamedTuple):
    """The valid policy of a file, and the application's warnings. ``unapplied`` are sentences about
    endpoints from which code keeps limits of the policy."""

    policy: Policy
    file: Path
    warnings: tuple[str, ...] = ()
    unapplied: tuple[str, ...] = ()


#: Checks a policy file, or the configured one; raises ``ConfigurationError`` with every mistake.
PolicyChecker: TypeAlias = Callable[[Path | None], CheckedPolicy]
#: Finds mistakes in a policy that only the application knows, each at its place.
PolicyRules: TypeAlias = Callable[["Policy"], Iterable[tuple[Any, str]]]


class LimitKeyword(NamedTuple):
    """A keyword of limits that is the application's. ``check`` returns the value, or raises
    ``ValueError``."""

    check: Callable[[Any], Any]
    applies: Applies | None


class Callers(Protocol):
    """What an application knows of its callers, for ``flask ratelimit``."""

    def identity(self, kind: str, text: str) -> str:
        """Return the identity that an operator means by the text, in the limits with ``key =
        kind``. Empty if it cannot be one."""
        ...

    def check(self, kind: str, identity: str) -> None:
        """Raise ``OperatorError`` if the application knows that there is no such identity."""
        return

    def plan(self, identity: str) -> str | None:
        """Return the plan of the identity; ``None`` if it has none."""
        return None

    def amounts(self, identity: str) -> Mapping[str, str]:
        """Return the identity's amounts, as of ``amount_loader``."""
        return {}

    def batch(self, identities: Collection[str]) -> Callers:
        """Return what is asked next about the plans and amounts of these identities: an application
        may read them all at once."""
        return self


class ChangeLog(Protocol):
    """Where an application keeps what operators change, for longer than the limits' storage."""

    def write(self, entry: LogEntry) -> None:
        """Keep the entry. Never raises: the change is made."""
        ...

    def read(self, since: float) -> Iterable[LogEntry]:
        """Return the entries since then, in seconds since 1970."""
        ...


class AnyCallers(Callers):
    """Callers of which only their identities are known."""

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self._identities = identities

    def identity(self, kind: str, text: str) -> str:
        return meant(self._identities.get(kind), text)


class Callbacks:
    def __init__(self) -> None:
        #: By the names that a policy can use.
        self.identities: dict[str, Identity] = dict(BUILT_IN)
        self._joined: dict[tuple[Any, ...], JoinedIdentity] = {}
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
        #: What limits of a policy may have in the same way.
        self.limit_keywords: dict[str, LimitKeyword] = {}
        #: Those that limits of a policy have by such keywords.
        self.conditions: dict[Condition, Condition] = {}
        self.policy_rules: PolicyRules | None = None
        self.refusal_handler: RefusalHandler | None = None
        self.callers: Callers = AnyCallers(self.identities)
        self.change_log: ChangeLog | None = None
        self.policy_checker: PolicyChecker | None = None

    def add_identity(self, name: str, function: Identity) -> None:
        """Raise ``ConfigurationError`` if another function has the name, unless it is built in."""
        before = self.identities.get(name, function)
        # An application factory makes new functions, partials and objects each time.
        old, new = (getattr(f, "__code__", type(f)) for f in (before, function))
        if before is not BUILT_IN.get(name) and old != new:
            raise ConfigurationError(f"identity {name!r} is registered twice; rename one.")
        self.identities[name] = function

    def identity_function(self, key: Any) -> Any:
        """Return the function of a name, or of several identities together; a function itself."""
        if isinstance(key, tuple):
            return self._joined.setdefault(key, JoinedIdentity(key, self.identities))
        return self.identities[key] if isinstance(key, str) else key

    def condition(
        self, exempt_when: Callable[[], bool] | None, keywords: tuple[tuple[str, Any], ...]
    ) -> Callable[[], bool] | None:
        """Return what exempts a request from a limit with these keywords of the application's: the
        same object for alike limits, because it is asked once a request."""
        table = self.limit_keywords
        pairs = [(applies, value) for word, value in keywords if (applies := table[word].applies)]
        condition = Condition(exempt_when, tuple(pairs))
        return self.conditions.setdefault(condition, condition) if pairs else exempt_when

    def is_common(self, identity: Identity) -> bool:
        """Return whether many callers have it in common, or all that are counted together."""
        if isinstance(identity, JoinedIdentity):
            return self.common_identities.issuperset(identity.functions)
        return identity in self.common_identities

    def key_in_code(self, key: Any, where: str) -> Any:
        """Return the function of a ``key_func``, which may list several identities. Raises
        ``ConfigurationError``."""
        parts = checked_key(key, self.identities, where)
        return key if parts is key else self.identity_function(parts)

    def identity(self, kinds: tuple[str, ...], text: str) -> str:
        """Return :meth:`Callers.identity` in the limits that count these kinds together."""
        texts = separated(text) if len(kinds) > 1 else [text]
        if len(texts) != len(kinds):
            return ""
        identities = [self.callers.identity(*pair) for pair in zip(kinds, texts, strict=True)]
        return (joined(identities) if len(kinds) > 1 else identities[0]) if all(identities) else ""

    def check(self, kinds: tuple[str, ...], identity: str) -> None:
        """Do :meth:`Callers.check` of each part."""
        parts = separated(identity) if len(kinds) > 1 else [identity]
        for kind, part in zip(kinds, parts, strict=True):
            self.callers.check(kind, part)

    def owner(self, kinds: tuple[str, ...], identity: str) -> str:
        """Return whose plan and amounts apply: the user's, if others are counted with it."""
        if len(kinds) == 1:
            return identity
        parts = dict(zip(kinds, separated(identity), strict=False))
        return parts.get("user") or parts.get("api_key") or identity

    def keep_change(self, entry: LogEntry) -> None:
        if self.change_log is not None:
            self.change_log.write(entry)


class AdmissionSettings(NamedTuple):
    """What an application configures of its admissions; the names are Flask-Limiter's."""

    lease_s: float = DEFAULT_LEASE_S
    #: How many requests of this process may wait at once.
    most_waiting: int = 1
    swallow_errors: bool = False
    fail_on_first_breach: bool = True
    #: The limits that replace all others while the storage is down.
    in_memory_fallback: Sequence[Limit] = ()
    on_breach: Breach | None = None
    on_meta_breach: Breach | None = None
