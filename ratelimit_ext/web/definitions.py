"""Limits as they are written: Flask-Limiter's definitions with the keywords of ``LimitOptions``.

A definition yields one ``RuntimeLimit`` per limit in its string. A callable is asked for its string
at every request.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final

import flask
import flask_limiter
from flask_limiter._limits import RuntimeLimit
from flask_limiter.util import get_qualified_name
from limits import RateLimitItem

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import OPTION_NAMES, LimitOptions
from ratelimit_ext.policy import check_in_code
from ratelimit_ext.web.code_mistakes import UNUSED
from ratelimit_ext.web.limits_adapter import items_of
from ratelimit_ext.web.refusal import RateLimitExceeded

#: The attribute by which Flask-Limiter marks its wrappers. It is a weak proxy: compare with ==.
MARK = "__wrapper-limiter-instance"


class Definition(LimitOptions):
    """What the definitions have in common: the options of their limit."""

    @property
    def options(self) -> LimitOptions:
        """The options as a value of their own."""
        return LimitOptions(**{word: getattr(self, word) for word in OPTION_NAMES})

    def check(self, default_strategy: str | None) -> None:
        """Raise ``ConfigurationError`` for an invalid limit. A callable is checked when its string
        is known, at the request."""
        definition: Any = self
        text, cost = definition.limit_provider, definition.cost
        if text != "" and not callable(text):
            check_in_code(text, self, 1 if cost is None else cost, default_strategy)
        for meta in definition.meta_limits or ():
            limit = MetaLimit(meta) if isinstance(meta, str) or callable(meta) else extended(meta)
            limit.check(default_strategy)

    def __iter__(self) -> Iterator[RuntimeLimit]:
        definition: Any = self
        provider = definition.limit_provider
        text = provider() if callable(provider) else provider
        if not text:
            return
        # The stock class makes everything but the items, whose string it would not understand.
        template = copy.copy(definition)
        template.limit_provider = "1/second"
        stock: Any = super(Definition, template)
        runtime = next(stock.__iter__())
        for item in items_of(text, self.options):
            # The stock class takes a cost of 0 for none given.
            cost = runtime.cost if definition.cost is None else definition.cost
            yield dataclasses.replace(runtime, limit=item, cost=cost)


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

    ``asks`` and ``items`` replace the string for the limits of plans: at every request ``asks`` is
    asked, once for all definitions that ask the same, and ``items`` tells which items apply to its
    answer.
    """

    asks: Callable[[], Any] | None = None
    items: Callable[[Any], tuple[RateLimitItem, ...]] | None = None
    #: The plan whose callers the limit is for; empty: for all.
    plan: str = ""

    def __iter__(self) -> Iterator[RuntimeLimit]:
        if self.asks is None or self.items is None:
            yield from super().__iter__()
        else:
            yield from runtime_limits(self, self.items(self.asks()))

    @property
    def __name__(self) -> str:
        # Flask asks what is registered as a view for its name.
        raise ConfigurationError(UNUSED)

    def __call__(self, obj: Any = None) -> Any:
        """Attach to a view or a blueprint. Stacked decorators share one wrapper: the innermost."""
        if not callable(obj) and not isinstance(obj, flask.Blueprint):
            raise ConfigurationError(UNUSED)
        if isinstance(obj, flask.Blueprint):
            return super().__call__(obj)
        limiter, name = self.limiter, get_qualified_name(obj)
        limiter._marked_for_limiting.add(name)
        limiter.limit_manager.add_decorated_limit(name, self)
        return obj if getattr(obj, MARK, None) == limiter else limited(obj, limiter)

    def __enter__(self) -> None:
        code = sys._getframe(1).f_code
        location = f"{code.co_filename}:{code.co_qualname}"
        self.limiter._check_block_limit(self, location)  # noqa: SLF001 - no user may call it


#: Flask-Limiter's own classes, which it makes of strings, and ours in their place.
_EXTENDED: Final[dict[type, Any]] = {
    flask_limiter.Limit: Limit,
    flask_limiter.RouteLimit: RouteLimit,
    flask_limiter.ApplicationLimit: ApplicationLimit,
    flask_limiter.MetaLimit: MetaLimit,
}


def extended(definition: Any) -> Any:
    """The definition as one of ours: its string may say what Flask-Limiter has no words for."""
    ours = _EXTENDED.get(type(definition))
    if ours is None:
        return definition
    made = ours.__new__(ours)
    vars(made).update(vars(definition))
    return made


def limited(view: Any, limiter: Any) -> Any:
    """The callable behind its limits. All of them are decided at its call."""
    name = get_qualified_name(view)
    asynchronous = iscoroutinefunction(view)

    @wraps(view)
    def admitted(*args: Any, **kwargs: Any) -> Any:
        try:
            limiter._check_request_limit(callable_name=name, in_middleware=False)
        except RateLimitExceeded as refusal:
            if not _answers_itself(admitted, refusal):
                raise
            limiter.context.refusal = True
            return refusal.get_response()
        if asynchronous:
            return flask.current_app.ensure_sync(view)(*args, **kwargs)
        return view(*args, **kwargs)

    setattr(admitted, MARK, limiter)
    return admitted


def _answers_itself(view: Any, refusal: RateLimitExceeded) -> bool:
    """Whether the refusal may be answered here and now, which takes half as long as raising it.

    Flask runs an exception as an application of its own, to make a response of it. So only where
    nobody could tell the difference: no decorator stands around the view, and the application
    neither handles the refusal nor traps it.
    """
    app, request = flask.current_app, flask.request
    return (
        app.view_functions.get(request.endpoint or "") is view
        and not app.trap_http_exception(refusal)
        and app._find_error_handler(refusal, request.blueprints) is None
    )


def runtime_limits(
    definition: flask_limiter.Limit, items: tuple[RateLimitItem, ...]
) -> Iterator[RuntimeLimit]:
    """The runtime limits of a definition for items that are already parsed."""
    for item in items:
        yield RuntimeLimit(
            item,
            definition.limit_by,
            scope=definition.scope,
            per_method=definition.per_method,
            methods=definition.methods,
            error_message=definition.error_message,
            exempt_when=definition.exempt_when,
            deduct_when=definition.deduct_when,
            override_defaults=definition.override_defaults,
            on_breach=definition.on_breach,
            cost=1 if definition.cost is None else definition.cost,
            shared=definition.shared,
        )
