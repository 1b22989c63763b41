"""Functions in a policy: ``package.module:function`` in a file, a function in ``app.config``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias, cast

from ratelimit_ext.core.errors import did_you_mean, not_allowed, shown
from ratelimit_ext.policy.errors import Mistake

#: How many identities a limit may count together.
MOST_IDENTITIES: Final = 3
IDENTITY: Final = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
#: Whether a limit with this value applies to the current request, or to a call of these identities.
Applies: TypeAlias = Callable[[Any, Mapping[str, str] | None], bool]
#: The application's keywords, each with the function that checks its value.
Checks: TypeAlias = Mapping[str, Callable[[Any], Any]]
NO_KEYWORDS: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Condition:
    """Exempts a request from a limit: by its ``exempt_when``, or by keywords of the application's.
    Another attempt of a request may be another model's, so it is asked again."""

    exempt_when: Callable[[], bool] | None
    keywords: tuple[tuple[Applies, Any], ...]

    def __call__(self) -> bool:
        if self.exempt_when is not None and self.exempt_when():
            return True
        return not self.covers(None)

    def covers(self, who: Mapping[str, str] | None) -> bool:
        return all(applies(value, who) for applies, value in self.keywords)


def function(value: object, arguments: int, *, python: bool) -> Callable[..., Any]:
    if isinstance(value, str):
        return _imported(value, arguments)
    if python and callable(value):
        return checked(value, arguments)
    direct = "a function or " if python else ""
    raise Mistake(not_allowed(value, f'{direct}"package.module:function"'))


def identity(value: object, *, python: bool) -> str | Callable[[], Any]:
    """Return the name of an identity, which the application may still register, or a function."""
    if isinstance(value, str) and re.fullmatch(IDENTITY, value):
        return value
    if (isinstance(value, str) and ":" in value) or (python and callable(value)):
        return function(value, 0, python=python)
    direct = '"user", a function' if python else '"user"'
    allowed = f'the name of an identity such as {direct}, or "package.module:function"'
    raise Mistake(not_allowed(value, allowed))


def limit_key(value: object, *, python: bool) -> Any:
    """Return what a limit counts by: an identity, or up to three that are counted together."""
    if not isinstance(value, list):
        return identity(value, python=python)
    is_repeated = len({*map(repr, value)}) < len(value)
    if not 1 < len(value) <= MOST_IDENTITIES or is_repeated:
        twice = ", with one twice" if is_repeated else ""
        raise Mistake(
            f"found a list of {len(value)}{twice}; allowed: two or three different identities, "
            'such as ["user", "model"], or one without a list.'
        )
    return tuple([identity(part, python=python) for part in value])


def is_dotted(name: str) -> bool:
    """Return whether the name has the form ``package.module:function``.

    >>> is_dotted("app.keys:tenant"), is_dotted("user"), is_dotted("app.keys.tenant")
    (True, False, False)
    """
    module, colon, path = name.partition(":")
    parts = [*module.split("."), *path.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def _imported(name: str, arguments: int) -> Callable[..., Any]:
    if not is_dotted(name):
        raise Mistake(not_allowed(name, 'a function as "package.module:function"'))
    module_name, _, path = name.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - the module is the user's and may raise anything
        raise Mistake(
            f"found {name!r}, but importing {module_name!r} fails: {type(error).__name__}: {error}."
            " Correct the name or the module."
        ) from None
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise Mistake(
                f"found {name!r}, but {module_name!r} has no {path!r}."
                f"{did_you_mean(part, dir(value))} If that module is still being imported, move "
                "the function to a module of its own."
            ) from None
    return checked(value, arguments)


def checked(function: object, arguments: int) -> Callable[..., Any]:
    """Return the function itself, if it can be called with that many arguments and is not async.

    A proxy of Werkzeug's is resolved by requests alone."""
    if hasattr(type(function), "_get_current_object"):
        return cast(Callable[..., Any], function)
    if not callable(function):
        raise Mistake(not_allowed(function, "a function"))
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise Mistake(f"found {shown(function)}, an async function; allowed: a plain one (def).")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return function  # written in C: its arguments are unknown
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        count = ("no argument", "one argument", "two arguments")[arguments]
        raise Mistake(
            f"found {shown(function)}{signature}; allowed: a function that is called with {count}."
        ) from None
    return function
