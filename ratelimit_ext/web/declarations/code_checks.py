"""Checks of what a program states: keywords, functions, targets and the default strategy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import flask
from flask_limiter.constants import ConfigVars
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.strategies import STRATEGIES

from ratelimit_ext.core.errors import ConfigurationError, shown, unknown_name
from ratelimit_ext.core.limit import DEFAULT_STRATEGY
from ratelimit_ext.policy.errors import Mistake
from ratelimit_ext.policy.functions import checked

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
