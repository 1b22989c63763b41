"""The functions that the application registers: identities, its plan, estimates, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flask
from werkzeug.exceptions import HTTPException

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.traits import UNITS
from ratelimit_ext.web.code_checks import check_function, unknown_name
from ratelimit_ext.web.identities import BUILT_IN, Identity

Estimate: TypeAlias = Callable[[], Any]
#: Called with a ``RequestLimit``; a response replaces the default one.
Breach: TypeAlias = Callable[[Any], flask.Response | None]
#: Decides the current request again; returns the new refusal, or ``None`` if it is admitted.
DecideAgain: TypeAlias = Callable[[], HTTPException | None]
OverrideLoader: TypeAlias = Callable[[], Mapping[str, str]]
RefusalHandler: TypeAlias = Callable[[HTTPException, DecideAgain], HTTPException | None]


class Callbacks:
    """The registered functions of one extension."""

    def __init__(self) -> None:
        #: By the names that a policy can use.
        self.identities: dict[str, Identity] = dict(BUILT_IN)
        #: By unit and the name of the limit ("": any other).
        self.estimators: dict[tuple[str, str], Estimate] = {}
        #: Returns the name of the current caller's plan.
        self.plan_loader: Callable[[], str] | None = None
        #: Returns the amounts of the current caller, by the names of limits.
        self.override_loader: OverrideLoader | None = None
        #: What a plan may have in a policy besides the extension's keywords.
        self.plan_keywords: dict[str, Callable[[Any], Any]] = {}
        self.refusal_handler: RefusalHandler | None = None

    def identity(self, name: str) -> Callable[[Identity], Identity]:
        """See :meth:`Limiter.identity`."""

        def register(function: Identity) -> Identity:
            check_function(function, 0, f"identity {name!r}")
            self.identities[name] = function
            return function

        return register

    def estimator(self, unit: str, *, limit: str) -> Callable[[Estimate], Estimate]:
        """See :meth:`Limiter.estimator`."""
        if unit not in UNITS:  # a call in flight always counts as one, so "calls" has no estimate
            raise ConfigurationError(f"estimator: {unknown_name('unit', unit, UNITS)}")

        def register(function: Estimate) -> Estimate:
            self.estimators[unit, limit] = function
            return function

        return register
