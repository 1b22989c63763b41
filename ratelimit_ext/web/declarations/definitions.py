"""Limits as written in code: Flask-Limiter's definitions with the keywords of ``LimitOptions``.

A definition yields one ``RuntimeLimit`` for each limit in its string. A function as the string is
called at every request.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from inspect import iscoroutinefunction, signature
from typing import Any, Final, Never, ParamSpec, TypeVar, overload

import flask
import flask_limiter
from flask.globals import request_ctx
from flask_limiter._limits import RuntimeLimit
from flask_limiter.util import get_qualified_name
from werkzeug.local import LocalProxy

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import NO_OPTIONS, OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit, states_guard
from ratelimit_ext.policy import check_in_code
from ratelimit_ext.policy.errors import NAME
from ratelimit_ext.web.declarations import code_checks
from ratelimit_ext.web.declarations.limits_adapter import items_of
from ratelimit_ext.web.errors import RateLimitExceeded

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=Callable[..., Any] | flask.Blueprint)

#: The attribute by which Flask-Limiter marks its wrappers. It is a weak proxy: compare with ==.
MARK: Final = "__wrapper-limiter-instance"
#: The attribute of a view or blueprint with the groups that decorators name.
GROUPS: Final = "__ratelimit_groups__"
_NOT_APPLIED: Final = (
    "A limit was used as a function. Write it with its string, as in "
    '@limiter.limit("30/minute"), between the route decorator and the function.'
)
#: Flask's proxy, as an object whose attributes are ours, too.
request_context: Final[Any] = request_ctx
#: What it reads, without its functions: for what runs in a request only.
contexts: Final[Any] = request_context._LocalProxy__wrapped  # noqa: SLF001 - same in all versions
#: Before 3.0, Flask looks up itself in which blueprints there may be an error handler.
_TAKES_BLUEPRINTS: Final = "blueprints" in signature(flask.Flask._find_error_handler).parameters
#: What a runtime limit copies from its definition.
_COPIED: Final = (
    *("scope", "per_method", "methods", "error_message", "exempt_when", "override_defaults"),
    *("deduct_when", "on_breach", "shared"),
)


class Deferred:
    """A function behind one of Werkzeug's proxies, which only a call resolves.

    The proxy itself resolves what it stands for also when it is compared or tested for truth.
    """

    __slots__ = ("_proxy",)

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    def __call__(self, *arguments: object) -> Any:
        return self._proxy(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Deferred) and other._proxy is self._proxy

    def __hash__(self) -> int:
        return id(self._proxy)


def deferred(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values; proxies as something that can be compared outside of a request."""
    return {
        word: Deferred(value) if issubclass(type(value), LocalProxy) else value
        for word, value in values.items()
    }


@dataclasses.dataclass(kw_only=True, init=False, repr=False, eq=False)
class Definition(LimitOptions):
    """Adds the keywords of ``LimitOptions`` to a definition of Flask-Limiter, and ``source``, where
    the limit is written: a place of a policy, or text."""

    source: object = dataclasses.field(default="", compare=False)

    def __post_init__(self, *limiter: Any) -> None:
        super().__post_init__(*limiter)  # type: ignore[misc] # Flask-Limiter's
        self.defer_proxies()

    def defer_proxies(self) -> None:
        """Put functions behind proxies off until they are called."""
        vars(self).update(deferred(vars(self)))
        if isinstance(self.keep, Mapping):
            self.keep = tuple(self.keep.items())  # a definition has a hash

    @property
    def options(self) -> LimitOptions:
        return LimitOptions(**{word: getattr(self, word) for word in OPTION_NAMES})

    def check(self, default_strategy: str | None) -> None:
        """Raise ``ConfigurationError`` if the limit is invalid. What a function returns is checked
        at the request."""
        definition: Any = self
        text, cost = definition.limit_provider, definition.cost
        if not callable(text):
            check_in_code(
                text,
                self,
                1 if cost is None else cost,
                default_strategy,
                is_conditional=definition.deduct_when is not None,
            )
        code_checks.check_values(vars(self), f"limit {text!r}")
        if self.fair is not None and self.fair == definition.key_function:
            raise ConfigurationError(
                f"limit {text!r}, fair: found the key function of the limit, so each budget has "
                "one member. Count by what members share, such as a team, or remove fair."
            )
        for meta in _meta_limits(definition):
            meta.check(default_strategy)

    def __iter__(self) -> Iterator[RuntimeLimit]:
        definition: Any = self
        text = definition.limit_provider
        return runtime_limits(definition, text() if callable(text) else text)


