"""Lua scripts, put together from the parts that one evaluation needs.

An admission is the prelude, one fragment per strategy in use, and the driver: a script for each
set of strategies, so that none pays for algorithms that it does not run.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

from ratelimit_ext.strategies import STRATEGIES

_FRAGMENTS = {
    strategy.CODE: Path(cast(Any, strategy).__file__).with_suffix(".lua")
    for strategy in STRATEGIES.values()
}


class Script(NamedTuple):
    """A script's text, and the digest by which a server knows it."""

    text: str
    sha: str


@lru_cache(maxsize=1024)
def composed(driver: str, codes: tuple[str, ...]) -> Script:
    """The script of a driver (``admit`` or ``settle``) over the strategies of these codes.

    Neither their order nor how often they come makes another script.
    """
    distinct = tuple(sorted(set(codes)))
    if distinct != codes:
        return composed(driver, distinct)
    parts = [_engine_part("prelude.lua")]
    held = [code for code in distinct if code.startswith("h")]
    for code in sorted({code.removeprefix("h") for code in distinct}):
        fragment = _FRAGMENTS[code].read_text("utf-8")
        parts.append(f"do\n{fragment}end\n")
    if held:
        fragment = (files("ratelimit_ext.strategies") / "reservations.lua").read_text("utf-8")
        parts.append(f"do\n{fragment}end\n")
        parts += [f"strategies.{code} = strategies.holding(strategies.{code[1:]})" for code in held]
    parts.append(_engine_part(f"{driver}.lua"))
    text = "\n".join(parts)
    return Script(text, sha1(text.encode("utf-8"), usedforsecurity=False).hexdigest())


def _engine_part(name: str) -> str:
    return (files("ratelimit_ext.engine") / name).read_text("utf-8")
