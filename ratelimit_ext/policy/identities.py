"""Who pays, as a policy names it: the name of an identity or a function."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ratelimit_ext.core.errors import shown
from ratelimit_ext.policy.errors import Mistake
from ratelimit_ext.policy.functions import checked, resolved

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def identity(value: object, python: bool) -> str | Callable[[], Any]:  # noqa: FBT001 - a reader
    """A name, checked for its form alone: the application may register any."""
    if isinstance(value, str):
        if _NAME.fullmatch(value):
            return value
        if ":" in value:
            return resolved(value, 0)
    elif python and callable(value):
        return checked(value, 0)
    own = ", a function" if python else ""
    raise Mistake(
        f'found {shown(value)}; allowed: the name of an identity such as "user"{own}, or '
        '"package.module:function".'
    )
