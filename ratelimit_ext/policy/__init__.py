"""Limits by configuration: a TOML file and ``app.config`` to one value, :class:`Policy`.

Imports no Flask, and pydantic only when limits are read. Every mistake is found at load, and one
:class:`~ratelimit_ext.core.errors.ConfigurationError` lists them all.
"""

# ruff: noqa: PLC0415 - pydantic takes longer to import than the rest of the extension's own code

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import DEFAULT_STRATEGY, NO_OPTIONS, OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import parse
from ratelimit_ext.policy.errors import AppConfig, Code, Mistakes, Place
from ratelimit_ext.policy.functions import NO_KEYWORDS, Checks
from ratelimit_ext.strategies import ALIASES

if TYPE_CHECKING:
    from ratelimit_ext.policy.policy import Policy

__all__ = ["check_in_code", "load_policy"]


def _no_check(policy: Policy, mistakes: Mistakes) -> None:
    pass


def load_policy(
    *,
    file: str | os.PathLike[str] | None,
    blueprints: Mapping[str, Any] | None,
    policy: Any = None,
    default_strategy: str | None = None,
    plan_keywords: Checks = NO_KEYWORDS,
    limit_keywords: Checks = NO_KEYWORDS,
    check: Callable[[Policy, Mistakes], None] = _no_check,
) -> Policy:
    """Return the policy of ``RATELIMIT_POLICY_FILE``, or of ``RATELIMIT_POLICY``, and of
    ``RATELIMIT_BLUEPRINTS``, which adds to it.

    ``default_strategy`` is the extension's: with it, ``burst`` and ``anchor`` of limits that name
    no strategy are checked against it. ``plan_keywords`` and ``limit_keywords`` are the
    application's, each with a function that returns the value or raises ``ValueError``. ``check``
    adds the mistakes that only the application can find. Raises
    :class:`~ratelimit_ext.core.errors.ConfigurationError` with all mistakes.
    """
    from ratelimit_ext.policy.nesting import Nesting
    from ratelimit_ext.policy.schema import VERSION, Document, Targets, read
    from ratelimit_ext.policy.toml_file import read_file

    mistakes = Mistakes()
    nesting = Nesting(
        default_strategy, mistakes, plan_keywords=plan_keywords, limit_keywords=limit_keywords
    )

    def add(place: Place) -> None:
        nesting.add_document(read(Document, place, mistakes), place)

    if file is not None:
        add(Place(source := read_file(file, mistakes)))
        if source.document is None:  # the checks would say that everything is missing
            check = _no_check
    if policy is not None:
        whole = {"version": VERSION, **policy} if isinstance(policy, Mapping) else policy
        place = Place(AppConfig("RATELIMIT_POLICY", whole))
        if file is None:
            add(place)
        else:
            mistakes.add(place, "there is RATELIMIT_POLICY_FILE, too. Remove one of the two.")
    if blueprints is not None:
        place = Place(AppConfig("RATELIMIT_BLUEPRINTS", blueprints))
        nesting.add_targets(read(Targets, place, mistakes), place)
    nesting.check()
    loaded = nesting.policy()
    check(loaded, mistakes)
    mistakes.raise_if_any()
    return loaded


# -- limits in code --------------------------------------------------------------------------

_option_values: Final = attrgetter(*OPTION_NAMES)
_defaults: Final = _option_values(NO_OPTIONS)


def check_in_code(
    text: object,
    options: LimitOptions,
    cost: object,
    default_strategy: str | None,
    *,
    is_conditional: bool,
) -> None:
    """Raise ``ConfigurationError`` with all mistakes of a limit that is written in Python;
    ``is_conditional``: it has ``deduct_when``."""
    if (
        isinstance(text, str)
        and cost.__class__ is int
        and cost == 1
        and not is_conditional
        and _option_values(options) == _defaults
        and _is_valid(text, default_strategy)
    ):
        return
    # The cache must not keep the function; its value is known at the request.
    cost = _any_function if callable(cost) else cost
    deducts = _any_function if is_conditional else None
    values = _option_values(options)
    try:
        _check_in_code(text, cost, deducts, default_strategy, *values)
    except TypeError:  # a value that has no hash
        _check_in_code.__wrapped__(text, cost, deducts, default_strategy, *values)


@lru_cache(maxsize=1024)
def _is_valid(text: str, default_strategy: str | None) -> bool:
    """Return whether the string has valid limits without any keyword, as most have: what checks all
    keywords, and finds the words for each mistake, takes longer to import than everything else."""
    strategy = default_strategy or DEFAULT_STRATEGY
    strategy = ALIASES.get(strategy, strategy)
    try:
        parts = parse(text)
        limits = [parsed.limit(NO_OPTIONS, strategy) for parsed in parts]
    except ConfigurationError:
        return False
    kinds = {(part.period_us, part.unit, part.strategy) for part in parts}
    return len(kinds) == len(parts) and not any(limit.never_admits(1) for limit in limits)


def _any_function(*_: object) -> None:
    """A placeholder."""


# Blocks inside views come here at every request. Typed: a cost of True equals 1 and is invalid.
@lru_cache(maxsize=1024, typed=True)
def _check_in_code(
    text: object, cost: Any, deducts: Any, default_strategy: str | None, *values: Any
) -> None:
    from ratelimit_ext.policy.rules import check_limit
    from ratelimit_ext.policy.schema import LimitTable, read

    options = zip(OPTION_NAMES, values, _option_values(NO_OPTIONS), strict=True)
    given = {word: value for word, value, default in options if value != default}
    if deducts is not None:
        given["deduct_when"] = deducts
    mistakes, place = Mistakes(), Place(Code({"limit": text, "cost": cost, **given}))
    table = read(LimitTable, place, mistakes)
    if table is not None and not mistakes:
        check_limit(table.policy_limit(place, None), default_strategy, mistakes)
    mistakes.raise_if_any("a limit")