def runtime_limits(definition: flask_limiter.Limit, text: object) -> Iterator[RuntimeLimit]:
    """Yield what the definition yields for this string. May raise ``ConfigurationError``."""
    if not text:
        return
    metas = tuple(runtime for meta in _meta_limits(definition) for runtime in meta)
    copied = {name: getattr(definition, name) for name in _COPIED}
    copied |= {"cost": 1 if definition.cost is None else definition.cost, "meta_limits": metas}
    for item in items_of(text, getattr(definition, "options", NO_OPTIONS)):
        yield RuntimeLimit(item, definition.limit_by, **copied)


def _meta_limits(definition: flask_limiter.Limit) -> list[MetaLimit]:
    return [
        MetaLimit(meta).bind_parent(definition)
        if isinstance(meta, str) or callable(meta)
        else upgrade(meta)
        for meta in definition.meta_limits or ()
    ]


def is_dynamic(definition: flask_limiter.Limit) -> bool:
    """Return whether a function says which limits the definition has, or their scope."""
    metas = [*(definition.meta_limits or ())]
    words = [definition.limit_provider, definition.scope, *metas]
    words += (getattr(meta, word, "") for meta in metas for word in ("limit_provider", "scope"))
    return any(map(callable, words))


@dataclasses.dataclass(unsafe_hash=True)
class Limit(Definition, flask_limiter.Limit):
    """A default limit; ``flask_limiter.Limit`` with keywords."""


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class ApplicationLimit(Definition, flask_limiter.ApplicationLimit):
    """A limit of the whole application; ``flask_limiter.ApplicationLimit`` with keywords."""


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class MetaLimit(Definition, flask_limiter.MetaLimit):
    """A limit on denials; ``flask_limiter.MetaLimit`` with keywords."""


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class RouteLimit(Definition, flask_limiter.RouteLimit):
    """A limit of a view, a blueprint or a block: ``flask_limiter.RouteLimit`` with keywords.

    A limit of a ``plan`` applies to the requests for which ``plan_loader`` returns that name;
    ``plan_sentence`` says what the plan allows. An ``optional`` one applies to callers with an
    amount of their own, for whom ``amount_sentence`` makes that sentence.
    """

    #: Whether ``override_defaults`` is written as true, and not a default.
    replaces: bool = False
    plan: str = ""
    plan_loader: Callable[[], str] | None = None
    optional: bool = False
    plan_sentence: str = ""
    amount_sentence: Callable[[ParsedLimit], str] | None = None
    #: The application's own, of a policy.
    keywords: tuple[tuple[str, Any], ...] = ()

    def __iter__(self) -> Iterator[RuntimeLimit]:
        if self.plan_loader is None or self.plan_loader() == self.plan:
            yield from super().__iter__()

    def _not_applied(self, _: str = "") -> Never:
        raise ConfigurationError(_NOT_APPLIED)

    # Flask reads the name of a function that is registered as a view, and sets that of a class's
    # view, which ``decorators = [limiter.limit]`` has replaced.
    __name__ = property(_not_applied, _not_applied)

    @overload
    def __call__(self, obj: Callable[P, R]) -> Callable[P, R]: ...

    @overload
    def __call__(self, obj: flask.Blueprint) -> None: ...

    def __call__(self, obj: Any = None) -> Any:
        """Attach to a view or a blueprint. Stacked decorators share one wrapper: the innermost."""
        if isinstance(obj, flask.Blueprint):
            return self.limiter.limit_manager.add_limit_of_blueprint(obj, self)
        if not callable(obj):
            raise ConfigurationError(_NOT_APPLIED)
        code_checks.check_target(obj, "limiter.limit(…)")
        if self.scope is not None:  # a block may have a number
            code_checks.check_text(self.scope, f"limit {self.limit_provider!r}, scope")
        limiter = self.limiter
        limiter._marked_for_limiting.add(get_qualified_name(obj))
        # Another extension's wrapper may be around: a second one would charge all limits again.
        view = obj if is_wrapped(obj, limiter) else wrap(obj, limiter)
        limiter.limit_manager.add_view_limit(view, self)
        return view

    def __enter__(self) -> None:
        code = sys._getframe(1).f_code
        location = f"{code.co_filename}:{code.co_qualname}"
        self.limiter._hooks.admit_to_block(self, location)  # noqa: SLF001 - no user may call it


