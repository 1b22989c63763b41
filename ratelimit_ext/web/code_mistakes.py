"""Mistakes of a program that are found before any request: misspelt keywords and settings, and
functions that cannot be called as they will be."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from flask_limiter.constants import ConfigVars
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.strategies import STRATEGIES

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy.errors import Mistake
from ratelimit_ext.policy.functions import checked

PREFIX: Final = "RATELIMIT_"
#: How alike two settings are, of 1, if one is a misspelling of the other.
LIKENESS: Final = 0.8
#: The settings that are read, of ``app.config`` and of the environment.
SETTINGS: Final = frozenset(
    {
        *(value for name, value in vars(ConfigVars).items() if name.isupper()),
        *("RATELIMIT_POLICY_FILE", "RATELIMIT_BLUEPRINTS", "RATELIMIT_LEASE_SECONDS"),
        "RATELIMIT_EMBEDDED_DIR",
    }
)
#: How many arguments the functions of a limit are called with.
_ARGUMENTS: Final = {
    "key_func": 0,
    "cost": 0,
    "error_message": 0,
    "exempt_when": 0,
    "deduct_when": 1,
    "on_breach": 1,
    "scope": 1,
}
NO_ARGUMENT: Final = (
    " Flask's request is a global: write `from flask import request` and leave the argument out."
)
UNUSED: Final = (
    "a limit was used as a function. Write it with its string in parentheses, "
    '@limiter.limit("30/minute"), below the route and above the function.'
)


def check_keywords(options: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    """Raise ``ConfigurationError`` for a keyword that does not exist."""
    for word in options:
        if word not in allowed:
            raise ConfigurationError(
                f"{where}: unknown keyword {word!r}; allowed: {', '.join(allowed)}."
                f"{did_you_mean(word, allowed)}"
            )


def check_functions(options: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigurationError`` for a function that takes other arguments than it will get."""
    for word, arguments in _ARGUMENTS.items():
        function = options.get(word)
        if callable(function):
            check_function(function, arguments, f"{where}, {word}")


def check_function(function: Callable[..., Any], arguments: int, where: str) -> None:
    """Raise ``ConfigurationError`` if the function cannot be called with so many arguments."""
    try:
        checked(function, arguments)
    except Mistake as mistake:
        hint = NO_ARGUMENT if arguments == 0 and "request" in str(mistake) else ""
        raise ConfigurationError(f"{where}: {mistake}{hint}") from None


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise ``ConfigurationError`` for a key of ``app.config`` that is nearly a setting.

    Other keys with the prefix are the application's own.
    """
    short = {name.removeprefix(PREFIX): name for name in SETTINGS}
    for name in config:
        if not name.startswith(PREFIX) or name in SETTINGS:
            continue
        near = difflib.get_close_matches(name.removeprefix(PREFIX), short, n=1, cutoff=LIKENESS)
        if near:
            raise ConfigurationError(
                f"app.config[{name!r}]: there is no such setting. Did you mean {short[near[0]]!r}?"
            )


class UnknownStrategyError(ConfigurationError, LimitsConfigurationError):
    """A default strategy that does not exist. It is also the error that limits raises for one."""


def check_strategy(stated: str | None, config: Mapping[str, Any]) -> None:
    """Raise ``UnknownStrategyError`` for an unknown default strategy."""
    strategy = stated or config.get(ConfigVars.STRATEGY) or "fixed-window"
    if strategy not in STRATEGIES:
        where = "Limiter, strategy" if stated else ConfigVars.STRATEGY
        raise UnknownStrategyError(
            f"{where}: found {strategy!r}; allowed: {', '.join(sorted(STRATEGIES))}."
            f"{did_you_mean(str(strategy), STRATEGIES)}"
        )


def keywords_of_signature(function: Callable[..., Any], *more: str) -> tuple[str, ...]:
    """The keywords that a function takes, and others."""
    names = list(inspect.signature(function).parameters)
    return tuple(dict.fromkeys([*names[1:], *more]))
