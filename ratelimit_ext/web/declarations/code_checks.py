"""Checks of what a program states: keywords, functions, targets and the default strategy."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from http import HTTPMethod
from typing import Any, Final

import flask
import flask_limiter
from flask_limiter.constants import ConfigVars
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.strategies import STRATEGIES

from ratelimit_ext.core.errors import ConfigurationError, not_allowed, unknown_name
from ratelimit_ext.core.limit import DEFAULT_STRATEGY
from ratelimit_ext.policy.errors import NAME_ALLOWED, Mistake, unknown_identity
from ratelimit_ext.policy.functions import IDENTITY, checked, limit_key

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
    "on_meta_breach": 1,
    "request_identifier": 0,
    "scope": 1,
}
#: The others may be values.
_ONLY_FUNCTIONS: Final = (
    *("key_func", "exempt_when", "deduct_when", "on_breach", "on_meta_breach"),
    "request_identifier",
)
_SWITCHES: Final = ("per_method", "override_defaults")
_METHODS: Final = tuple(HTTPMethod)
#: A method that is this like a standard one (1 is equal) is a misspelling. Others may be meant.
_LIKENESS: Final = 0.65
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: A decorator without parentheses takes the view for a function that returns limits.
_NOT_A_VIEW: Final = ' If it is a view, write the limit: @limiter.limit("30/minute").'


class UnknownStrategyError(ConfigurationError, LimitsConfigurationError):
    """The default strategy does not exist. The library `limits` raises its base for this."""


def check_name(name: object, decorator: str, pattern: str = IDENTITY, more: str = "") -> None:
    """Raise ``ConfigurationError`` for a name that no policy can use, such as the function of a
    decorator without parentheses."""
    if not isinstance(name, str) or not re.fullmatch(pattern, name):
        allowed = NAME_ALLOWED if more else "a name of letters, digits, _ and -"
        refused = not_allowed(name, f"{allowed}{more}")
        raise ConfigurationError(f'{decorator}: {refused} Write @{decorator}("calls").')


def check_keywords(options: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    for word in options:
        if word not in allowed:
            raise ConfigurationError(f"{where}: {unknown_name('keyword', word, allowed)}")


def keywords_of_signature(method: Callable[..., Any], *more: str) -> tuple[str, ...]:
    """Return the keywords of a method without ``**keywords``, and more."""
    _self, *parameters = inspect.signature(method).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return tuple(dict.fromkeys([*names, *more]))


def check_values(options: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigurationError`` for keywords of Flask-Limiter that would be ignored, or taken
    for something else: a value in place of a function or a text, a function that takes other
    arguments than it gets, words in place of true and false, and methods that no request has."""
    for word, arguments in _ARGUMENTS.items():
        function = options.get(word)
        if callable(function) or (function is not None and word in _ONLY_FUNCTIONS):
            hint = _NOT_A_VIEW if word == "limit_value" else ""
            check_function(function, arguments, f"{where}, {word}", hint=hint)
    for word in _SWITCHES:
        if (value := options.get(word)) not in (True, False, None):
            raise ConfigurationError(f"{where}, {word}: {not_allowed(value, 'True or False')}")
    if isinstance(options.get("key_function"), list | tuple):
        raise ConfigurationError(
            f"{where}, key_function: found a list; allowed: a function. limiter.limit and policies "
            "count several identities together."
        )
    for word in ("error_message", "key_prefix"):
        if (value := options.get(word)) is not None:
            check_text(value, f"{where}, {word}")
    if options.get("methods") is not None:
        _check_methods(options["methods"], f"{where}, methods")


def _check_methods(given: Collection[Any], where: str) -> None:
    methods = [method.upper() for method in given if isinstance(method, str)]
    # Flask-Limiter's definitions read a string as a list of letters.
    if len(methods) < len(given) or all(len(name) == 1 for name in methods):
        written = "".join(given) if len(methods) == len(given) > 0 else given
        allowed = 'a list of methods such as ["POST"]'
        raise ConfigurationError(f"{where}: {not_allowed(written, allowed)}")
    if {*methods} == {"HEAD"}:
        raise ConfigurationError(f'{where}: found "HEAD" alone; HEAD counts as GET. Write "GET".')
    for method in methods:
        near = get_close_matches(method, _METHODS, n=1, cutoff=_LIKENESS)
        if near and near[0] != method:
            raise ConfigurationError(
                f"{where}: found {method!r}, which no request has. Did you mean {str(near[0])!r}?"
            )


