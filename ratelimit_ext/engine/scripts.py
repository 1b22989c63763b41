"""Lua scripts, put together from the parts that one evaluation needs.

An admission is the prelude, one fragment per strategy in use, and the driver: a script for each
set of strategies, so that none pays for algorithms that it does not run.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

from ratelimit_ext.strategies.strategy import Strategy


class Script(NamedTuple):
    """A script's text, the digest by which a server knows it, and the same as a function library.

    Both the library and its only function have the name ``function``.
    """

    text: str
    sha: str
    library: str
    function: str


@lru_cache(maxsize=1024)
def composed(driver: str, strategies: tuple[Strategy, ...]) -> Script:
    """The script of a driver (``admit`` or ``settle``) over these strategies.

    Neither their order nor how often they come makes another script.
    """
    distinct = tuple(sorted(set(strategies), key=lambda strategy: strategy.code))
    if distinct != strategies:
        return composed(driver, distinct)
    fragments = dict.fromkeys(part for strategy in distinct for part in strategy.fragments())
    head, body = "\n".join([_file("prelude.lua"), *fragments]), _file(f"{driver}.lua")
    text = f"{head}\n{body}"
    sha = sha1(text.encode("utf-8"), usedforsecurity=False).hexdigest()
    name = f"ratelimit_{sha}"
    library = (
        f"#!lua name={name}\n{head}\n"
        f"redis.register_function('{name}', function(KEYS, ARGV)\n{body}\nend)"
    )
    return Script(text, sha, library, name)


def _file(name: str) -> str:
    return (files("ratelimit_ext.engine") / name).read_text("utf-8")
