"""Lua scripts, put together from the parts that one evaluation needs.

An admission is the prelude, one fragment per strategy in use, and the driver: a script for each
set of strategies, so that none pays for algorithms that it does not run.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1
from pathlib import Path
from typing import Final, NamedTuple

from ratelimit_ext.strategies.strategy import Strategy

#: All Lua files here, read at the start. Later no file descriptor may be left, or another version
#: may have replaced them.
TEXTS: Final = {file.stem: file.read_text("utf-8") for file in Path(__file__).parent.glob("*.lua")}


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
    head, body = "\n".join([TEXTS["prelude"], *fragments]), TEXTS[driver]
    text = f"{head}\n{body}"
    sha = sha1(text.encode("utf-8"), usedforsecurity=False).hexdigest()
    name = f"ratelimit_{sha}"
    library = (
        f"#!lua name={name}\n{head}\n"
        f"redis.register_function('{name}', function(KEYS, ARGV)\n{body}\nend)"
    )
    return Script(text, sha, library, name)
