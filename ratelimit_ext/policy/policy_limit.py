"""A limit as a policy states it: the string, what it parsed to, and the keywords."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ratelimit_ext.policy.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLimit:
    """One entry of a list of limits, checked.

    ``limit`` is the string and ``rates`` what it says: (amount, period in microseconds) of each
    limit in it. ``source`` is the place for a person: ``policy.toml: blueprints.chat.limits[1]``;
    ``place`` knows the line too.
    ``strategy`` is ``None`` for the extension's default. ``key`` is the name of an identity, a
    function, or ``None`` for the extension's key function. Where ``shared`` is true, ``scope``
    names the bucket; where it is false, each endpoint has its own.
    """

    source: str
    limit: str
    rates: tuple[tuple[int, int], ...]
    name: str = ""
    strategy: str | None = None
    burst: int | None = None
    unit: str = "requests"
    key: str | Callable[[], str] | None = None
    #: Of a limit in usd in dollars.
    cost: int | float | str | Callable[[], Any] = 1
    mode: str = "enforce"
    anchor: str | None = None
    timezone: str = "UTC"
    # Of the string: how many times the usual.
    multiple: int | None = None
    methods: tuple[str, ...] | None = None
    per_method: bool = False
    override_defaults: bool = True
    error_message: str | Callable[[], str] | None = None
    shared: bool = False
    scope: str | None = None
    exempt_when: Callable[[], bool] | None = None
    # Functions of a response and of a request limit: types of frameworks that are unknown here.
    deduct_when: Callable[[Any], bool] | None = None
    on_breach: Callable[[Any], Any] | None = None
    place: Place | None = field(default=None, compare=False, repr=False)