#: By Flask-Limiter's class.
_UPGRADES: Final[dict[type, Any]] = {
    cls.__bases__[1]: cls for cls in (Limit, RouteLimit, ApplicationLimit, MetaLimit)
}


def upgrade(definition: Any) -> Any:
    """Return the definition as one of this module's classes, whose strings allow more."""
    upgraded_type = _UPGRADES.get(type(definition))
    if upgraded_type is None:
        return definition
    upgraded = upgraded_type.__new__(upgraded_type)
    vars(upgraded).update(vars(definition))
    upgraded.defer_proxies()
    return upgraded


def stated(definitions: Iterable[Any], strategy: str | None, place: str = "") -> list[Any]:
    """Return the definitions that apply without a decorator, upgraded and checked, equal ones once;
    ``place`` is where they are written. Flask-Limiter has made definitions of its own of those that
    are strings."""
    distinct: list[Any] = []
    for definition in map(upgrade, definitions):
        definition.check(strategy)
        code_checks.check_text(definition.scope, f"limit {definition.limit_provider!r}, scope")
        if definition not in distinct:
            distinct.append(definition)
            definition.source = definition.source or place
    return distinct


def route_limit(
    arguments: dict[str, Any], keywords: tuple[str, ...], limiter: Any, *, shared: bool
) -> RouteLimit:
    """Return the definition of the arguments of :meth:`Limiter.limit` or ``shared_limit``. Raises
    ``ConfigurationError`` if it is invalid."""
    text = arguments["limit_value"]
    where = f"limit {getattr(text, '__name__', '') or repr(text)}"
    code_checks.check_keywords(arguments["options"], keywords, where)
    arguments |= arguments.pop("options")
    key = arguments["key_func"]
    arguments["key_func"] = limiter._callbacks.key_in_code(key, where)  # noqa: SLF001
    code_checks.check_values(arguments, where)
    code_checks.check_lists(arguments, where)
    options = deferred({word: arguments[word] for word in keywords if word in arguments})
    text, overrides = options.pop("limit_value"), options.pop("override_defaults")
    settings = limiter._components.settings  # noqa: SLF001 - no user may call it
    key_function = options.pop("key_func") or settings._key_func
    definition = RouteLimit(
        limit_provider=text, limiter=limiter, key_function=key_function, shared=shared, **options
    )
    definition.source = _caller(3)
    is_guard = states_guard(text, definition)
    definition.override_defaults = not is_guard if overrides is None else overrides
    definition.replaces = overrides is True
    definition.check(settings._strategy)
    for attached in limiter._attached:  # noqa: SLF001 - no user may call it
        if (hooks := attached()) is not None:
            hooks.components.policies.check_limit(text, definition)
    return definition


def _caller(depth: int) -> str:
    code = sys._getframe(depth)
    return f"{code.f_code.co_filename}:{code.f_lineno}"


