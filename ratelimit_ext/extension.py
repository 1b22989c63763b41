"""The extension: a ``flask_limiter.Limiter`` that decides a request's limits together.

:class:`Limiter` is the public API and overrides Flask-Limiter's seams. In :mod:`web`,
:mod:`hooks` meets requests, and :mod:`components` are what decides, answers and lists.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Never,
    Protocol,
    TypeAlias,
    TypedDict,
    Unpack,
    cast,
    overload,
)
from weakref import ref

import click
import flask
import flask_limiter
from flask_limiter import ExemptionScope, HeaderNames
from flask_limiter.constants import ConfigVars
from limits.storage import Storage
from limits.strategies import RateLimiter
from werkzeug.local import LocalProxy

from ratelimit_ext.core.errors import (
    ConfigurationError,
    StorageUnavailable,
    not_allowed,
    unknown_name,
)
from ratelimit_ext.core.events import Events, Listener
from ratelimit_ext.core.key import FORMAT, Identity
from ratelimit_ext.core.limit import OPTION_NAMES, LimitKeywords
from ratelimit_ext.core.money import Dollars
from ratelimit_ext.core.traits import UNITS, StrategyName, Unit
from ratelimit_ext.engine.engine import Workers
from ratelimit_ext.policy.functions import Applies
from ratelimit_ext.records.store import storage_prefix
from ratelimit_ext.settlements.journal import journal_directory
from ratelimit_ext.web import commands, storage_mistakes
from ratelimit_ext.web import storage as storages
from ratelimit_ext.web.components import Components
from ratelimit_ext.web.declarations import code_checks
from ratelimit_ext.web.declarations.callbacks import (
    AmountLoader,
    Breach,
    Callbacks,
    Estimate,
    LimitKeyword,
    PolicyRules,
    RefusalHandler,
)
from ratelimit_ext.web.declarations.definitions import (
    P,
    R,
    RouteLimit,
    T,
    deferred,
    group,
    request_context,
    route_limit,
    stated,
)
from ratelimit_ext.web.declarations.manager import Manager
from ratelimit_ext.web.declarations.settings import check_settings, check_switches
from ratelimit_ext.web.hooks import RequestHooks, requested_endpoint
from ratelimit_ext.web.limited_request import LimitedRequest
from ratelimit_ext.web.request.request_state import RequestLimit
from ratelimit_ext.web.request.reservation import Reservation, costs_by_unit

if TYPE_CHECKING:
    from ratelimit_ext.operators.api import Operators
    from ratelimit_ext.policy.policy import Policy

NAMESAKES: Final = (
    "Two extensions of the application %r have one storage and the key prefix %r: equal limits of "
    "both share their buckets. Give one of them a key_prefix."
)
KEPT: Final = "The storage is unavailable; the counts of %r are kept: %s"
#: A limit string, or a function that returns one.
Text: TypeAlias = str | Callable[[], str]
#: Whose bucket it is: what one function returns, or several together, of which some are names.
Key: TypeAlias = Callable[[], str] | Sequence[str | Callable[[], str]]
#: What :meth:`Limiter.exempt` exempts from, as in Flask-Limiter.
EXEMPTION: Final = ExemptionScope.APPLICATION | ExemptionScope.DEFAULT | ExemptionScope.META
Deducts: TypeAlias = Callable[[flask.Response], bool]
#: The class also where ours takes its name, as in a test of an application.
FlaskLimiter: TypeAlias = flask_limiter.Limiter
_numbers: Final = itertools.count()
#: Arguments of the constructor that each application gets by copies of the manager's.
_DEFINITIONS: Final = ("default_limits", "application_limits", "meta_limits")


class _NoKeywords(TypedDict):
    """Of a misspelt keyword, type checkers say that it is unknown."""


class Exemption(Protocol):
    """The decorator that :meth:`Limiter.exempt` returns for flags alone."""

    @overload
    def __call__(self, obj: Callable[P, R], /) -> Callable[P, R]: ...

    @overload
    def __call__(self, obj: flask.Blueprint, /) -> flask.Blueprint: ...


class Limiter(flask_limiter.Limiter):
    """Flask-Limiter's extension with a strategy per limit and one decision per request.

    Takes everything that ``flask_limiter.Limiter`` takes. ``strategy`` may also be
    ``"token-bucket"`` or ``"sliding-window"``, and every limit may name its own. ``strict``
    refuses mistakes that Flask-Limiter would ignore, and that are logged otherwise.

    What Flask-Limiter reads for an application is in an object of that application
    (``Components.settings``). Here, its attributes are the current application's.
    """

    def __init__(  # noqa: PLR0913 - Flask-Limiter's
        self,
        key_func: Key,
        *,
        app: flask.Flask | None = None,
        default_limits: list[Text | flask_limiter.Limit] | None = None,
        default_limits_per_method: bool | None = None,
        default_limits_exempt_when: Callable[[], bool] | None = None,
        default_limits_deduct_when: Deducts | None = None,
        default_limits_cost: int | Callable[[], int] | None = None,
        application_limits: list[Text | flask_limiter.ApplicationLimit] | None = None,
        application_limits_per_method: bool | None = None,
        application_limits_exempt_when: Callable[[], bool] | None = None,
        application_limits_deduct_when: Deducts | None = None,
        application_limits_cost: int | Callable[[], int] | None = None,
        headers_enabled: bool | None = None,
        header_name_mapping: dict[HeaderNames, str] | None = None,
        strategy: StrategyName | None = None,
        storage_uri: str | None = None,
        storage_options: dict[str, str | int] | None = None,
        swallow_errors: bool | None = None,
        fail_on_first_breach: bool | None = None,
        on_breach: Breach | None = None,
        meta_limits: list[Text | flask_limiter.MetaLimit] | None = None,
        on_meta_breach: Breach | None = None,
        in_memory_fallback: list[Any] | None = None,
        in_memory_fallback_enabled: bool | None = None,
        retry_after: str | None = None,
        key_prefix: str = "",
        request_identifier: Callable[..., str] | None = None,
        enabled: bool = True,
        strict: bool | None = None,
        **unknown: Unpack[_NoKeywords],
    ) -> None:
        # The parameters have Flask-Limiter's names.
        arguments = deferred(locals())
        code_checks.check_keywords(unknown, _CONSTRUCTOR_KEYWORDS, "Limiter")
        self._callbacks = Callbacks()
        checked_key = self._callbacks.key_in_code(arguments["key_func"], "Limiter")
        arguments["key_func"] = checked_key
        if isinstance(checked_key, flask.Flask):
            raise ConfigurationError(
                "Limiter, key_func: found an application; allowed: a function. Write "
                "Limiter(client_ip, app=app)."
            )
        if not callable(checked_key):
            arguments["key_func"] = partial(_lacks_key_func, checked_key)
        code_checks.check_values(arguments, "Limiter")
        code_checks.check_lists(arguments, "Limiter")
        check_switches(arguments, "Limiter")
        self._arguments = {
            word: arguments[word] for word in _CONSTRUCTOR_KEYWORDS if word not in ("app", "strict")
        }
        #: Whether limits apply in any application.
        self.is_on = enabled
        self._strict = strict
        self._request_filters: list[Callable[[], bool]] = []
        self._marked_for_limiting: set[str] = set()
        #: Where an application, in ``app.extensions``, and a view have what belongs to them.
        self.app_key = f"{commands.EXTENSION} {next(_numbers)}"
        self._events = Events()
        self._remembers = False
        self._request_id: Callable[[], str] | None = None
        #: What applications have of the extension, the latest last.
        self._attached: list[ref[RequestHooks]] = []
        self._declared = FlaskLimiter(**self._arguments)
        code_checks.check_read(self._declared)
        self._declared.limit_manager = Manager(self._declared.limit_manager, key=self.app_key)
        self._without_app = RequestHooks(self)
        self._attach(self._without_app, self._declared, is_enabled=False)
        self.app = app
        if app:  # a proxy without an application is false
            self.init_app(app)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if "_without_app" not in self.__dict__:  # in a copy, or a subclass's own constructor
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self._components.settings, name)

    # -- set-up ------------------------------------------------------------------------------

    def init_app(self, app: flask.Flask) -> None:
        """Attach to an application. Reads the ``RATELIMIT_*`` keys of its configuration."""
        if issubclass(type(app), LocalProxy):
            app = cast(Any, app)._get_current_object()
        if not isinstance(app, flask.Flask):
            raise ConfigurationError(f"init_app: {not_allowed(app, 'a Flask application')}")
        config, again = app.config, self in app.extensions.get("limiter", ())
        strict = bool(config.get("RATELIMIT_STRICT") if self._strict is None else self._strict)
        check_settings(config, app.logger, strict=strict)
        code_checks.check_strategy(self._declared._strategy, config)
        is_enabled = bool(config.setdefault(ConfigVars.ENABLED, self.is_on))
        settings = self._read(app) if is_enabled else self._new_settings()
        commands.install(app, self)
        hooks: RequestHooks = app.extensions.setdefault(self.app_key, RequestHooks(self))
        components = self._attach(hooks, settings, app, is_enabled=is_enabled, strict=strict)
        if is_enabled:
            self._enable(app, hooks, components, again=again)
        others = [reference for reference in self._attached if reference() not in (None, hooks)]
        self._attached = [*others, ref(hooks)]

    def _new_settings(self) -> flask_limiter.Limiter:
        """Make settings by the constructor's arguments, with the limits declared so far."""
        words = {word: value for word, value in self._arguments.items() if word not in _DEFINITIONS}
        settings = FlaskLimiter(**words)
        logger = settings.logger
        logger.removeHandler(logger.handlers[-1])  # each constructor adds one that drops everything
        settings.limit_manager = manager = cast(Manager, self._declared.limit_manager).copy()
        settings._meta_limits = self._declared._meta_limits
        manager.complete = self._before_listing
        return settings

    def _read(self, app: flask.Flask) -> flask_limiter.Limiter:
        """Make settings by the constructor and the configuration; connect the storage."""
        config, settings = app.config, self._new_settings()
        settings._request_identifier = settings._request_identifier or config.get(
            ConfigVars.REQUEST_IDENTIFIER, requested_endpoint
        )
        uri = _storage_uri(settings, config)
        configured = config.get(ConfigVars.STORAGE_OPTIONS, {})
        options = storage_mistakes.checked_options(
            settings._storage_options, "Limiter, storage_options"
        )
        options |= storage_mistakes.checked_options(configured, ConfigVars.STORAGE_OPTIONS)
        settings._storage_options = storages.with_deadline(
            uri, options, storages.deadline_s(config)
        )
        where = "Limiter, storage_uri" if settings._storage_uri else ConfigVars.STORAGE_URI
        storage_mistakes.check_storage_uri(uri, where)
        extensions = app.extensions.setdefault("limiter", set())
        with (
            storage_mistakes.refused_mistakes(uri, where),
            storages.cluster_may_be_down(uri),
            commands.quiet_commands(),
        ):
            extensions.add(settings)  # so that it adds no hooks to the application
            try:
                settings.init_app(app)
            finally:
                extensions.discard(settings)
            storage_mistakes.connect_once(settings._storage, settings._storage_options)
        extensions.add(self)
        code_checks.check_read(settings)
        manager, strategy = cast(Manager, settings.limit_manager), settings._strategy
        manager.check_stated(strategy)
        settings._meta_limits = stated(settings._meta_limits, strategy, "meta_limits")
        settings._in_memory_fallback = stated(settings._in_memory_fallback, strategy)
        manager.check_names()
        return settings

    def _attach(
        self,
        hooks: RequestHooks,
        settings: flask_limiter.Limiter,
        app: flask.Flask | None = None,
        *,
        is_enabled: bool,
        strict: bool = False,
    ) -> Components:
        config = app.config if app and is_enabled else {}
        components = Components(
            settings,
            self._callbacks,
            lease_s=storages.lease_s(config),
            workers=storages.workers(config) if config else Workers(),
            is_enabled=is_enabled,
            strict=strict,
            decider=hooks.decider,
            current_plan=hooks.current_plan,
        )
        components.events.listeners = self._events.listeners
        if self._remembers:
            components.recorder.remember(request_id=self._request_id)
        hooks.use(components)
        return components

    def _enable(
        self, app: flask.Flask, hooks: RequestHooks, components: Components, *, again: bool
    ) -> None:
        config = app.config
        if not again:
            hooks.install(app)
        uri = _storage_uri(components.settings, config)
        components.address = "" if uri.startswith("memory:") else uri
        others = [app.extensions[e.app_key].components for e in app.extensions[commands.EXTENSION]]
        if any(components.shares_buckets_with(c) for c in others if c is not components):
            app.logger.warning(NAMESAKES, app.name, components.naming.key_prefix)
        components.engines.keep_settlements(journal_directory(config, app.instance_path), uri)
        for definition in components.manager.definitions():
            components.policies.check_limit(definition.limit_provider, cast(Any, definition))
        try:
            components.policies.apply(app)
        except ConfigurationError as mistakes:
            if commands.is_checked():
                raise click.ClickException(str(mistakes)) from mistakes
            raise

    @property
    def _hooks(self) -> RequestHooks:
        """The hooks of the current application; without a context, of the one attached last."""
        if flask.has_app_context():
            return self._hooks_of(flask.current_app)
        for reference in reversed(self._attached):
            if (hooks := reference()) is not None:
                return hooks
        return self._without_app

    def _hooks_of(self, app: flask.Flask) -> RequestHooks:
        return cast(RequestHooks, app.extensions.get(self.app_key, self._without_app))

    def _not_attached(self, app: flask.Flask) -> RequestHooks:
        """Log that the application lacks ``init_app``. Returns hooks that limit nothing."""
        app.logger.error(
            "Limits of decorated views do not apply in the application %r. Call "
            "limiter.init_app(app) where it is made.",
            app.name,
        )
        app.extensions[self.app_key] = self._without_app  # logged once
        return self._without_app

    @property
    def _components(self) -> Components:
        return self._hooks.components

    @property
    def enabled(self) -> bool:
        """Whether limits apply, in the current application or the one that was attached last.

        ``RATELIMIT_ENABLED`` is each application's own; setting this property switches all of them,
        but none that was attached while it was disabled.
        """
        hooks = self._hooks
        return self.is_on if hooks is self._without_app else hooks.is_enabled

    @enabled.setter
    def enabled(self, is_on: bool) -> None:
        self.is_on = is_on

    # -- its policy ----------------------------------------------------------------------------

    def policy(self, app: flask.Flask) -> Policy | None:
        """Return the application's policy, with its plans; ``None`` without one."""
        return self._hooks_of(app).components.policies.policy

    def check_policy(self, app: flask.Flask) -> None:
        """Raise ``ConfigurationError`` if the policy names a blueprint or endpoint that the
        application does not have, or if a decorator names a group that the policy does not have.
        Call it when all are registered; otherwise the first request logs them, and all other limits
        apply.

        Logs the groups that nothing uses."""
        components = self._hooks_of(app).components
        if components.is_enabled:
            components.policies.check(app)

    # -- what the application registers --------------------------------------------------------

    @property
    def identities(self) -> dict[str, Identity]:
        """The identity functions by the names that a policy can use."""
        return self._callbacks.identities

    def identity(self, name: str, *, common: bool = False) -> Callable[[Identity], Identity]:
        """Register an identity under a name that a policy can use; replaces a built-in one. Raises
        ``ConfigurationError`` if another function has the name.

        ``common``: many callers have it in common, such as a model. On a Redis Cluster its limits
        are charged after those of the caller's own identities.

        ::

            @limiter.identity("user")
            def user() -> str:
                return str(g.user.id)
        """
        code_checks.check_name(name, "limiter.identity")

        def register(function: Identity) -> Identity:
            code_checks.check_function(function, 0, f"identity {name!r}")
            self._callbacks.add_identity(name, function)
            if common:
                self._callbacks.common_identities.add(function)
            return function

        return register

    def plan_loader(self, function: Callable[[], str]) -> Callable[[], str]:
        """Register the function that returns the name of the current caller's plan."""
        code_checks.check_function(function, 0, "limiter.plan_loader")
        self._callbacks.plan_loader = function
        return function

    def plan_keyword(self, name: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
        """Register a keyword of plans in a policy, which the application reads from
        ``limiter.policy(app).plans[…].keywords``. Do it before ``init_app``.

        The function is called with the value of the file. It returns what is kept, or raises
        ``ValueError`` with what was found and what is allowed; the error names the line.
        """
        code_checks.check_name(name, "limiter.plan_keyword")

        def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            code_checks.check_function(function, 1, f"plan keyword {name!r}")
            self._callbacks.plan_keywords[name] = function
            return function

        return register

    def amount_loader(self, function: AmountLoader) -> AmountLoader:
        """Register the function that returns the amounts of the current caller: limit strings by
        the names of limits, empty or ``None`` for a caller without any.

        A string replaces the amount of the limit of that name, ``"20 usd/day"`` of ``5 usd/day``,
        and nothing else; usage is kept. The function is called at every request, so it must not
        wait.
        """
        code_checks.check_function(function, 0, "limiter.amount_loader")
        self._callbacks.amount_loader = function
        return function

    def estimator(self, unit: Unit, *, limit: str = "") -> Callable[[Estimate], Estimate]:
        """Register the estimated cost of a call, for limits in the unit that state no cost.

        ``tokens``, ``input_tokens`` and ``output_tokens`` are whole numbers, ``usd`` is in dollars.
        ``limit`` is the name of one limit that has its own estimate. Raises
        ``ConfigurationError`` for an unknown unit.
        """
        if unit not in UNITS:  # a call in flight always counts as one, so "calls" has no estimate
            raise ConfigurationError(f"estimator: {unknown_name('unit', unit, UNITS)}")

        def register(function: Estimate) -> Estimate:
            code_checks.check_function(function, 0, f"estimator {unit!r}")
            self._callbacks.estimators[unit, limit] = function
            return function

        return register

    def limit_keyword(
        self, name: str, *, applies: Applies | None = None
    ) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
        """Register a keyword of the limits of a policy, as :meth:`plan_keyword`. Its value must
        have a hash; a request's limits have it in ``keywords``.

        ``applies`` is called with the value, and ``None`` for the current request, or a simulated
        call's identities. If it returns false, the limit does not apply.
        """
        code_checks.check_name(name, "limiter.limit_keyword")
        if applies is not None:
            code_checks.check_function(applies, 2, f"limit keyword {name!r}, applies")

        def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            code_checks.check_function(function, 1, f"limit keyword {name!r}")
            self._callbacks.limit_keywords[name] = LimitKeyword(function, applies)
            return function

        return register

    def policy_rules(self, function: PolicyRules) -> PolicyRules:
        """Register a function that finds more mistakes in a valid policy: it yields places, such as
        ``limit.place.at("key")``, each with a sentence."""
        code_checks.check_function(function, 1, "limiter.policy_rules")
        self._callbacks.policy_rules = function
        return function

    def refusal_handler(self, function: RefusalHandler) -> RefusalHandler:
        """Register a function that may reroute a denied request.

        It is called with the exception that denies the request, and a function that decides the
        request again and returns the new exception, or ``None`` if it is admitted now. It returns
        the exception to raise, or ``None`` to go on. If it fails, that is logged, and the request
        stays denied::

            @limiter.refusal_handler
            def reroute(refusal, decide_again):
                if g.get("region") == "eu" and refusal.code == 503:
                    g.region = "us"  # which the limits' identities read
                    return decide_again()
                return refusal
        """
        code_checks.check_function(function, 2, "limiter.refusal_handler")
        self._callbacks.refusal_handler = function
        return function

    def listen(self, listener: Listener) -> Listener:
        """Call a function with every :data:`Event` of this extension.

        It is called in the thread in which it happened, before the request goes on, so it must not
        wait. If it raises, that is logged, and the request goes on.
        """
        code_checks.check_function(listener, 1, "limiter.listen")
        for events in self._all_events():
            events.add(listener)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Call a listener no more."""
        for events in self._all_events():
            events.remove(listener)

    def _all_events(self) -> Iterator[Events]:
        """Yield the events with which later applications begin, and those of each application."""
        yield self._events
        for hooks in self._live():
            yield hooks.components.events

    def _live(self) -> Iterator[RequestHooks]:
        """Yield the hooks without an application, and those of each application."""
        yield self._without_app
        yield from filter(None, [reference() for reference in self._attached])

    def remember_denials(self, *, request_id: Callable[[], str] | None = None) -> None:
        """Keep the latest denials in the storage, for ``flask ratelimit why``, and what limits in
        shadow and candidates would have denied, for ``flask ratelimit shadow report``; and how many
        decisions each limit made, by the minute.

        They are written in the background. ``request_id`` returns the id of the current request,
        if the application has one.
        """
        if request_id is not None:
            code_checks.check_function(request_id, 0, "limiter.remember_denials, request_id")
        self._remembers = True
        self._request_id = request_id and partial(_in_request, request_id)
        for hooks in self._live():
            hooks.components.recorder.remember(request_id=self._request_id)

    # -- definitions -------------------------------------------------------------------------

    def limit(  # noqa: PLR0913 - Flask-Limiter's
        self,
        limit_value: Text,
        *,
        key_func: Key | None = None,
        per_method: bool = False,
        methods: list[str] | None = None,
        error_message: Text | None = None,
        exempt_when: Callable[[], bool] | None = None,
        override_defaults: bool | None = None,
        deduct_when: Deducts | None = None,
        on_breach: Breach | None = None,
        cost: Any = 1,
        scope: str | Callable[[str], str] | None = None,
        meta_limits: Sequence[Text | flask_limiter.MetaLimit] | None = None,
        **options: Unpack[LimitKeywords],
    ) -> RouteLimit:
        """Limit a view, a blueprint, or (as a context manager) a block of code.

        ``override_defaults`` is true except for guards.
        """
        return route_limit(locals(), _LIMIT_KEYWORDS, self, shared=False)

    def shared_limit(  # noqa: PLR0913 - see limit
        self,
        limit_value: Text,
        scope: str | Callable[[str], str],
        *,
        key_func: Key | None = None,
        per_method: bool = False,
        methods: list[str] | None = None,
        error_message: Text | None = None,
        exempt_when: Callable[[], bool] | None = None,
        override_defaults: bool | None = None,
        deduct_when: Deducts | None = None,
        on_breach: Breach | None = None,
        cost: Any = 1,
        meta_limits: Sequence[Text | flask_limiter.MetaLimit] | None = None,
        **options: Unpack[LimitKeywords],
    ) -> RouteLimit:
        """Limit several views together; see :meth:`limit`."""
        return route_limit(locals(), _SHARED_LIMIT_KEYWORDS, self, shared=True)

    @staticmethod
    def group(name: str) -> Callable[[T], T]:
        """Put a view or a blueprint under a group of the application's policy::

            @app.post("/ask")
            @limiter.group("calls")  # the limits of [groups.calls]
            def ask(): ...

        The policy says how much, so that an operator changes it without the code. These limits
        come on top of all others. The name belongs to the policy and not to an extension: where
        the ``Limiter`` is made in a factory, write ``@Limiter.group("calls")``.
        """
        return group(name)

    @overload
    def exempt(self, obj: flask.Blueprint, *, flags: ExemptionScope = ...) -> flask.Blueprint: ...

    @overload
    def exempt(self, obj: Callable[P, R], *, flags: ExemptionScope = ...) -> Callable[P, R]: ...

    @overload
    def exempt(self, *, flags: ExemptionScope = ...) -> Exemption: ...

    def exempt(self, obj: Any = None, *, flags: ExemptionScope = EXEMPTION) -> Any:
        """Exempt a view or blueprint, as in Flask-Limiter. ``ConfigurationError`` for a name, and
        for ``flags`` that are something else."""
        given: object = flags
        if not isinstance(given, ExemptionScope):
            allowed = not_allowed(given, "ExemptionScope of flask_limiter")
            raise ConfigurationError(f"limiter.exempt, flags: {allowed}")
        if obj is not None:
            code_checks.check_target(obj, "limiter.exempt")
        return super().exempt(obj, flags=flags)

    def request_filter(self, fn: Callable[[], bool]) -> Callable[[], bool]:
        """Exempt a request from all limits if the function returns true. Raises
        ``ConfigurationError`` for one that takes an argument or is async."""
        code_checks.check_function(fn, 0, "limiter.request_filter")
        return super().request_filter(fn)

    # -- the current request -------------------------------------------------------------------

    @property
    def current(self) -> LimitedRequest:
        """The current request, as its limits see it: plan, verdicts, reservation, attempts. Raises
        ``RuntimeError`` outside of a request."""
        try:
            context = request_context._get_current_object()
        except RuntimeError:
            raise RuntimeError(
                "limiter.current, limiter.settle: there is no current request. Use them in a view; "
                "a stream or a thread takes limiter.current.reservation before it starts."
            ) from None
        return LimitedRequest(self._hooks_of(context.app), context)

    @property
    def current_limit(self) -> RequestLimit | None:
        """See :attr:`LimitedRequest.limit`."""
        return self.current.limit

    @property
    def current_limits(self) -> list[RequestLimit]:  # type: ignore[override]
        """See :attr:`LimitedRequest.limits`."""
        return self.current.limits

    def settle(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_input_tokens: int = 0,
        usd: Dollars | None = None,
    ) -> None:
        """Note the actual cost of the current request; see :meth:`Reservation.settle`. Every charge
        in such a unit is corrected when the response is closed; without such charges nothing is
        sent. If no limit of the application counts any of the units, a warning is logged."""
        reservation = self.current.reservation
        reservation.settle(
            tokens=tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_input_tokens=cached_input_tokens,
            usd=usd,
        )
        reservation.check_settled()

    def charge(
        self,
        name: str | Sequence[str],
        identity: str,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        usd: Dollars | None = None,
        priority: str = "",
        member: str = "",
    ) -> AbstractContextManager[Reservation]:
        """Charge a named limit outside of a request, as a task or a scheduled job does::

            with limiter.charge("usd-day", "ada", usd="0.01") as call:
                answer = client.responses.create(...)
                call.settle(usd=cost_of(answer))

        Several names are charged together or not at all. ``identity`` is what the limits' key
        functions would return. The costs are estimates, by unit; a limit in requests is charged 1.
        ``priority`` is the class of traffic, for limits that keep a part. ``member`` is who of a
        group the job is for, if the group shares its budget fairly; without one the group alone is
        charged.

        The block gets the reservation, which the end of the block closes, also after an exception:
        then the estimate stays charged, unless the block called ``call.cancel()``. A block that
        takes longer than ``RATELIMIT_LEASE_SECONDS`` calls ``call.renew()``. Needs an application
        context.

        As in a request, a limit of another plan, or an optional one of which the identity has no
        amount, is left out. Raises :class:`RateLimitExceeded`, whose ``wait_ms`` is exact, or what
        a request would be refused with; ``ConfigurationError`` for an unknown name or a missing
        estimate.
        """
        names = (name,) if isinstance(name, str) else tuple(name)
        given: object = identity
        of_group: object = member
        who = "" if given is None or isinstance(given, list | tuple) else str(given)
        if not who:  # a request without an identity is not counted
            raise ConfigurationError(
                f"charge, identity: found {identity!r}; allowed: a text that is not empty, as the "
                "limit's key function returns it; of several together, one text with commas."
            )
        costs = costs_by_unit(tokens, input_tokens, output_tokens, usd)
        hooks = self._hooks
        if not hooks.is_enabled:
            return nullcontext(hooks.components.reserve([]))
        from ratelimit_ext.web import charging  # noqa: PLC0415 - no request asks

        words: dict[str, Any] = {"costs": costs, "priority": priority}
        words["member"] = "" if of_group is None else str(of_group)
        where = hooks.components, commands.application(), names, who
        return charging.PendingCharge(partial(charging.charged, *where, **words))

    # -- operators, and the storage ------------------------------------------------------------

    @property
    def operators(self) -> Operators:
        """What operators see and change of the current application's limits."""
        from ratelimit_ext.operators.api import Operators  # noqa: PLC0415 - no request asks

        return Operators(self._hooks)

    def forget(self, name: str, identity: str) -> bool:
        """Forget what the limits of that name have counted of an identity, such as failed log-ins
        after a good one; False if that was nothing.

        ``identity`` is what the limit's key function returns. Calls in flight and guards are left
        alone. A name without a limit is ignored; if the whole application has no limit of the name,
        a warning is logged. It never raises: while the storage is down, nothing is forgotten, which
        is logged. Disabled limits have counted nothing.
        """
        hooks = self._hooks
        if not hooks.is_enabled:
            return False
        components, app = hooks.components, commands.application()
        buckets = components.inventory.counts(app, name, identity)
        if not buckets:
            components.known_names.check_name(name, "forget")
            return False
        try:
            return components.engines.primary.clear(buckets) > 0
        except StorageUnavailable as error:
            app.logger.warning(KEPT, name, error)
            return False

    @property
    def storage(self) -> Storage:
        """The storage of the current application's limits, or of the one that was attached last."""
        storage = self._components.storage
        assert storage is not None, storages.NOT_INITIALISED
        return storage

    def reset(self) -> None:
        """Forget everything that was charged. Overrides stay."""
        try:
            self._components.engines.current.reset(f"{storage_prefix(self.storage)}:{FORMAT}:")
            self.logger.info("Storage has been reset and all limits cleared")
        except NotImplementedError:
            self.logger.warning("This storage type does not support being reset")

    # -- Flask-Limiter's seams -----------------------------------------------------------------

    @property
    def limiter(self) -> RateLimiter:
        """Flask-Limiter's strategy object, over our buckets."""
        return self._components.engines.strategy_object(self._components.naming)

    def _check_request_limit(  # type: ignore[override] # Flask sends what a hook returns
        self, callable_name: str | None = None, in_middleware: bool = True
    ) -> flask.Response | None:
        """See :class:`RequestHooks`. Flask-Limiter's ``check`` and stock definitions call it."""
        if in_middleware:
            return self._hooks.before_request()
        context = request_context._get_current_object()
        return self._hooks.admit_to_view(context, callable_name, None)

    def _before_listing(self, app: flask.Flask) -> None:
        """Add a policy's limits before Flask-Limiter's commands list them, and name ours."""
        self._hooks_of(app).components.policies.complete(app)
        commands.point_at_ours()


def _in_request(request_id: Callable[[], str]) -> str:
    return request_id() if flask.has_request_context() else ""


def _lacks_key_func(value: object) -> Never:
    """Fail as the key function that is missing, in limits without one of their own."""
    allowed = not_allowed(value, "a function")
    raise ConfigurationError(f"Limiter, key_func: {allowed} Or give each limit its own.")


def _storage_uri(settings: flask_limiter.Limiter, config: Mapping[str, Any]) -> str:
    return str(settings._storage_uri or config.get(ConfigVars.STORAGE_URI) or "")


_CONSTRUCTOR_KEYWORDS: Final = code_checks.keywords_of_signature(Limiter.__init__)
_LIMIT_KEYWORDS: Final = code_checks.keywords_of_signature(Limiter.limit, *OPTION_NAMES)
_SHARED_LIMIT_KEYWORDS: Final = code_checks.keywords_of_signature(
    Limiter.shared_limit, *OPTION_NAMES
)
