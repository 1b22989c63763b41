"""A limit of a policy: the string, what it parsed to, and the keywords."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ratelimit_ext.core.limit import NO_OPTIONS, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit
from ratelimit_ext.policy.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLimit:
    """One entry of a list of limits, checked.

    ``text`` is the string and ``parsed`` the limits in it. ``source`` is the place for a person:
    ``policy.toml: blueprints.chat.limits[1]``; ``place`` knows the line too. ``key`` is the name of
    an identity, a function, or ``None`` for the extension's key function. If ``shared`` is true,
    ``scope`` names the bucket; if not, each endpoint has its own.
    """

    source: str
    text: str
    parsed: tuple[ParsedLimit, ...]
    options: LimitOptions = NO_OPTIONS
    key: str | Callable[[], str] | None = None
    #: In dollars for a limit in usd.
    cost: int | float | str | Callable[[], Any] = 1
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