def group(name: str) -> Callable[[T], T]:
    """Return the decorator that notes the name of a policy's group. See :meth:`Limiter.group`."""
    code_checks.check_name(name, "limiter.group", NAME, ", of a group of the policy")
    source = _caller(3)

    def note(obj: T) -> T:
        code_checks.check_target(obj, f'limiter.group("{name}")')
        # On the function itself, so that the order of decorators does not matter.
        # A new mapping: `functools.wraps` gives a wrapper the one of the function that it wraps.
        vars(getattr(obj, "__func__", obj))[GROUPS] = groups_of(obj) | {name: source}
        return obj

    return note


def groups_of(*named: object) -> dict[str, str]:
    """Return the groups that views and blueprints name, each with the place of a decorator."""
    return {name: at for declared in named for name, at in getattr(declared, GROUPS, {}).items()}


def wrap(view: Any, limiter: Any) -> Any:
    """Return the callable with its limits, which are decided together when it is called."""
    name, key = get_qualified_name(view), limiter.app_key
    asynchronous = iscoroutinefunction(view)

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        context = contexts.get(None) or request_context._get_current_object()
        hooks = context.app.extensions.get(key)
        if hooks is None:
            hooks = limiter._not_attached(context.app)  # noqa: SLF001 - no user may call it
        try:
            answer = hooks.admit_to_view(context, name, is_final)
        except RateLimitExceeded as refusal:
            if not is_final(refusal):
                raise
            hooks.state_in(context).refusal = True
            return refusal.get_response()
        if answer is not None:
            return answer
        if asynchronous:
            return flask.current_app.ensure_sync(view)(*args, **kwargs)
        return view(*args, **kwargs)

    is_final = partial(_is_final, wrapper)
    setattr(wrapper, MARK, limiter)
    setattr(wrapper, key, getattr(view, key, []))  # its own limits; see the manager
    return wrapper


def methods_called(view: Any, *methods: str) -> list[Any]:
    """Return the methods of a class that its view calls for HTTP methods, or for all; none for a
    function."""
    cls = getattr(view, "view_class", None)
    if cls is None:
        return []
    names = [name.lower() for name in methods or cls.methods or ()]
    names = ["get" if name == "head" and not hasattr(cls, name) else name for name in names]
    return [cls.dispatch_request, *filter(None, [getattr(cls, name, None) for name in names])]


def is_wrapped(function: Any, limiter: Any) -> bool:
    """Return whether one of the extension's wrappers is around the callable, or inside its
    decorators."""
    while function is not None and getattr(function, MARK, None) != limiter:
        function = getattr(function, "__wrapped__", None)
    return function is not None


def _is_final(view: Any, refusal: RateLimitExceeded) -> bool:
    """Return whether returning the refusal's response has the effect of raising it, in half the
    time.

    It has unless another decorator surrounds the view or the application sees the exception.
    """
    app, request = flask.current_app, flask.request
    return app.view_functions.get(request.endpoint or "") is view and is_unhandled(refusal)


def is_unhandled(refusal: RateLimitExceeded) -> bool:
    """Return whether the application neither handles nor traps the exception. A subclass of Flask,
    or an extension such as Flask-RESTful, may have methods of its own for that."""
    app = flask.current_app
    return (
        _function(app.handle_user_exception) is flask.Flask.handle_user_exception
        and _function(app.handle_http_exception) is flask.Flask.handle_http_exception
        and not app.trap_http_exception(refusal)
        and error_handler(app, refusal) is None
    )


def error_handler(app: flask.Flask, error: Exception) -> Any:
    """Return the application's handler for an error of the current request, if it has one."""
    blueprints = (flask.request.blueprints,) if _TAKES_BLUEPRINTS else ()
    return app._find_error_handler(error, *blueprints)


def _function(method: Any) -> Any:
    return getattr(method, "__func__", None)
