"""Functions that a policy names as ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy.errors import Mistake


def is_dotted(name: str) -> bool:
    """Whether the name has the form ``package.module:function``.

    >>> is_dotted("app.keys:tenant"), is_dotted("user"), is_dotted("app.keys.tenant")
    (True, False, False)
    """
    module, colon, path = name.partition(":")
    parts = [*module.split("."), *path.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def resolved(name: str, arguments: int) -> Callable[..., Any]:
    """The function of this name; it must take that many arguments. Imports its module."""
    if not is_dotted(name):
        raise Mistake(f'found {shown(name)}; allowed: a function as "package.module:function".')
    module_name, _, path = name.partition(":")
    found: Any = _module(name, module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise Mistake(
                f"found {name!r}, but {module_name!r} has no {path!r}."
                f"{did_you_mean(part, dir(found))} Where that module is still being imported, move "
                "the function to a module of its own."
            ) from None
    return checked(found, arguments)


def _module(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - the module is the user's: anything can come out
        raise Mistake(
            f"found {name!r}, but importing {module_name!r} fails: "
            f"{type(error).__name__}: {error}. Check its name and that it can be imported here."
        ) from None


def checked(function: object, arguments: int) -> Callable[..., Any]:
    """The function itself, if it can be called with that many arguments and answers at once."""
    if not callable(function):
        raise Mistake(f"found {shown(function)}; allowed: a function.")
    if inspect.iscoroutinefunction(function):
        raise Mistake(
            f"found {shown(function)}, which is asynchronous; allowed: a plain function (def)."
        )
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return function  # written in C: its arguments are unknown
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        count = ("no argument", "one argument")[arguments]
        raise Mistake(
            f"found {shown(function)}{signature}; allowed: a function that is called with {count}."
        ) from None
    return function