def check_text(value: object, where: str) -> None:
    """Raise ``ConfigurationError`` for a number in place of a text."""
    if isinstance(value, int | float | bytes):
        allowed = "a text, or a function that returns one"
        raise ConfigurationError(f"{where}: {not_allowed(value, allowed)}")


def check_function(function: object, arguments: int, where: str, *, hint: str = "") -> None:
    """Raise ``ConfigurationError`` if the function does not take that many arguments."""
    try:
        checked(function, arguments)
    except Mistake as mistake:
        if arguments == 0 and "request" in str(mistake):
            hint = " Remove the argument and import `request` from flask instead."
        raise ConfigurationError(f"{where}: {mistake}{hint}") from None


def checked_key(key: Any, identities: Collection[str], where: str) -> Any:
    """Return identities that a limit counts together. Raises ``ConfigurationError``."""
    if not issubclass(type(key), list | tuple):  # a proxy would be asked for its class
        return key
    try:
        parts = limit_key([*key], python=True)
    except Mistake as mistake:
        raise ConfigurationError(f"{where}, key_func: {mistake}") from None
    for part in parts:
        if isinstance(part, str) and part not in identities:
            raise ConfigurationError(f"{where}, key_func: {unknown_identity(part, identities)}")
    return parts


def check_lists(options: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigurationError`` for a string in place of a list of limits, whose letters would
    be limits."""
    for word in ("application_limits", "default_limits", "meta_limits", "in_memory_fallback"):
        if isinstance(value := options.get(word), str):
            allowed = not_allowed(value, "a list")
            raise ConfigurationError(f"{where}, {word}: {allowed} Write [{value!r}].")


def check_read(settings: flask_limiter.Limiter) -> None:
    """Raise ``ConfigurationError`` for what would be ignored, or fail at a request."""
    words = ("on_breach", "on_meta_breach", "request_identifier", "key_prefix")
    check_values({word: getattr(settings, f"_{word}") for word in words}, "Limiter")
    if (retry_after := settings._retry_after) not in (None, "delta-seconds", "http-date"):
        allowed = not_allowed(retry_after, "'delta-seconds' or 'http-date'")
        raise ConfigurationError(f"Limiter, retry_after: {allowed}")
    for header, name in vars(settings)["_header_mapping"].items():
        if not (isinstance(header, flask_limiter.HeaderNames) and _HEADER.fullmatch(str(name))):
            allowed = not_allowed(f"{header}: {name}", "a name of a header for HeaderNames.LIMIT")
            raise ConfigurationError(f"Limiter, header_name_mapping: {allowed}")


def check_target(target: object, where: str) -> None:
    """Raise ``ConfigurationError`` for what is neither a function nor a blueprint."""
    if inspect.isclass(target):
        raise ConfigurationError(
            f"{where}: found the class {target.__name__!r}; allowed: a function or a blueprint. "
            f"Write decorators = [{where}] in the class."
        )
    if not callable(target) and not isinstance(target, flask.Blueprint):
        raise ConfigurationError(f"{where}: {not_allowed(target, 'a function or a blueprint')}")


def check_strategy(keyword: str | None, config: Mapping[str, Any]) -> None:
    """Raise ``UnknownStrategyError`` for an unknown default strategy. The constructor's keyword
    precedes the configuration."""
    strategy = keyword or config.get(ConfigVars.STRATEGY) or DEFAULT_STRATEGY
    if strategy not in STRATEGIES:
        where = "Limiter" if keyword else ConfigVars.STRATEGY
        unknown = unknown_name("strategy", strategy, sorted(STRATEGIES))
        raise UnknownStrategyError(f"{where}: {unknown}")
