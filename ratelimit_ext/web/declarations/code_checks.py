"""Checks of what a program states: keywords, settings, functions, and the names of limits."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import flask
from flask_limiter.constants import ConfigVars
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.strategies import STRATEGIES

from ratelimit_ext.core.errors import ConfigurationError, shown, unknown_name
from ratelimit_ext.core.limit import DEFAULT_STRATEGY, NO_OPTIONS
from ratelimit_ext.core.limit_string import states_strategy
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.policy.errors import Mistake
from ratelimit_ext.policy.functions import checked

_logger: Final = logging.getLogger("ratelimit_ext")
#: The number of arguments that the functions of a limit are called with.
_ARGUMENTS: Final = {
    "limit_value": 0,
    "limit_provider": 0,
    "key_func": 0,
    "cost": 0,
    "error_message": 0,
    "exempt_when": 0,
    "deduct_when": 1,
    "on_breach": 1,
    "scope": 1,
}
#: The others may be values.
_ONLY_FUNCTIONS: Final = ("key_func", "exempt_when", "deduct_when", "on_breach")
#: A decorator without parentheses takes the view for a function that returns limits.
_NOT_A_VIEW: Final = ' If it is a view, write the limit: @limiter.limit("30/minute").'
#: Names built from request data would fill the log and memory.
MOST_WARNINGS: Final = 100


class UnknownStrategyError(ConfigurationError, LimitsConfigurationError):
    """The default strategy does not exist. The library `limits` raises its base for this."""


def check_keywords(options: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    """Raise ``ConfigurationError`` for an unknown keyword."""
    for word in options:
        if word not in allowed:
            raise ConfigurationError(f"{where}: {unknown_name('keyword', word, allowed)}")


def keywords_of_signature(method: Callable[..., Any], *more: str) -> tuple[str, ...]:
    """The keywords of a method without ``**keywords``, and more."""
    _self, *parameters = inspect.signature(method).parameters.values()
    names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    return tuple(dict.fromkeys([*names, *more]))


def check_functions(options: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigurationError`` for a value in place of a function, for a function that takes
    other arguments than it gets, and for ``methods`` as a string, whose letters would count, or of
    which no request has one."""
    for word, arguments in _ARGUMENTS.items():
        function = options.get(word)
        if callable(function) or (function is not None and word in _ONLY_FUNCTIONS):
            hint = _NOT_A_VIEW if word == "limit_value" else ""
            check_function(function, arguments, f"{where}, {word}", hint=hint)
    methods = options.get("methods") or ()
    if isinstance(methods, str):
        methods = tuple(methods)  # as Flask-Limiter's definitions read it: letters
    if any(len(method) == 1 for method in methods):
        raise ConfigurationError(
            f"{where}, methods: found {shown(''.join(methods))}; "
            'allowed: a list of methods such as ["POST"].'
        )
    if {method.upper() for method in methods} == {"HEAD"}:
        raise ConfigurationError(
            f'{where}, methods: found "HEAD" alone; HEAD counts as GET. Write "GET".'
        )


def check_function(function: object, arguments: int, where: str, *, hint: str = "") -> None:
    """Raise ``ConfigurationError`` if the function cannot be called with that number of
    arguments."""
    try:
        checked(function, arguments)
    except Mistake as mistake:
        if arguments == 0 and "request" in str(mistake):
            hint = " Remove the argument and import `request` from flask instead."
        raise ConfigurationError(f"{where}: {mistake}{hint}") from None


def check_lists(options: Mapping[str, Any]) -> None:
    """Raise ``ConfigurationError`` for a string in place of a list of limits, whose letters would
    be limits."""
    for word in ("application_limits", "default_limits", "meta_limits", "in_memory_fallback"):
        if isinstance(found := options[word], str):
            raise ConfigurationError(
                f"Limiter, {word}: found {shown(found)}; allowed: a list. Write [{found!r}]."
            )


def check_target(target: object, where: str) -> None:
    """Raise ``ConfigurationError`` for what is neither a function nor a blueprint."""
    if inspect.isclass(target):
        raise ConfigurationError(
            f"{where}: found the class {target.__name__!r}; allowed: a function or a blueprint. "
            f"Write decorators = [{where}] in the class."
        )
    if not callable(target) and not isinstance(target, flask.Blueprint):
        raise ConfigurationError(
            f"{where}: found {shown(target)}; allowed: a function or a blueprint."
        )


def check_strategy(keyword: str | None, config: Mapping[str, Any]) -> None:
    """Raise ``UnknownStrategyError`` for an unknown default strategy. The constructor's keyword
    precedes the configuration."""
    strategy = keyword or config.get(ConfigVars.STRATEGY) or DEFAULT_STRATEGY
    if strategy not in STRATEGIES:
        where = "Limiter" if keyword else ConfigVars.STRATEGY
        raise UnknownStrategyError(
            f"{where}: {unknown_name('strategy', strategy, sorted(STRATEGIES))}"
        )


class KnownNames:
    """Warns, once for each, of names of limits that no limit has.

    An application may refer to a limit that its operator's policy leaves out. This is no error,
    but it may be a misspelling. There is no warning if no limit has a name of the kind.
    """

    def __init__(self, definitions: Callable[[], Iterable[Any]]) -> None:
        self._definitions = definitions
        self._warned: set[tuple[str, str]] = set()

    def check_name(self, name: str, caller: str, *, change: str = "") -> None:
        """Warn if no limit has the name; with a ``change``, no limit whose strategy may take it."""
        kind = "'unless blocked' limit" if change else "limit"
        self._warn(name, caller, kind, change, lambda each: getattr(each, "name", ""))

    def check_unit(self, unit: str, caller: str) -> None:
        """Warn if no limit ``as reported`` has the unit."""
        self._warn(
            unit, caller, "unit", "report", lambda each: getattr(each, "unit", "") or "requests"
        )

    def _warn(
        self, name: str, caller: str, kind: str, change: str, name_of: Callable[[Any], str]
    ) -> None:
        strategies = strategies_taking(change)
        known: set[str] = set()
        for each in self._definitions():
            if not change or states_strategy(
                each.limit_provider, getattr(each, "options", NO_OPTIONS), strategies
            ):
                known.add(name_of(each))
            elif callable(each.limit_provider) and name_of(each) == name:
                return  # a function can return any string
        known.discard("")
        warned = (caller, name) in self._warned or len(self._warned) >= MOST_WARNINGS
        if not known or name in known or warned:
            return
        self._warned.add((caller, name))
        logger = flask.current_app.logger if flask.has_app_context() else _logger
        logger.warning("%s has no effect: %s", caller, unknown_name(kind, name, sorted(known)))
